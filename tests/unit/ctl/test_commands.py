# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl: its command line, what it shows, and its errors. What it asks is a fake."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hardsplice.control.http import Request, Response
from hardsplice.control.routes import dispatch
from hardsplice.ctl import client, commands, show, top
from hardsplice.ctl.cli import parse_args
from hardsplice.ctl.client import default_path
from hardsplice.ctl.commands import description, main
from hardsplice.model import ports
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward, Source
from hardsplice.model.protocol import Protocol
from tests.support.clock import FakeClock
from tests.support.stream import PATIENCE
from tests.unit.control.fake_world import FakeWorld, flow, relay
from tests.unit.ctl.fake_server import serving


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    with serving(tmp_path, monkeypatch) as world:
        yield world


Said = tuple[int, str, str]
VERBS = ("understand", "reach")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Said:
    status = main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    status, out, err = run(capsys, "--json", *words)
    assert (status, err) == (0, "")
    return json.loads(out)


# --- the command line -----------------------------------------------------------------------------


def test_the_socket_is_looked_for_in_this_order() -> None:
    everything = {"HARDSPLICE_CONTROL": "/a", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert default_path(everything) == "/a"
    assert default_path({"XDG_RUNTIME_DIR": "/run/user/7"}) == "/run/user/7/hardsplice.sock"
    assert default_path({}) == "/run/hardsplice.sock"
    assert default_path({"HARDSPLICE_CONTROL": "", "XDG_RUNTIME_DIR": ""}) == "/run/hardsplice.sock"


@pytest.mark.parametrize(
    "words",
    [
        ["--socket", "/s", "--json", "ports", "add", "-T", "80"],
        ["ports", "--socket", "/s", "--json", "add", "-T", "80"],
        ["ports", "add", "--json", "-T", "80", "--socket", "/s"],
    ],
)
def test_options_may_stand_anywhere(words: list[str]) -> None:
    given = parse_args(words)
    assert (given.socket, given.json, given.group[0], given.spec) == ("/s", True, "outbound", "80")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["dance"], "invalid choice"),
        (["ports", "remove"], "ID"),
        (["ports", "remove", "one"], "cannot parse ID 'one': it is not a number"),
        (["ports", "remove", "-1"], "cannot parse"),
        (["ports", "add"], "SPEC"),
        (["ports", "add", "-t", "-T", "80"], "not allowed with"),
        (["top", "--interval", "0"], "it is not a number of seconds"),
        (["top", "--interval", "nan"], "it is not a number of seconds"),
    ],
)
def test_a_wrong_command_line_is_one_error(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    status, out, err = run(capsys, *words)
    assert (status, out) == (1, "")
    assert err.startswith("hardsplicectl: cannot parse ")
    assert said in err


# --- ports ----------------------------------------------------------------------------------------


def test_ports_are_added_listed_and_removed(
    world: FakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    added = answer(capsys, "ports", "add", "127.0.0.1/8000-8001:80-81")
    assert [port["id"] for port in added] == [1, 2]
    answer(capsys, "ports", "add", "-T", "5432:10.0.0.5/5433")
    status, out, _ = run(capsys, "ports")
    assert status == 0
    assert out.splitlines() == [
        "ID  DIRECTION  PROTO  LISTENS ON      LEADS TO       SOURCE",
        "1   inbound    tcp    127.0.0.1:8000  loopback:80    control",
        "2   inbound    tcp    127.0.0.1:8001  loopback:81    control",
        "3   outbound   tcp    *:5432          10.0.0.5:5433  control",
    ]
    assert run(capsys, "ports", "remove", "--reset", "1", "3") == (0, "removed 1\nremoved 3\n", "")
    assert world.ports.worker.reset == [1, 3]
    assert [port["id"] for port in answer(capsys, "ports", "list")] == [2]
    status, out, err = run(capsys, "ports", "remove", "2", "3")
    assert (status, out, "no port with that id" in err) == (1, "removed 2\n", True)
    answer(capsys, "ports", "add", "8002")
    assert answer(capsys, "ports", "remove", "4") == {"removed": [4]}
    assert world.ports.worker.reset == [1, 3]


def test_a_refusal_is_shown_with_its_next_step(
    world: FakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.ports.worker.fails = HardspliceError(
        "listen on", "port 80", "Permission denied", "use a higher port"
    )
    status, out, err = run(capsys, "ports", "add", "80")
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        "hardsplicectl: cannot listen on port 80: Permission denied",
        "hardsplicectl: use a higher port",
    ]


def test_of_a_spec_all_ports_are_added_or_none(
    world: FakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "ports", "add", "8002")
    status, _, err = run(capsys, "ports", "add", "8000-8002")
    assert (status, "with the id 1" in err) == (1, True)
    assert [port.port for port in world.ports.list()] == [8002]


def test_ports_of_a_spec_that_can_not_be_removed_again_are_said(
    world: FakeWorld, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "ports", "add", "8002")

    def cannot(port_id: int, *, reset_flows: bool, done: Callable[[HardspliceError], None]) -> None:
        done(HardspliceError("remove", f"port {port_id}", "the namespace monitor does not answer"))

    monkeypatch.setattr(world.ports, "remove", cannot)
    status, out, err = run(capsys, "ports", "add", "8000-8002")
    said, why = err.splitlines()
    assert (status, out, "with the id 1" in why) == (1, "", True)
    reason = "cannot remove port 3: the namespace monitor does not answer"
    assert said == f"hardsplicectl: 2 of the ports that were added are left: {reason}"


@pytest.mark.parametrize("spec", ["none", "", "80:", "localhost/80"])
def test_a_spec_that_names_no_port_is_an_error(
    world: FakeWorld, capsys: pytest.CaptureFixture[str], spec: str
) -> None:
    status, _, err = run(capsys, "ports", "add", spec)
    assert status == 1
    assert err.startswith(("hardsplicectl: cannot parse -t ", "hardsplicectl: cannot add -t "))
    assert world.ports.table == {}


@pytest.mark.parametrize("direction", Direction)
def test_a_port_comes_back_as_it_was_described(world: FakeWorld, direction: Direction) -> None:
    for text in ("8080:80", "127.0.0.1/8080", "[::1]/1:2", "1:10.0.0.1/2", "0.0.0.0/5:[fd00::5]/6"):
        (forward,) = ports.parse([text], direction, ephemeral=(32768, 60999))
        body = json.dumps(description(forward)).encode()
        answers: list[Response] = []
        dispatch(Request("POST", "/v1/ports", "", body, True), world, answers.append)
        assert answers[0].status == 201
        (port,) = world.ports.table.values()
        assert port == forward._replace(id=port.id, source=Source.CONTROL)
        world.ports.table.clear()


def test_an_interface_is_shown_where_one_listens_on_it() -> None:
    spec = {"proto": "tcp", "parentIP": "fe80::1%eth0", "parentPort": 80, "childPort": 81}
    port = {"id": 1, "spec": spec, "direction": "inbound", "source": "option"}
    assert show.ends(port) == ("[fe80::1]%eth0:80", "loopback:81")
    assert Forward(Direction.INBOUND, None, "eth0", 80, None, 80, True).interface == "eth0"
    assert show.ends({**port, "spec": {**spec, "parentIP": "%eth0"}})[0] == "%eth0:80"


# --- what is shown --------------------------------------------------------------------------------


def test_where_there_is_udp_its_state_has_a_line_of_its_own(
    world: FakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\ninbound  " in run(capsys, "status")[1]
    world.relays.append(relay(Direction.INBOUND, protocol=Protocol.UDP))
    lines = run(capsys, "status")[1].splitlines()
    shown = [line.split()[:4] for line in lines[-3:]]
    assert shown[:2] == [["inbound", "tcp", "0", "1"], ["inbound", "udp", "0", "1"]]
    assert shown[2][:3] == ["outbound", "0", "2"], "where there is none it has none"


def test_status_flows_and_metrics(world: FakeWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world.lacking = ["deny ports by Landlock"]
    world.present = [(Direction.INBOUND, flow(1000))]
    status = run(capsys, "status")[1]
    assert "hardsplice 1.2.3, process 42, up for 12.5 s\nserves process 7\n" in status
    assert "not in force: deny ports by Landlock" in status
    assert "denied: 2 x peer" in status
    lines = run(capsys, "flows")[1].splitlines()
    shown = ["inbound", "tcp", "established", "127.0.0.1:1000", "[::1]:80"]
    assert lines[1].split()[:5] == shown
    assert lines[2] == "and 8 more"
    text = run(capsys, "metrics")[1]
    assert "# TYPE hardsplice_flows gauge" in text
    metrics = answer(capsys, "metrics")
    labels = {"namespace": "7", "direction": "outbound", "relay": "1"}
    labels |= {"protocol": "tcp", "state": "established"}
    assert {"name": "hardsplice_flows", "labels": labels, "value": 2.0} in metrics
    assert len(metrics) == sum(not line.startswith("#") for line in text.splitlines())
    for command in ("status", "flows"):
        assert answer(capsys, command)


def test_metrics_as_json_undo_every_escape() -> None:
    assert show.metrics('m{a="x\\"\\\\\\ny",b="}"} 1.5\n# m\nn 2\n') == [
        {"name": "m", "labels": {"a": 'x"\\\ny', "b": "}"}, "value": 1.5},
        {"name": "n", "labels": {}, "value": 2.0},
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1:00"), (3599, "59:59"), (3600, "1:00:00"),
     (86399, "23:59:59"), (90061, "1 d 01:01")],
)  # fmt: skip
def test_durations(seconds: float, shown: str) -> None:
    assert show.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (999, "999"), (1000, "1.0K"), (1024, "1.0K"), (10_240, "10.0K"), (150_000, "146K"),
     (1 << 20, "1.0M"), (5 << 30, "5.0G"), (1 << 63, "8.0E")],
)  # fmt: skip
def test_sizes(count: float, shown: str) -> None:
    assert show.size(count) == shown


def test_nothing_that_comes_from_elsewhere_plays_with_the_terminal() -> None:
    assert show.table(("A",), [("\x1b[2J",)]) == ["A", "\\x1b[2J"]


# --- top ------------------------------------------------------------------------------------------


def samples(world: FakeWorld, *rows: tuple[int, int]) -> list[top.Sample]:
    """A sample a second; each row is the bytes of two flows by then."""

    def get(path: str) -> Any:
        answers: list[Response] = []
        dispatch(Request("GET", path, "", b"", True), world, answers.append)
        return json.loads(answers[0].body)

    found = []
    for at, each in enumerate(rows):
        flows = get("/v1/flows")
        for shown, count in zip(flows["flows"], each, strict=True):
            shown["bytesToTarget"] = count
        found.append(top.Sample(float(at), get("/v1/status"), flows))
    return found


def test_a_frame_has_the_busiest_flow_first_and_fits_the_terminal() -> None:
    world = FakeWorld()
    world.present = [(Direction.INBOUND, flow(1000)), (Direction.OUTBOUND, flow(2000))]
    before, now = samples(world, (0, 0), (10, 2048))
    lines = top.frame(before, now, 200, 50)
    assert lines[0].startswith("hardsplice 1.2.3, process 42")
    table = [line.split() for line in lines if ":" in line and "127.0.0.1" in line]
    assert [row[3] for row in table] == ["127.0.0.1:2000", "127.0.0.1:1000"]
    assert table[0][-2:] == ["2.0K", "0"]
    assert table[1][-2:] == ["10", "0"]
    assert all(len(line) <= 20 for line in top.frame(before, now, 20, 50))
    assert len(top.frame(before, now, 80, 4)) == 4


# --- what can go wrong ----------------------------------------------------------------------------


def test_nobody_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "nothing")
    status, out, err = run(capsys, "--socket", path, "status")
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        f"hardsplicectl: cannot reach control socket {path}: No such file or directory",
        "hardsplicectl: start hardsplice with --control PATH, and name the same PATH with --socket",
    ]
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    assert "Connection refused" in run(capsys, "--socket", path, "status")[2]


