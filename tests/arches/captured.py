# SPDX-License-Identifier: GPL-2.0-or-later
"""The attempts of attempts.py, by relays of the real product, and without the sandbox.

Run as a program, this module is hardsplice, but that its namespace monitor forks a relay for each
attempt before the one that serves. It goes the way of every relay, to its filter, and then makes
the attempt. What came of that, as wait(2) has it, lies in a file that everybody mapped before.

Without the sandbox the attempt is made by a process that has opened such a book, unsealed, and a
listener and a socket of its own. There it must succeed, or else nothing would be shown.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hardsplice.app.start import main
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.child import Child
from hardsplice.ipc.descriptors import FIRST_LISTENER
from hardsplice.ipc.messages import Kind, Record
from hardsplice.kernel import linux, socketcalls
from hardsplice.model.roles import HOST, OUTBOUND_RELAY
from hardsplice.monitor import supervisor, supply
from hardsplice.relay import main as relay
from hardsplice.sandbox.address_book import Book, area_for
from tests.arches import numbers
from tests.arches.attempts import (
    ADDRESS,
    NOT_MADE,
    PORT,
    SEALED,
    SEALED_AGAINST,
    WORKS,
    Attempt,
    Scene,
    attempts,
    is_sealed,
)
from tests.arches.endtoend import Namespace
from tests.arches.instance import PATIENCE, Instance
from tests.arches.tap import SkipCheck, Writer

# What checks are called
FORBIDDEN, SEAL = "forbidden: to a relay: ", "forbidden: what mseal is against"
_BOARD = "/tmp/relay-attempts"  # of the guest
_ARCH = "TESTS_ARCH"  # the environment variable that says which architecture this is
_STATUS = struct.Struct("=i")


# --- by relays: hardsplice's side -----------------------------------------------------------------


class _Here:
    """What this process is for. Each fork has its own, as it has all else."""

    attempt: Attempt | None = None
    scene: Scene | None = None


_set_seccomp_filter, _start = linux.set_seccomp_filter, supervisor.Supervisor.start


def _install(program: bytes) -> None:
    """In the place of linux.set_seccomp_filter, every role's last step."""
    _set_seccomp_filter(program)
    if _Here.attempt is not None and _Here.scene is not None:
        _Here.attempt.make(_Here.scene)


def _start_relays(
    table: Sequence[Attempt], known: dict[str, int], board: mmap.mmap
) -> Callable[[supervisor.Supervisor], None]:
    """In the place of Supervisor.start: first a relay for each attempt, then the real one."""

    def start(self: supervisor.Supervisor) -> None:
        for index, attempt in enumerate(table):
            ours, theirs = Channel.pair(HOST.name, OUTBOUND_RELAY.name)
            monitor = os.getpid()
            with self.plan.stats.shared():
                pid = linux.fork()
            if pid == 0:
                _Here.attempt, _Here.scene = attempt, _scene(self.plan, theirs, known)
                relay.main(self.plan, theirs, monitor)
            theirs.close()
            fd = supply.open_socket(0)
            ours.send(Record(Kind.SOCKETS, 0, fds=(fd,)), wait=False)
            os.close(fd)
            child = Child(pid, ours)
            _STATUS.pack_into(board, index * _STATUS.size, child.end(PATIENCE))
            child.forget()
        _start(self)

    return start


def _scene(plan: relay.Plan, channel: Channel, known: dict[str, int]) -> Scene:
    def pooled() -> int:
        record = channel.receive()
        assert record is not None
        return record.fds[0]

    listener = plan.listeners[0]
    slot = listener.route_ipv4[0].where.value
    assert slot is not None
    return Scene(known, plan.book, listener.fd, slot, pooled)


def _hardsplice() -> int:
    """Be hardsplice, with relays that make attempts."""
    arch = os.environ[_ARCH]
    with open(_BOARD, "r+b") as file:
        board = mmap.mmap(file.fileno(), 0)
    linux.set_seccomp_filter = _install
    start = _start_relays(attempts(arch), numbers.of(arch), board)
    supervisor.Supervisor.start = start  # type: ignore[method-assign,assignment]
    return main(sys.argv[1:])


