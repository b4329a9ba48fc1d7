# SPDX-License-Identifier: GPL-2.0-or-later
"""Where hardsplicectl starts: parse, ask, show; errors are lines of the one form that hardsplice
has.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence

from hardsplice import audit, ports
from hardsplice.cli import read_ephemeral_range
from hardsplice.control import portapi
from hardsplice.ctl import cli, show, top
from hardsplice.ctl.client import Client, Refused
from hardsplice.errors import Failure, printable
from hardsplice.forwarding import Direction


def main(argv: Sequence[str] | None = None) -> int:
    """Run hardsplicectl; the exit status. The console script calls this."""
    try:
        given = cli.parse_args(sys.argv[1:] if argv is None else argv)
        with contextlib.closing(Client(given.socket)) as client:
            COMMANDS[given.command](client, given)
        sys.stdout.flush()
    except Failure as failure:
        for line in failure.lines("hardsplicectl"):
            print(line, file=sys.stderr)
        return 1
    except Refused as refused:
        for text in (refused.message, refused.hint):
            if text:
                print(f"hardsplicectl: {printable(text)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has seen enough. What is still buffered would raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _tell(given: argparse.Namespace, value: object, lines: Callable[[], list[str]]) -> None:
    print(json.dumps(value, indent=2) if given.json else "\n".join(lines()))


# --- the commands ---------------------------------------------------------------------------------


def _ports(client: Client, given: argparse.Namespace) -> None:
    if given.action == "add":
        added = _add(client, given.direction, given.spec)
        _tell(given, added, lambda: show.ports(added))
    elif given.action == "remove":
        for number in given.ids:
            client.remove(number, reset_flows=given.reset)
        _tell(given, {"removed": given.ids}, lambda: [f"removed {number}" for number in given.ids])
    else:
        listed = client.get("/v1/ports?direction=all")
        _tell(given, listed, lambda: show.ports(listed))


def _add(client: Client, direction: Direction, spec: str) -> list[dict[str, object]]:
    """Add all ports of a SPEC, or none of them; those that `all` brings may be in use."""
    option = "-t" if direction == "inbound" else "-T"
    wanted = ports.parse([spec], ephemeral=read_ephemeral_range(), option=option)
    if not wanted:
        raise Failure("add", f"{option} {spec}", "it names no port")
    added: list[dict[str, object]] = []
    try:
        for forward in wanted:
            try:
                added.append(client.add(description(direction, forward)))
            except Refused:
                if forward.required:
                    raise
    except BaseException:
        for port in added:
            with contextlib.suppress(Failure, Refused):
                client.remove(int(str(port["id"])), reset_flows=False)
        raise
    return added


def description(direction: Direction, forward: ports.Forward) -> dict[str, object]:
    """A port in the words of the port API."""
    return {**portapi.describe(direction, forward, "tcp"), "direction": direction}


def _status(client: Client, given: argparse.Namespace) -> None:
    answer = client.get("/v1/status")
    _tell(given, answer, lambda: show.status(answer))


def _flows(client: Client, given: argparse.Namespace) -> None:
    answer = client.get("/v1/flows")
    _tell(given, answer, lambda: show.flows(answer))


def _metrics(client: Client, given: argparse.Namespace) -> None:
    text = client.text("/metrics")
    _tell(given, show.metrics(text), text.splitlines)


def _audit(client: Client, given: argparse.Namespace) -> None:
    """The one answer that hardsplice can't give: it sees no /proc any more, so we look."""
    answer = client.get("/v1/audit")
    pid, lacking = int(answer["pid"]), list(map(str, answer["lacking"]))
    try:
        print(audit.report(pid, lacking, "json" if given.json else "table"))
    except (FileNotFoundError, ProcessLookupError):
        reason = "it is not in this PID namespace, or has ended"
        raise Failure("audit", f"process {pid}", reason) from None


def _top(client: Client, given: argparse.Namespace) -> None:
    if given.json:
        samples = top.once(client, given.interval)
        print(json.dumps([dataclasses.asdict(sample) for sample in samples], indent=2))
    else:
        top.run(client, given.interval)


COMMANDS: dict[str, Callable[[Client, argparse.Namespace], None]] = {
    "ports": _ports,
    "status": _status,
    "flows": _flows,
    "metrics": _metrics,
    "audit": _audit,
    "top": _top,
}


if __name__ == "__main__":
    sys.exit(main())
