# SPDX-License-Identifier: GPL-2.0-or-later
"""Texts that others wrote, on every way to a person: none moves a cursor, starts a line or hides
what stands beside it.

The tables name each function that writes to people and each that makes a text of bytes that come
from outside or from below. They are compared with the sources, so a new one has to be entered here,
with what shows that it is harmless.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import socket
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from hardsplice.app import start
from hardsplice.app.command_line import parse_args
from hardsplice.control.http import Parser, Refusal, Request, Response
from hardsplice.control.routes import dispatch
from hardsplice.control.world import refusal
from hardsplice.ctl import commands, top
from hardsplice.ctl.client import Client, RefusedError
from hardsplice.frontends import cni, oci_hook
from hardsplice.ipc.messages import Kind, Note, Record
from hardsplice.ipc.sd_notify import Notifier
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError, error_of, print_lines
from hardsplice.model.protocol import Protocol
from hardsplice.monitor import notes
from hardsplice.telemetry import audit, flow_table
from hardsplice.telemetry.log import Level, Log
from tests.support.clock import FakeClock
from tests.support.sources import MODULES, parsed
from tests.unit.control.fake_world import FakeWorld, flow

# Colours, lines of each kind, C1, an override of direction, what is not seen, a flood of marks,
# letters from right to left, and what is no UTF-8.
EVIL = (
    "\x1b[2J\x1b]0;title\a\r\n\v\x1c\x85\x9b1m\u2028\u202e\u2066\u200b\u3164"
     "z" + "\u0310" * 20 + "\u05d0 1" + "\udcff" + "x" * 5000
)  # fmt: skip
EVIL_BYTES = EVIL.encode(errors="surrogateescape")
Capture = pytest.CaptureFixture[str]


def check(shown: str, lines: int | None = None) -> None:
    """Nothing but the ends of its lines has an effect; none is endless."""
    assert shown, "something is shown"
    for line in shown.removesuffix("\n").split("\n"):
        assert line.isprintable(), line
        assert len(line) <= 2048
        assert not {unicodedata.bidirectional(char) for char in line} & {"R", "AL"}
        assert "\u0310" * 3 not in line
        assert "\u3164" not in line
    if lines is not None:
        assert shown.count("\n") == lines


def check_json(text: str) -> Any:
    assert text.isascii()
    assert "\x1b" not in text
    return json.loads(text)


# --- what somebody else answers at a control socket ---


def spoil(value: Any) -> Any:
    """An answer with a text of somebody else's wherever there is one."""
    if isinstance(value, dict):
        return {name: spoil(one) for name, one in value.items()}
    if isinstance(value, list):
        return [spoil(one) for one in value]
    return EVIL if isinstance(value, str) else value


class Stranger(Client):
    """Somebody who answers in hardsplice's stead."""

    def _request(self, method: str, path: str, body: bytes | None) -> bytes:
        if method == "DELETE":
            raise RefusedError(EVIL, EVIL)
        if path == "/metrics":
            return b"hardsplice_up{" + EVIL_BYTES + b'="1"} 1\n# ' + EVIL_BYTES + b"\n"
        world = FakeWorld()
        world.present = [(Direction.INBOUND, flow(1)), (Direction.OUTBOUND, flow(2))]
        answers: list[Response] = []
        dispatch(Request(method, *path.partition("?")[::2], b"", True), world, answers.append)
        answer = json.loads(answers[0].body)
        if path == "/v1/status":
            answer |= {"lacking": ["x"], "denied": {EVIL: 1}}
        return json.dumps(spoil(answer)).encode()

    @property
    def process(self) -> int:
        return os.getpid()


@pytest.fixture(autouse=True)
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "time", FakeClock())
    monkeypatch.setattr(commands, "Client", Stranger)


def ask(capture: Capture, *words: str) -> str:
    assert commands.main(["--socket", "/x", *words]) == 0
    return capture.readouterr().out


def asked(*words: str) -> Callable[[Capture], None]:
    def shown(capture: Capture) -> None:
        check(ask(capture, *words))
        if words[0] != "top":
            check_json(ask(capture, "--json", *words))

    return shown


def top_in_json(capture: Capture) -> None:
    check_json(ask(capture, "--json", "top"))


def complaints(capture: Capture) -> None:
    commands._complain(HardspliceError("reach", EVIL, EVIL, EVIL).lines())
    check(capture.readouterr().err, 2)


def refusals(capture: Capture) -> None:
    """ID 13 is one that can't be removed."""
    assert commands.main(["--socket", "/x", "ports", "remove", "13"]) == 1
    check(capture.readouterr().err, 2)


# --- hardsplice's own ways to people ---


def told(capture: Capture) -> None:
    read, write = os.pipe()
    print_lines([EVIL, EVIL], write)
    os.close(write)
    with open(read, "rb") as file:
        check(file.read().decode(), 2)


def said_at_the_end(capture: Capture) -> None:
    start._say(HardspliceError("open", EVIL, EVIL, EVIL))


