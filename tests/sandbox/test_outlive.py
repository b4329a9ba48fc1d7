# SPDX-License-Identifier: GPL-2.0-or-later
"""No process of hardsplice outlives the one that was started, whatever state it is in: stopped, or
hostile and deaf to its channel. Within a second all are gone, and so are their ports, on a machine
that isn't busy with other things.

The unfixed row leaves out what ends them against their will, and shows that they would stay.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial

import pytest

from hardsplice.monitor import host, supervisor
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, can_bind, free_ports
from tests.support.stream import eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

WITHIN = 2.0  # seconds from the first process's signal to the last one's end, on a busy machine
ROLES = ("hs-host", "hs-namespace", "hs-relay-in", "hs-relay-out", "hs-udp-in", "hs-udp-out")


@pytest.fixture(params=["root", "user", "root for a user"])
def pair(request: pytest.FixtureRequest) -> tuple[Identity, Identity]:
    """Who starts hardsplice, and who owns the namespace."""
    from tests.conftest import identity_named

    who, _, whose = str(request.param).partition(" for a ")
    return identity_named(who), identity_named(whose or who)


@pytest.fixture
def of_both(pair: tuple[Identity, Identity]) -> Iterator[Namespace]:
    with Namespace(pair[1]) as made:
        yield made


class Tree:
    """A running hardsplice, each of its processes held by a pidfd; one that a hostile one forks
    may come later, or be gone by then.
    """

    def __init__(self, instance: Instance, port: int) -> None:
        self.instance, self.port = instance, port
        self.pidfds = procfs.each(os.pidfd_open, instance.processes())
        self.names = procfs.each(lambda pid: procfs.status(pid)["Name"], self.pidfds)
        for pid in self.pidfds.keys() - self.names.keys():
            os.close(self.pidfds.pop(pid))

    def stop(self, role: str) -> None:
        """Have the kernel stop the processes of a role, and see that it has."""
        for pid in [pid for pid, name in self.names.items() if name == role]:
            os.kill(pid, signal.SIGSTOP)
            eventually(partial(self._is_stopped, pid), f"{role} does not stop")

    @staticmethod
    def _is_stopped(pid: int) -> bool:
        return procfs.stat(pid)[0] == "T"

    def left(self, within: float) -> set[str]:
        """Which processes are there after so many seconds; as soon as there are none, that."""
        deadline = time.monotonic() + within
        waiting = {fd: self.names[pid] for pid, fd in self.pidfds.items()}
        while waiting and (left := deadline - time.monotonic()) > 0:
            ended, _, _ = select.select(list(waiting), [], [], left)
            for fd in ended:
                del waiting[fd]
        return set(waiting.values())

    def ends(self) -> None:
        """Fails unless all are gone in time, and the ports are free."""
        began = time.monotonic()
        assert self.left(WITHIN) == set()
        left = max(0.0, began + WITHIN - time.monotonic())
        eventually(self.is_free, "somebody listens", within=left)

    def is_free(self) -> bool:
        """Whether nobody has the host's ports, that of TCP and that of UDP."""
        return can_bind("127.0.0.1", self.port) and self.is_free_of_udp()

    def is_free_of_udp(self) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                return False
        return True

    def close(self) -> None:
        for fd in self.pidfds.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)


@contextlib.contextmanager
def running(
    program: Program, identity: Identity, namespace: Namespace, *more: str
) -> Iterator[Tree]:
    """Both directions of both protocols, and so a process in each role."""
    port = free_ports()
    inbound, outbound = f"127.0.0.1/{port}:80", f"127.0.0.1/81:{port}"
    both = ["-t", inbound, "-T", outbound, "-u", inbound, "-U", outbound]
    instance = Instance(program, identity, ["-f", *both, *more, str(namespace.pid)])
    with contextlib.ExitStack() as stack:
        stack.callback(instance.discard)
        instance.wait_ready()
        tree = Tree(instance, port)
        stack.callback(tree.close)
        assert set(tree.names.values()) == set(ROLES)
        yield tree