@pytest.mark.parametrize(
    "said", [b"", b"220 mail ready\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]",
             b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\n[]"],
)  # fmt: skip
def test_somebody_else_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: bytes
) -> None:
    path = str(tmp_path / "control")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer_once() -> None:
            with listener.accept()[0] as peer:
                peer.recv(4096)
                peer.sendall(said)

        thread = threading.Thread(target=answer_once)
        thread.start()
        status, _, err = run(capsys, "--socket", path, "status")
        thread.join(PATIENCE)
    assert status == 1
    verbs = [f"hardsplicectl: cannot {verb} control socket {path}: " for verb in VERBS]
    assert err.startswith(tuple(verbs))


def test_somebody_who_never_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "Client", functools.partial(client.Client, seconds=0.01))
    path = str(tmp_path / "control")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert "no answer in time" in run(capsys, "--socket", path, "status")[2]


# --- whoever else may answer there ---

NONSENSE = (
    b"", b"[]", b"{}", b"null", b"1", b'"text"', b"[1]", b'[{}]', b"\xff", b"[" * 200_000,
    b'{"a": NaN}', b"1" * 5000, b'{"flows": {}, "total": "x"}', b'{"flows": [1], "total": 1e999}',
    b'{"version": 1, "pid": [], "uptimeSeconds": -1e308, "directions": [], "denied": 1}',
    b'{"version": "1", "pid": 1, "uptimeSeconds": 1e308, "denied": {}, "lacking": 5}',
    b'{"pid": -1, "lacking": {"a": "b"}}', b"hardsplice_up 1e9999x\n", b"hardsplice_up nan\n",
)  # fmt: skip


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize(
    "words",
    [["status"], ["flows"], ["ports"], ["metrics"], ["audit"], ["top"]],
    ids=" ".join,
)
def test_no_answer_is_more_than_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], form: list[str],
) -> None:  # fmt: skip
    """Nor less than JSON, where that was asked for."""
    monkeypatch.setattr(top, "time", FakeClock())
    for body in NONSENSE:
        monkeypatch.setattr(client.Client, "_request", lambda *_, body=body: body)
        status, out, err = run(capsys, *form, *words)
        assert status in (0, 1)
        if status:
            assert err.startswith("hardsplicectl: cannot ")
            assert len(err.splitlines()) == 1
        elif form:
            json.loads(out, parse_constant=pytest.fail)


def test_an_endless_answer_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "ANSWER_LIMIT", 1 << 20)
    path = tmp_path / "stranger"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    peer.sendall(b" " * 65536)

        thread = threading.Thread(target=answer)
        thread.start()
        status, out, err = run(capsys, "--socket", str(path), "status")
        thread.join(PATIENCE)
    assert (status, out) == (1, "")
    assert err == (
        f"hardsplicectl: cannot understand control socket {path}: what answers is no hardsplice\n"
    )


def test_an_audit_is_of_the_process_that_listens(
    world: FakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it says: by its own word it could be anybody. The world says that it is 4711."""
    found = answer(capsys, "audit")["processes"]
    assert found[0]["pid"] == os.getpid()
    assert found[0]["role"] is None