def ready_text(form: str) -> Callable[[Capture], None]:
    """READY's text is the host monitor's, and in part the namespace monitor's."""

    def shown(capture: Capture) -> None:
        options = parse_args([form, "-t", "none", "1"])
        start._audit(options, os.getpid(), Record(Kind.READY, text=b"took\n" + EVIL_BYTES))

    return shown


def logged(form: Any, journal: bool) -> Callable[[Capture], None]:
    def shown(capture: Capture) -> None:
        read, write = os.pipe()
        saved = os.dup(2)
        os.dup2(write, 2)
        os.close(write)
        try:
            found = os.fstat(2)
            log = Log(Level.TRACE, form, f"{found.st_dev}:{found.st_ino}" if journal else "")
            log.line(Level.ERROR, EVIL)
            log.limited(Level.ERROR, "kind", EVIL)
            log.write(Level.INFO, EVIL, {"event": "flow", "listener": EVIL, "client": EVIL})
            log.last_words(EVIL)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        with open(read, "rb") as file:
            text = file.read().decode()
        check(text, 4)
        if form == "json":
            for line in text.splitlines():
                values = check_json(line.removeprefix("<3>").removeprefix("<6>"))
                assert all(str(value).isprintable() for value in values.values())

    return shown


def status_of_the_service(capture: Capture) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    notifier = Notifier(None)
    notifier._fd = ours.detach()
    with theirs:
        notifier.status(EVIL, "READY=1")
        text = theirs.recv(1 << 16).decode()
    os.close(notifier._fd)
    assert text.split("\n")[0] == "READY=1"
    check(text, 1)


def tree_in_json(capture: Capture) -> None:
    """Names of processes are tried in test_audit.py."""
    found = [dataclasses.asdict(one) for one in audit.read_tree(os.getpid())]
    check_json(json.dumps(found))


def said_by_the_hook(capture: Capture) -> None:
    state = oci_hook.State("web", "creating", 1, {f"org.hardsplice.{EVIL}": "80"})
    with pytest.raises(HardspliceError) as caught:
        oci_hook.arguments(state)
    oci_hook._say(str(caught.value))


def said_by_the_plugin(capture: Capture) -> None:
    """An engine shows its message."""
    failure = cni._as_cni(HardspliceError("open", EVIL, EVIL, EVIL))
    cni._say(failure.answer(EVIL))
    said = check_json(capture.readouterr().out)
    check(f"{said['msg']}\n{said['details']}\n", 2)


OWN_FILES = "what it prints are hardsplice's own files"
MACHINE = "a machine reads it"
#: Each function that writes, by what it is tried with; a reason where people never see it.
SINKS: dict[str, list[Callable[[Capture], None]] | str] = {
    "telemetry.audit.main": [tree_in_json],
    "sandbox.address_book.Book.__init__": MACHINE,
    "ctl.commands._audit": [asked("audit")],
    "ctl.commands._complain": [complaints, refusals],
    "ctl.commands._print": [
        asked("status"),
        asked("flows"),
        asked("ports"),
        asked("metrics"),
    ],
    "ctl.commands._top": [top_in_json],
    "ctl.top._screen": "constants",
    "ctl.top.run": [asked("top")],
    "isolated._say_shortage": MACHINE,
    "model.errors.print_lines": [told],
    "model.errors.write_all": "others call it",
    "command.guard.lock_down": MACHINE,
    "command.init._become_command": "PID 1 reads it, and makes a HardspliceError of it",
    "telemetry.log.Log._write": [
        *(logged("text", journal=journal) for journal in (False, True)),
        *(logged("json", journal=journal) for journal in (False, True)),
    ],
    "telemetry.log.make_room": "what was in the log before",
    "sandbox.user_namespace.write_id_maps": MACHINE,
    "cli.output.answer": "its own help",
    "app.pidfile.PidFile.write": MACHINE,
    "policy._check_command": OWN_FILES,
    "policy._export": OWN_FILES,
    "policy.main": OWN_FILES,
    "sandbox.tripwire.arm.hook": "report is a parameter there, and leads to a channel",
    "ipc.sd_notify.Notifier.say": [status_of_the_service],
    "frontends.cni._say": [said_by_the_plugin],
    "frontends.cni.main": "constants",
    "frontends.instances.Instance.write_note": MACHINE,
    "frontends.docker_proxy.main": "a HardspliceError's own line",
    "frontends.oci_hook._answer_options": "constants",
    "frontends.oci_hook._say": [said_by_the_hook],
    "frontends.publishing._live": MACHINE,
    "frontends.rootlessport._keep": MACHINE,
    "frontends.rootlessport.main": "a HardspliceError's own line",
    "app.filters._compile": MACHINE,
    "app.free_ports.print_to_stderr": "by errors.print_lines",
    "app.free_ports.write_report": MACHINE,
    "app.start._audit": [ready_text("--audit"), ready_text("--audit=json")],
    "app.start._launch": "by errors.print_lines",
    "app.start._say": [said_at_the_end],
}
_WRITES = ("print", "os.write", "write_all", "print_lines", "report", "os.writev", "os.pwrite")
_WRITES_AT_THE_END = (".stdout.write", ".stderr.write", ".buffer.write", ".stdout.writelines")


