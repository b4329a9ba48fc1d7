# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice-oci-hook: a hook for OCI runtimes (crun, runc), which forwards the ports that a
container's annotations name.

    createRuntime   begins an instance for the container's network namespace. It returns when every
                    port is bound and the sandbox is in force; if it fails, so does the container
    poststop        waits for the instance's end

An instance ends by itself with the container's first process, too. A container that is started
again is a new process in a new namespace, for which the runtime calls the hook again.
"""

from __future__ import annotations

import json
import os
import re
import sys
import syslog

from hardsplice.frontends.instances import Instances
from hardsplice.kernel.record import NamedTuple
from hardsplice.model import spec
from hardsplice.model.errors import HardspliceError, in_a_line, print_lines, printable, quote
from hardsplice.model.unforeseen import as_error

PROGRAM = "hardsplice-oci-hook"
PREFIX = "org.hardsplice."
# Annotations, and the options that their SPECs are values of.
OPTIONS = {f"{PREFIX}tcp": "-t", f"{PREFIX}udp": "-u"}
STARTING = ("creating", "created")  # runc says the one at createRuntime, crun the other
STOPPED = "stopped"
_LIMIT = 1 << 20  # bytes of a state
_ID = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_+.-]{0,199}")


class State(NamedTuple):
    """What a runtime says about a container."""

    id: str
    status: str
    pid: int  # of its first process; 0 if there is none any more
    annotations: dict[str, str]


def read_state(text: bytes) -> State:
    """A container's state in the runtime's form (JSON). Raises HardspliceError."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong("it is not JSON") from None
    if not isinstance(given, dict):
        raise _wrong("it is not an object")
    container, status = given.get("id"), given.get("status")
    pid, annotations = given.get("pid", 0), given.get("annotations")
    annotations = {} if annotations is None else annotations
    if not isinstance(container, str) or not _ID.fullmatch(container):
        raise _wrong("id is not the name of a container")
    if not isinstance(status, str):
        raise _wrong("status is not a text")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid < 0:
        raise _wrong("pid is not a process's number")
    if not isinstance(annotations, dict) or not all(
        isinstance(value, str) for value in annotations.values()
    ):
        raise _wrong("annotations are not texts by their names")
    return State(container, status, pid, annotations)


def _wrong(reason: str) -> HardspliceError:
    hint = "runtimes write it to a hook's standard input"
    return HardspliceError("read", "the container's state", reason, hint)


def arguments(state: State) -> list[str]:
    """The command line for a container, but for the PID file; empty if it asks for no port. Raises
    HardspliceError.
    """
    words = []
    for name, value in state.annotations.items():
        if not name.startswith(PREFIX):
            continue
        if name not in OPTIONS:
            known = ", ".join(OPTIONS)
            raise HardspliceError("use", f"annotation {quote(name)}", f"there are {known}")
        for text in value.split():
            what = f"annotation {name}={quote(text)}"
            if spec.is_inherited(text):
                raise HardspliceError("use", what, "no service manager passes listeners here")
            if text == "none":
                continue
            try:
                spec.read(text)
            except spec.SpecError as refusal:
                raise HardspliceError("parse", what, str(refusal)) from None
            words += [OPTIONS[name], text]
    if not words:
        return []
    if not state.pid:
        raise _wrong("it has no process")
    return [*words, str(state.pid)]


def run(state: State) -> None:
    """Do what is to be done at this point of the container's life. Raises HardspliceError."""
    if state.status not in (*STARTING, STOPPED):
        reason = f"the container is {printable(state.status, 20)}"
        hint = "createRuntime and poststop are when it can do something"
        raise HardspliceError("use", "this hook", reason, hint)
    words = arguments(state) if state.status in STARTING else []
    if words and _is_hosts(state.pid):
        reason = "the container is in the host's network, where its ports are without forwarding"
        hint = f"leave out its annotations {PREFIX}*, or give it a network: --network none will do"
        raise HardspliceError("forward", f"ports of container {state.id}", reason, hint)
    with Instances("oci").locked(state.id) as instance:
        # One that is left belongs to the container's life before.
        instance.end()
        if words:
            instance.begin(words)


def _is_hosts(pid: int) -> bool:
    """Whether a process is in our own network namespace, which is the runtime's."""
    try:
        return os.path.samefile(f"/proc/{pid}/ns/net", "/proc/self/ns/net")
    except OSError:
        return False  # whoever joins it says why that can't be done


def main() -> int:
    """Run the hook; the exit status."""
    try:
        _answer_options(sys.argv[1:])
        run(read_state(sys.stdin.buffer.read(_LIMIT)))
    except Exception as error:  # noqa: BLE001 - the last resort: no traceback
        failure = as_error(error, "run", "this hook")
        _say(in_a_line(failure))
        return 1
    return 0


def _say(text: str) -> None:
    """Say it on standard error, as one line, since runc shows it as one text; and to syslog, since
    crun shows nothing.
    """
    print_lines([f"{PROGRAM}: {text}"])
    syslog.openlog(PROGRAM, syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, printable(text))


def _answer_options(words: list[str]) -> None:
    """The two options that there are; whatever else stands there is for people who list hooks."""
    if words == ["--version"]:
        from hardsplice import __version__

        print(f"{PROGRAM} {__version__}")
        raise SystemExit(0)
    if words == ["--help"]:
        names = " and ".join(OPTIONS)
        print(f"usage: {PROGRAM} < STATE\n\nA hook for OCI runtimes; annotations {names}.")
        raise SystemExit(0)
