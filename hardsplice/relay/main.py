# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay's life: from the fork out of a monitor that has locked itself down, to its own filter, to
the loop.

It never returns to its caller. Errors go to the monitor as records, in words formed from what is
loaded already, and the process leaves by os._exit: the interpreter's own way out would import
modules and open files.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import NoReturn

import prctl

from hardsplice import isolate, seal
from hardsplice.channel import Channel, Kind, Malformed, Note, Record, close_all
from hardsplice.errors import Failure
from hardsplice.relay.engine import Engine, Listener
from hardsplice.relay.kernel import Kernel
from hardsplice.relay.pipes import POOL_SIZE as PIPES
from hardsplice.relay.pipes import PipePool
from hardsplice.relay.sockets import IPV4, IPV6, SocketPool
from hardsplice.relay.sockets import POOL_SIZE as SOCKETS
from hardsplice.relay.stats import Stats
from hardsplice.relay.table import Limits, Resources

NOTE_SECONDS = 1.0  # between two notes of one kind
FLOWS_MIN = 4  # with fewer descriptors than these need, a relay is of no use


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a relay is told, by inheritance."""

    direction: str  # "inbound" or "outbound"
    listeners: tuple[Listener, ...]
    families: tuple[int, ...]  # of the targets, as indexes into sockets.FAMILIES
    pipe_size: int  # bytes
    filter: bytes  # the relay's seccomp program
    stats: Stats
    trace: bool  # whether the monitor wants to hear of every flow
    has_ruleset: bool  # whether there is a Landlock ruleset at isolate.RULESET_FD
    strict: bool


class ToMonitor:
    """The engine's way to its monitor: records on the channel, never waiting."""

    def __init__(self, channel: Channel, kernel: Kernel) -> None:
        self.channel = channel
        self.kernel = kernel
        self.last: dict[Note, float] = {}

    def ask_sockets(self, family: int, number: int) -> bool:
        """Ask for sockets of one family."""
        return self.channel.send(Record(Kind.ASK, family, detail=number), wait=False)

    def note(self, kind: Note, detail: int, listener: int = 0, text: str = "") -> None:
        """Report something; of each kind once in NOTE_SECONDS, the counters have them all."""
        now = self.kernel.now()
        if now - self.last.get(kind, -NOTE_SECONDS) < NOTE_SECONDS:
            return
        self.last[kind] = now
        self.trace(kind, listener, detail, text)

    def trace(self, kind: Note, listener: int, detail: int = 0, text: str = "") -> None:
        """Report something each time, as far as the channel takes it."""
        self.channel.send(Record(Kind.NOTE, kind, listener, detail, text.encode()), wait=False)


def fixed_use(listeners: Sized) -> int:
    """Descriptors that a relay holds even without flows: the fixed ones, listeners, epoll."""
    return len(isolate.FIXED_FDS) + len(listeners) + 1


def pool_sizes(descriptors: int, other: int) -> tuple[int, int]:
    """Sockets of each family, and clean pipes, to keep ready with this many descriptors in all.

    Failure when what is left would not serve even FLOWS_MIN flows.
    """
    free = descriptors - other
    if free < Limits(descriptors).reserve + 2 * 2 + 2 * 2 + 2 * FLOWS_MIN:
        hint = "raise the limit with ulimit -n, or forward fewer ports"
        raise Failure("run", "a relay", f"{descriptors} descriptors are too few", hint)
    share = max(2, free // 12)
    return min(SOCKETS, share), min(PIPES, share)


def main(plan: Plan, channel: Channel, monitor: int) -> NoReturn:
    """Become the relay. ``monitor`` is the process that forked us, and we end with it."""
    try:
        os._exit(_live(plan, channel, monitor))
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        text = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        _tell(channel, text)
        os._exit(1)


def _tell(channel: Channel, text: str) -> None:
    """The last words. That nobody is left to hear them changes nothing."""
    with contextlib.suppress(Exception):
        channel.send(Record(Kind.FATAL, text=text.encode(errors="replace")), wait=False)


def _live(plan: Plan, channel: Channel, monitor: int) -> int:
    channel.move_to(isolate.CHANNEL_FD)
    os.dup2(0, isolate.LOG_FD)  # 0 is /dev/null in every monitor
    keep = (*isolate.FIXED_FDS, isolate.RULESET_FD, *(one.fd for one in plan.listeners))
    isolate.keep_descriptors(keep)
    prctl.set_name("hs-relay-in" if plan.direction == "inbound" else "hs-relay-out")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if plan.direction == "outbound":
        os.setsid()  # away from the terminal that the host monitor still has

    kernel = Kernel()
    other = fixed_use(plan.listeners)
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    sockets, spare = pool_sizes(descriptors, other)
    pipes = PipePool(kernel, plan.pipe_size, spare)
    pipes.fill()
    resources = Resources(
        kernel=kernel,
        monitor=ToMonitor(channel, kernel),
        limits=Limits(descriptors),
        pipes=pipes,
        pools=(SocketPool(IPV4, sockets), SocketPool(IPV6, sockets)),
        families=plan.families,
        counters=plan.stats.count,
        other_descriptors=other,
        trace=plan.trace,
    )
    engine = Engine(resources, plan.listeners)
    engine.epoll.register(isolate.CHANNEL_FD, 1)

    def on_channel() -> None:
        _serve_channel(channel, engine)

    isolate.die_with(monitor)
    lockdown = isolate.Lockdown(strict=plan.strict, say=_say_nothing)
    lockdown.run(isolate.relay_steps(isolate.RULESET_FD if plan.has_ruleset else None))
    os.close(isolate.RULESET_FD)
    lockdown.run([isolate.filter_step(plan.filter)])
    seal.seal(lambda what: _tell(channel, what))
    channel.send(Record(Kind.READY))
    engine.start()
    engine.run({isolate.CHANNEL_FD: on_channel})
    return 0


def _say_nothing(_: str) -> None:
    """A relay has nobody to tell what it gives up."""


def _serve_channel(channel: Channel, engine: Engine) -> None:
    try:
        record = channel.receive(wait=False)
    except BlockingIOError:
        return
    except Malformed:
        os._exit(1)
    if record is None:
        os._exit(0)  # the monitor hung up: that is how a relay is told to leave
    if record.kind == Kind.SOCKETS and record.small in engine.families:
        engine.add_sockets(record.small, record.fds)
    else:
        _refuse(record.fds)


def _refuse(fds: Sequence[int]) -> None:
    close_all(fds)
    os._exit(1)