# --- by relays: the tests' side -------------------------------------------------------------------


def _by_relays(arch: str) -> list[int]:
    """What came of each attempt."""
    with open(_BOARD, "wb") as file:
        file.write(_STATUS.pack(NOT_MADE << 8) * len(attempts(arch)))
    os.environ[_ARCH] = arch
    inside = Namespace()
    with inside.socket(socket.AF_INET) as server:
        server.bind((str(ADDRESS), PORT))
        server.listen()
        ports = ("-t", f"19100:{PORT}")
        instance = Instance(*ports, str(inside.pid), module="tests.arches.captured")
        try:
            instance.wait_ready()
            instance.process.terminate()
        finally:
            instance.end(0)
            inside.close()
    with open(_BOARD, "rb") as file:
        return [status for (status,) in _STATUS.iter_unpack(file.read())]


# --- without the sandbox --------------------------------------------------------------------------


def _bare(attempt: Attempt, arch: str, *, sealed: bool) -> int:
    """What comes of an attempt with nothing in its way, unless the book is ``sealed``."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(Exception):
            attempt.make(_bare_scene(arch, sealed=sealed))
        os._exit(NOT_MADE)
    return os.waitpid(pid, 0)[1]


def _bare_scene(arch: str, *, sealed: bool) -> Scene:
    place = area_for(1, arch)
    if not sealed:
        linux.mseal = _lacking  # type: ignore[assignment]
    book = Book(place, [socketcalls.sockaddr(ADDRESS, PORT)], 0, is_written=False)
    assert (book.open() is None) == sealed
    with socket.create_server((str(ADDRESS), PORT)) as server:
        os.dup2(server.fileno(), FIRST_LISTENER)
    return Scene(
        numbers.of(arch), place, FIRST_LISTENER, place.address, lambda: supply.open_socket(0)
    )


def _lacking(*_: Any) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


# --- judging --------------------------------------------------------------------------------------


def _told(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return signal.Signals(-code).name
    if code in (0, errno.EINPROGRESS):
        return WORKS
    return "not made" if code == NOT_MADE else errno.errorcode.get(code, str(code))


def _judge(attempt: Attempt, arch: str, by_relay: int) -> None:
    found = _told(by_relay)
    assert found == attempt.locked, f"by a relay: {found} instead of {attempt.locked}"
    found = _told(_bare(attempt, arch, sealed=False))
    if attempt.bare:
        assert found == WORKS, f"without the sandbox: {found}"
    else:
        assert found.startswith("E"), f"without the sandbox: {found} instead of an error"


def _judge_seal(arch: str) -> None:
    """mseal(2) is in force where the kernel has it: from Linux 6.10 on, where it is for 64 bits."""
    machine = os.uname()
    version = tuple(map(int, machine.release.split("-")[0].split("+")[0].split(".")[:2]))
    wanted = version >= (6, 10) and machine.machine not in ("i686", "armv7l")
    assert is_sealed() == wanted, f"mseal is {'not ' * wanted}there on {machine.release}"
    if not wanted:
        raise SkipCheck(f"Linux {machine.release} has no mseal")
    for attempt in attempts(arch):
        if attempt.name in SEALED_AGAINST:
            found = _told(_bare(attempt, arch, sealed=True))
            assert found == SEALED, f"{attempt.name}: {found} without a filter"


def run(report: Writer, arch: str) -> None:
    """Try everything."""
    table = attempts(arch)
    results = [NOT_MADE << 8] * len(table)

    def by_relays() -> None:
        results[:] = _by_relays(arch)

    report.check("relays that make attempts", by_relays)
    for attempt, status in zip(table, results, strict=True):
        check = functools.partial(_judge, attempt, arch, status)
        report.check(f"{FORBIDDEN}{attempt.name}", check)
    report.check(SEAL, lambda: _judge_seal(arch))


if __name__ == "__main__":
    sys.exit(_hardsplice())
