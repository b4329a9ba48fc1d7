# SPDX-License-Identifier: GPL-2.0-or-later
"""The product with a way in for tests to its registry of ports: `Driver` on the tests' side, and,
run as a program, the launcher that puts a channel in front of it.

The launcher runs hardsplice.app.start.main with both directions' ports changeable. Its standard
input is the tests' end of a SEQPACKET pair, which the host monitor keeps and serves; nothing else
is changed, so that all that happens is under the lock-down of the product.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any


class Here:
    """Where the launcher keeps its end of the channel."""

    channel = 0


# --- the tests' side ------------------------------------------------------------------------------


class RefusedError(Exception):
    """What was asked for can't be had."""


class Driver:
    """A running product whose ports can be changed."""

    def __init__(self, instance: Any, end: socket.socket) -> None:
        self.instance = instance
        self.end = end

    def ask(self, *words: str) -> str:
        """Send a request; the answer, or RefusedError with the reason."""
        self.end.send(" ".join(words).encode())
        return self.answer()

    def answer(self) -> str:
        """The next answer."""
        kind, _, text = self.end.recv(1 << 16).decode().partition(" ")
        if kind != "ok":
            raise RefusedError(text)
        return text

    def add(self, direction: str, spec: str) -> int:
        """Forward the one port that a SPEC names; its number."""
        return int(self.ask("add", direction, spec))

    def remove(self, port: int, *, reset: bool = False) -> None:
        """Remove a port, and perhaps reset its connections."""
        self.ask("remove", str(port), "reset" if reset else "keep")

    def list(self) -> list[str]:
        """Each port as "number direction port source"."""
        return self.ask("list").splitlines()


@contextlib.contextmanager
def driven(identity: Any, *arguments: str, descriptors: int | None = None) -> Iterator[Driver]:
    """Start the product so; it ends with the test."""
    from tests.support.product import Instance, Launched
    from tests.support.stream import PATIENCE

    program = Launched(__file__)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    with contextlib.closing(program), ours:
        with theirs:
            instance = Instance(
                program,
                identity,
                list(arguments),
                stdin=theirs.fileno(),
                descriptors=descriptors,
            )
        try:
            instance.wait_ready()
            yield Driver(instance, ours)
            instance.stop()
        finally:
            instance.discard()


# --- the launcher ---------------------------------------------------------------------------------


def launch() -> int:
    """Run the product with the channel."""
    from hardsplice.app import command_line, start
    from hardsplice.ipc import descriptors
    from hardsplice.model import ports
    from hardsplice.model.direction import Direction
    from hardsplice.model.forward import Forward, Source
    from hardsplice.model.roles import RELAYS
    from hardsplice.monitor.host import HostMonitor

    started = os.getpid()
    parse_args, run = command_line.parse_args, HostMonitor.run
    reserve, keep = descriptors.reserve, descriptors.keep

    def with_ports(argv: Any) -> Any:
        return parse_args(argv)._replace(any_port=frozenset(RELAYS))

    def behind_the_fixed(first: int, ours: Sequence[int]) -> None:
        Here.channel = descriptors.above(0, first, "the tests' channel")
        reserve(first, ours)

    def with_channel(wanted: Iterable[int], first: int) -> None:
        keep((*wanted, Here.channel) if os.getpid() == started else wanted, first)

    def serve(self: HostMonitor) -> int:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=Here.channel)

        def tell(text: str) -> None:
            end.sendmsg([text.encode()], [], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

        def done(outcome: object) -> None:
            if isinstance(outcome, Exception):
                tell(f"no {outcome}; {getattr(outcome, 'hint', None) or ''}")
            else:
                tell(f"ok {outcome.id if isinstance(outcome, Forward) else ''}")

        def on_request() -> None:
            words = end.recvmsg(1 << 16)[0].decode().split()
            if words:
                requests[words[0]](*words[1:])
            else:
                self.loop.remove(Here.channel)

        def add(direction: str, spec: str) -> None:
            assert self.ports is not None
            (one,) = ports.parse([spec], Direction(direction), ephemeral=(32768, 60999))
            self.ports.add(one._replace(source=Source.CONTROL), done)

        def remove(number: str, how: str) -> None:
            assert self.ports is not None
            self.ports.remove(int(number), reset_flows=how == "reset", done=done)

        def list_all() -> None:
            assert self.ports is not None
            rows = (
                f"{one.id} {one.direction} {one.port} {one.source.value}"
                for one in self.ports.list()
            )
            tell("ok " + "\n".join(rows))

        requests: dict[str, Callable[..., None]] = {"add": add, "remove": remove, "list": list_all}
        self.loop.add(Here.channel, on_request)
        return run(self)

    vars(command_line)["parse_args"] = with_ports
    descriptors.reserve, descriptors.keep = behind_the_fixed, with_channel
    HostMonitor.run = serve  # type: ignore[method-assign]
    return start.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(launch())
