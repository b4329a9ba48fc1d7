# SPDX-License-Identifier: GPL-2.0-or-later
"""What hardsplicectl does: parse, ask, show; errors are lines of the form that hardsplice has."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from hardsplice.cli import output
from hardsplice.control import portapi
from hardsplice.ctl import cli, exporter, show, top
from hardsplice.ctl.client import Client, RefusedError
from hardsplice.kernel.ephemeral import read_ephemeral_range
from hardsplice.model import ports
from hardsplice.model.direction import GroupKey
from hardsplice.model.errors import HardspliceError, printable
from hardsplice.model.forward import Forward
from hardsplice.telemetry import audit


def main(argv: Sequence[str]) -> int:
    """Run hardsplicectl with the words of its command line; the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the locale has no code for is no error
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # top puts the terminal in order
            signal.signal(signal.SIGINT, signal.default_int_handler)
        given = cli.parse_args(argv)
        with contextlib.closing(Client(given.socket)) as client:
            COMMANDS[given.command](client, given)
        if sys.stdout is not None:  # as where the shell closed it
            sys.stdout.flush()
    except HardspliceError as failure:
        return _complain(failure.lines("hardsplicectl"))
    except RefusedError as refused:
        texts = (refused.message, refused.hint)
        return _complain([f"hardsplicectl: {printable(text)}" for text in texts if text])
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        lost = output.lost(error, "the answer")
        return _complain(lost.lines("hardsplicectl")) if lost else 1
    return 0


def _complain(lines: Sequence[str]) -> int:
    with contextlib.suppress(OSError):
        print("\n".join(lines), file=sys.stderr)
    return 1


def _print(
    client: Client, given: argparse.Namespace, value: object, lines: Callable[[], Sequence[str]]
) -> None:
    """Print an answer: as JSON, which is in ASCII, or in lines, which are shown as they may be."""
    with client.understood():
        if given.json:
            text = json.dumps(value, indent=2, allow_nan=False)
        else:
            text = "\n".join(map(printable, lines()))
    print(text)


# --- the commands ---------------------------------------------------------------------------------


def _ports(client: Client, given: argparse.Namespace) -> None:
    if given.action == "add":
        added = _add(client, given.group, given.spec)
        _print(client, given, added, lambda: show.ports(added))
    elif given.action == "remove":
        removed: list[int] = []
        try:
            for number in given.ids:
                client.remove(number, reset_flows=given.reset)
                removed.append(number)
        finally:  # what is gone is said, too, where the next one can't be removed
            if removed:
                lines = [f"removed {number}" for number in removed]
                _print(client, given, {"removed": removed}, lambda: lines)
    else:
        listed = client.get("/v1/ports?direction=all")
        _print(client, given, listed, lambda: show.ports(listed))


def _add(client: Client, group: GroupKey, spec: str) -> list[dict[str, object]]:
    """Add all ports of a SPEC, or none of them; those that `all` brings may be in use."""
    direction, protocol = group
    option = direction.option(protocol)
    wanted = ports.parse([spec], direction, ephemeral=read_ephemeral_range(), protocol=protocol)
    if not wanted:
        raise HardspliceError("add", f"{option} {spec}", "it names no port")
    added: list[dict[str, object]] = []
    try:
        for forward in wanted:
            try:
                added.append(client.add(description(forward)))
            except RefusedError:
                if forward.required:
                    raise
    except BaseException:
        _take_back(client, added)
        raise
    return added


def _take_back(client: Client, added: Sequence[Mapping[str, object]]) -> None:
    """Remove ports again that were added; if some can't be removed, say how many."""
    left, reason = 0, ""
    for at, port in enumerate(added):
        try:
            with client.understood():
                number = int(str(port["id"]))
            client.remove(number, reset_flows=False)
        except RefusedError as refused:
            left, reason = left + 1, printable(refused.message)
        except HardspliceError as failure:  # nobody answers, so nobody will
            left, reason = left + len(added) - at, str(failure)
            break
    if left:
        _complain([f"hardsplicectl: {left} of the ports that were added are left: {reason}"])


def description(forward: Forward) -> dict[str, object]:
    """A port in the words of the port API."""
    return {**portapi.describe(forward, forward.protocol), "direction": forward.direction}


def _status(client: Client, given: argparse.Namespace) -> None:
    answer = client.get("/v1/status")
    _print(client, given, answer, lambda: show.status(answer))


def _flows(client: Client, given: argparse.Namespace) -> None:
    answer = client.get("/v1/flows")
    _print(client, given, answer, lambda: show.flows(answer))


def _metrics(client: Client, given: argparse.Namespace) -> None:
    text = client.text("/metrics")
    with client.understood():
        samples = show.metrics(text)
    _print(client, given, samples, lambda: text.split("\n")[:-1])


def _audit(client: Client, given: argparse.Namespace) -> None:
    """The one answer that hardsplice can't give: it has no /proc any more, so we read it."""
    answer = client.get("/v1/audit")
    with client.understood():
        lacking = [str(layer) for layer in answer["lacking"]]
    # The kernel says which process answers; the answer itself could name any.
    pid = client.process
    if not pid:
        raise HardspliceError(
            "audit", "the process that answers", "it is not in this PID namespace"
        )
    print(audit.report(pid, lacking, "json" if given.json else "table"))


def _top(client: Client, given: argparse.Namespace) -> None:
    with client.understood():
        if given.json:
            samples = top.once(client, given.interval)
            found = [dataclasses.asdict(sample) for sample in samples]
            print(json.dumps(found, indent=2, allow_nan=False))
        else:
            top.run(client, given.interval)


def _exporter(client: Client, given: argparse.Namespace) -> None:
    """It asks by connections of its own, one each time."""
    exporter.run(client.path, given.listen)


COMMANDS: dict[str, Callable[[Client, argparse.Namespace], None]] = {
    "ports": _ports,
    "status": _status,
    "flows": _flows,
    "metrics": _metrics,
    "audit": _audit,
    "top": _top,
    "exporter": _exporter,
}