def test_what_has_to_end_has_less_than_a_second() -> None:
    """A relay that does not leave is ended before its monitor is, and that before the second."""
    assert supervisor.STOP_SECONDS < host.END_SECONDS < 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("role", ROLES)
def test_a_stopped_process_ends_with_the_first_one(
    role: str,
    number: signal.Signals,
    pair: tuple[Identity, Identity],
    of_both: Namespace,
    program: Program,
) -> None:
    if (role, number) == ("hs-host", signal.SIGTERM):
        pytest.skip("a stopped process hears SIGTERM when it goes on: that is the kernel's rule")
    with running(program, pair[0], of_both) as tree:
        tree.stop(role)
        os.kill(tree.instance.pid, number)
        tree.ends()


def test_all_at_once(pair: tuple[Identity, Identity], of_both: Namespace, program: Program) -> None:
    """Each process but the first stopped."""
    with running(program, pair[0], of_both) as tree:
        for role in ROLES[1:]:
            tree.stop(role)
        os.kill(tree.instance.pid, signal.SIGTERM)
        tree.ends()


# A namespace monitor that has closed its ears: it takes no notice of its channel, and makes its
# relay do so. With "free", nothing that the kernel would do to it is in force either.
DEAF = """
import os, select, signal, sys
how = sys.argv.pop(1)
from hardsplice.ipc import descriptors
from hardsplice.sandbox import steps
from hardsplice.ipc import lifeline
from hardsplice.kernel import linux
from hardsplice.monitor import namespace
from hardsplice.app.start import main
def deaf(self):
    self.groups.start()
    self.loop.run()
namespace.NamespaceMonitor.run = deaf
def attempt(act):
    pid = linux.fork()
    if pid == 0:
        act()
        os._exit(0)
    if os.waitpid(pid, 0)[1] != signal.SIGSYS:
        act()
def slip(self):
    attempt(lambda: os.close(descriptors.LIFELINE_FD))
    attempt(lambda: linux.prctl(1, 0))  # PR_SET_PDEATHSIG: none any more
    deaf(self)
def fork(self):
    if linux.fork() == 0:
        attempt(os.setsid)
        attempt(lambda: os.dup2(0, descriptors.LIFELINE_FD, inheritable=False))
        self.loop.run()
    deaf(self)
if how == "slippery":
    namespace.NamespaceMonitor.run = slip
if how in ("forking", "free to fork"):
    namespace.NamespaceMonitor.run = fork
if how == "free to fork":
    lifeline.hang_on = lambda fd, group=False, hang_on=lifeline.hang_on: hang_on(fd)
if how == "free":
    steps.die_with = lambda parent: None
    lifeline.hang_on = lambda fd, group=False: None
sys.exit(main(sys.argv[1:]))
"""


class Deaf(Program):
    """The product with a namespace monitor that is deaf."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        return [*argv[: argv.index("-m")], "-c", DEAF, self.how], environment


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("how", ["deaf", "slippery", "forking"])
def test_a_hostile_namespace_monitor_ends_with_the_first_process(
    how: str, number: signal.Signals, pair: tuple[Identity, Identity], of_both: Namespace
) -> None:
    """Also one that lets go of its line, and tries to be spared what else would end it."""
    program = Deaf(how)
    with contextlib.closing(program), running(program, pair[0], of_both) as tree:
        os.kill(tree.instance.pid, number)
        tree.ends()


@pytest.mark.parametrize("how", ["free", "free to fork"])
def test_without_what_ends_it_it_would_stay(
    how: str, pair: tuple[Identity, Identity], of_both: Namespace
) -> None:
    """The unfixed rows."""
    program = Deaf(how)
    with contextlib.closing(program), running(program, pair[0], of_both) as tree:
        os.kill(tree.instance.pid, signal.SIGKILL)
        assert "hs-namespace" in tree.left(WITHIN)
        assert not can_bind("127.0.0.1", tree.port)
        assert not tree.is_free_of_udp()