# --- bytes that become a text ---


def _failure(text: bytes) -> str:
    return "\n".join(error_of(text).lines())


def _note(text: bytes) -> str:
    """Shown by the log."""
    return HardspliceError(
        "log", notes.in_words((Direction.INBOUND, Protocol.TCP), EVIL, Note.ERROR, 0, text)[1], ""
    ).lines()[0]


def _refused_request(text: bytes) -> str:
    """What a client of the control socket is told of what it sent."""
    parser = Parser()
    parser.feed(text[:200].replace(b"\n", b"\r\n") + b"\r\n\r\n")
    event = parser.next()
    assert isinstance(event, Refusal)
    return refusal(event.status, event.reason).body.decode()


#: Each function that makes a text of bytes, by how that text is shown; a reason where it never is.
SOURCES: dict[str, Callable[[bytes], str] | str] = {
    "telemetry.audit.read_process": "test_audit.py",
    "telemetry.audit.stat_fields": "a letter of the kernel's",
    "command.container.Container._make": "in quotes, by setup",
    "control.http.Parser._field": _refused_request,
    "control.http.Parser._line": _refused_request,
    "control.portapi.read_spec": "test_control_routes.py: answers are JSON",
    "ctl.client.Client._json": "Stranger",
    "ctl.client.Client.text": "Stranger",
    "frontends.cni_call.read_configuration": "answers are JSON",
    "frontends.cni_call.version_of": "answers are JSON",
    "frontends.oci_hook.read_state": "a HardspliceError",
    "frontends.reload.read_address": "a HardspliceError",
    "frontends.server.Client._hear": "offers.decode reads no text",
    "frontends.rootlessport_request.parse": "a HardspliceError",
    "model.errors._escape": "made of ASCII",
    "model.errors.error_of": _failure,
    "command.init._last_word": "a HardspliceError",
    "monitor.supervisor.Supervisor._fatal": "a HardspliceError",
    "telemetry.log._cut": "shown already",
    "monitor.notes.in_words": _note,
    "monitor.notes.newly_lacking": "Progress.ready and the control socket, by printable",
    "net.inherited._interface": "an interface's name, in a HardspliceError",
    "sandbox.policy.files._read": "a policy is a file of hardsplice's own",
    "ipc.forwards.unpack": "an interface's name, in a HardspliceError",
    "app.start._audit": "SINKS",
    "command.id_maps._run": "a HardspliceError",
    "app.start._launch": "by errors.print_lines",
}
_READS = ("os.fsdecode", "json.loads", "fsdecode")
_READS_AT_THE_END = (".decode",)


def calls(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
    """Each call in a module: the function that makes it, and what is called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield from calls(child, f"{where}.{child.name}")
        else:
            if isinstance(child, ast.Call):
                yield where, name_of(child.func)
            yield from calls(child, where)


def name_of(node: ast.expr) -> str:
    """What is called: names with points in between, behind whatever they begin with."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return ""


@cache
def all_calls() -> list[tuple[str, str]]:
    """Those of the whole package."""
    found: list[tuple[str, str]] = []
    for module, path in MODULES.items():
        found += calls(parsed(path), module)
    return found


def callers(names: tuple[str, ...], ends: tuple[str, ...]) -> set[str]:
    """The functions that call one of these."""
    return {where for where, called in all_calls() if called in names or called.endswith(ends)}


def test_every_function_that_writes_to_people_is_in_the_table() -> None:
    assert callers(_WRITES, _WRITES_AT_THE_END) == set(SINKS)


def test_every_function_that_reads_foreign_text_is_in_the_table() -> None:
    assert callers(_READS, _READS_AT_THE_END) == set(SOURCES)


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        pytest.param(name, attempt, id=f"{name}-{number}")
        for name, attempts in SINKS.items()
        if not isinstance(attempts, str)
        for number, attempt in enumerate(attempts)
    ],
)
def test_what_is_written_to_people_is_harmless(
    name: str, attempt: Callable[[Capture], None], capfd: Capture
) -> None:
    attempt(capfd)
    captured = capfd.readouterr()
    for text in (captured.out, captured.err):
        if text:
            check(text)


@pytest.mark.parametrize(
    "name", [name for name, way in SOURCES.items() if not isinstance(way, str)]
)
def test_what_was_read_is_shown_harmlessly(name: str) -> None:
    way = SOURCES[name]
    assert not isinstance(way, str)
    check(way(EVIL_BYTES))


def test_addresses_in_the_flow_table_are_words_of_numbers() -> None:
    """Whatever a relay writes there: sixteen bytes are an address."""
    for raw in (bytes(16), b"\xff" * 16, EVIL_BYTES[:16]):
        check(flow_table.endpoint_text((flow_table._address(raw), 1)))
