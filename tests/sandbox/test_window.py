# SPDX-License-Identifier: GPL-2.0-or-later
"""The joining window: whoever is root in the namespace that is served, and sees the host's process
numbers, gets hold of no process of hardsplice at any moment of its set-up.

The product is held at a moment (`HOLD`), and attacked by a process that is root there (`ATTACK`).
The unfixed row leaves out what protects it, and then the same attack succeeds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# Stops the process that is called so, at a moment of its life; "unfixed" also leaves out the
# protection.
HOLD = """
import os, signal, sys
moment, how = sys.argv[1:3]
del sys.argv[1:3]
from hardsplice.kernel import prctl
from hardsplice.ipc import descriptors
from hardsplice.sandbox import empty_root
from hardsplice.sandbox import steps
from hardsplice.net import joining
from hardsplice.kernel import linux
from hardsplice.net import listeners
from hardsplice.net import namespaces
from hardsplice.monitor import namespace
from hardsplice.app.start import main
here = []  # something in the namespace monitor, and in nobody else
live = namespace.main
def noted(*arguments):
    here.append(True)
    live(*arguments)
namespace.main = noted
def hold(name):
    if name == moment and here:
        here.clear()  # once
        os.kill(os.getpid(), signal.SIGSTOP)
def around(owner, name, before=None, after=None):
    original = getattr(owner, name)
    def held(*arguments, **named):
        hold(before)
        result = original(*arguments, **named)
        hold(after)
        return result
    setattr(owner, name, held)
setns = linux.setns
def joined(fd, kind):
    hold("before user" if kind == linux.CLONE_NEWUSER else "before network")
    setns(fd, kind)
    hold("user" if kind == linux.CLONE_NEWUSER else "network")
linux.setns = joined
around(empty_root, "enter", after="root")
around(listeners, "open_listeners", after="bound")
around(steps, "rights_steps", before="rights")
around(steps, "filter_step", before="filter")
if how == "unfixed":
    prctl.set_dumpable = lambda value: None
    descriptors.keep = lambda wanted, first: None
    joining.needs_empty_root = lambda target: False
    def join(target, *_):
        namespaces.join_user(target)
        namespaces.join_network(target)
    joining.join = join
sys.exit(main(sys.argv[1:]))
"""

# What root in a namespace can try on a process; prints what it got.
ATTACK = r"""
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
def seize(pid):
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    return libc.ptrace(PTRACE_SEIZE, pid, None, None) == 0
def reading(name):
    def read(pid):
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
        return os.close(fd) is None
    return read
def listing(name):
    return lambda pid: os.listdir(f"/proc/{pid}/{name}") is not None
def peek(pid):
    class Part(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))
    here = ctypes.create_string_buffer(8)
    ours, theirs = Part(ctypes.addressof(here), 8), Part(4096, 8)
    done = libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    return done >= 0 or ctypes.get_errno() == errno.EFAULT  # asked for after rights are
def take(pid):
    fd = libc.syscall(438, os.pidfd_open(pid), 3, 0)  # pidfd_getfd
    return fd >= 0 or ctypes.get_errno() == errno.EBADF
TRIES = {"root": listing("root"), "fd": reading("fd/0"), "mem": reading("mem"),
         "environ": reading("environ"), "maps": reading("maps"), "peek": peek, "take": take,
         "seize": seize}
def attack(pid):
    got = []
    for name, attempt in TRIES.items():
        try:
            if attempt(pid):
                got.append(name)
        except OSError:
            pass
    return got
if sys.argv[1] == "once":
    print(json.dumps([attack(int(pid)) for pid in sys.argv[2:]]))
else:  # everything below a process, again and again, until that one is gone
    root, tries, got = int(sys.argv[2]), 0, []
    print("+", flush=True)
    def below(pid):
        found = [pid]
        for one in found:
            try:
                with open(f"/proc/{one}/task/{one}/children") as children:
                    found += map(int, children.read().split())
            except OSError:
                pass
        return found[1:]
    while os.path.exists(f"/proc/{root}") and not os.path.exists(sys.argv[3]):
        for pid in below(root):
            tries += 1
            try:
                if peek(pid) or seize(pid):
                    got.append(pid)
            except OSError:
                pass
    print(json.dumps([tries, got]))
"""


@dataclass(frozen=True)
class Case:
    """Who starts hardsplice, and who made the namespace, with a user namespace of its own."""

    starter: Identity
    owner: Identity


@pytest.fixture(params=["user", "root for a user", "root for a root"])
def case(request: pytest.FixtureRequest) -> Case:
    from tests.conftest import identity_named

    who, _, whose = str(request.param).partition(" for a ")
    return Case(identity_named(who), identity_named(whose or who))


@pytest.fixture
def inside(case: Case) -> Iterator[Namespace]:
    with Namespace(case.owner, new_user=True) as made:
        yield made


class Held(Program):
    """The product, to be held at a moment."""

    def __init__(self, moment: str, how: str) -> None:
        super().__init__()
        self.words = ["-c", HOLD, moment, how]

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        return [*argv[: argv.index("-m")], *self.words], environment


def both_ways(port: int) -> list[str]:
    return ["-t", f"127.0.0.1/{port}:80", "-T", f"127.0.0.1/81:{port}"]


def command(case: Case, inside: Namespace, *words: str) -> list[str]:
    """A command line that makes ATTACK as root in the namespace, with the host's /proc in view."""
    enter = ["nsenter", "--user", "--preserve-credentials", "-t", str(inside.pid)]
    return case.owner.wrap([*enter, "/usr/bin/python3", "-I", "-c", ATTACK, *words])


def attack(case: Case, inside: Namespace, pid: int) -> list[str]:
    """What an attack on a process comes to."""
    done = subprocess.run(
        command(case, inside, "once", str(pid)),
        capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    (got,) = json.loads(done.stdout)
    return list(got)


@contextlib.contextmanager
def held(
    case: Case, inside: Namespace, moment: str, how: str = "fixed"
) -> Iterator[tuple[Instance, int]]:
    """A hardsplice with a process that stopped at that moment, and this one; it goes on after."""
    port = free_ports()
    arguments = ["-f", *both_ways(port), str(inside.pid)]
    program = Held(moment, how)
    with contextlib.closing(program), contextlib.ExitStack() as stack:
        instance = Instance(program, case.starter, arguments)
        stack.callback(instance.discard)

        def stopped() -> list[int]:
            assert instance.process.poll() is None, instance.messages()
            return [pid for pid in instance.processes()[1:] if procfs.stat(pid)[0] == "T"]

        eventually(stopped, lambda: f"nothing stops; {instance.messages()}")
        (pid,) = stopped()
        yield instance, pid
        if how == "fixed":
            os.kill(pid, signal.SIGCONT)
            instance.wait_ready()
            instance.stop()


MOMENTS = {
    "user": (
        "before user",
        "user",
        "root",
        "before network",
        "network",
        "bound",
        "rights",
        "filter",
    ),
    "root": ("before network", "network", "bound", "rights", "filter"),
}


@pytest.mark.parametrize("moment", MOMENTS["user"])
def test_nothing_is_to_be_had_of_a_process_that_joins(
    moment: str, case: Case, inside: Namespace
) -> None:
    if case.starter.is_root and moment not in MOMENTS["root"]:
        pytest.skip("root's namespace monitor never enters the user namespace")
    with held(case, inside, moment) as (_, pid):
        assert attack(case, inside, pid) == []


def test_nor_of_those_that_serve_and_of_those_that_take_their_place(
    case: Case, inside: Namespace, program: Program
) -> None:
    port = free_ports()
    arguments = ["-f", *both_ways(port), str(inside.pid)]
    instance = Instance(program, case.starter, arguments)
    try:
        instance.wait_ready()
        before = instance.processes()
        (relay,) = [pid for pid in before if procfs.status(pid)["Name"] == "hs-relay-in"]
        os.kill(relay, signal.SIGKILL)
        eventually(lambda: len({*instance.processes()} - {relay}) == 4, "the relay stays away")
        for pid in instance.processes():
            assert attack(case, inside, pid) == [], procfs.status(pid)["Name"]
        instance.stop()
    finally:
        instance.discard()


def test_without_protection_everything_is(case: Case, inside: Namespace) -> None:
    """The unfixed row: a process that may be traced, in a user namespace of the attacker's."""
    if case.starter.is_root and not case.owner.is_root:
        pytest.skip("a change of credentials makes it undumpable, where fs.suid_dumpable is not 1")
    with held(case, inside, "network", "unfixed") as (_, pid):
        got = attack(case, inside, pid)
    assert {"root", "fd", "mem", "environ", "maps", "peek", "take", "seize"} == set(got)


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
@pytest.mark.parametrize("moment", MOMENTS["user"])
def test_what_it_has_and_sees_then(moment: str, case: Case, inside: Namespace) -> None:
    """Nothing of the host's, but the listeners that it is there to serve."""
    if case.starter.is_root and moment not in MOMENTS["root"]:
        pytest.skip("root's namespace monitor never enters the user namespace")
    with held(case, inside, moment) as (_, pid):
        served = ("/dev/null", "socket:", "pipe:", "net:[", "anon_inode:[landlock-ruleset]")
        entrance = () if case.starter.is_root else ("user:[", "/")  # and the empty root
        for what in procfs.descriptors(pid).values():
            assert what.startswith((*served, *entrance[:1])) or what in entrance[1:]
        status = procfs.status(pid)
        assert status["NoNewPrivs"] == "1"
        assert procfs.stat(pid)[3] == str(pid), "a session of its own"
        if moment not in ("before user", "user"):
            assert os.listdir(f"/proc/{pid}/root") == []
        assert os.listdir(f"/proc/{pid}/cwd") == []
        is_in = procfs.namespace(pid, "user") == procfs.namespace(inside.pid, "user")
        assert is_in == (not case.starter.is_root and moment != "before user")


def test_nor_in_a_race(case: Case, inside: Namespace, program: Program) -> None:
    """Attacked again and again from before its start until it is ready."""
    port = free_ports()
    done = f"/tmp/hardsplice-test-window-{os.getpid()}"
    tries = 0
    for _ in range(5):
        attacker = subprocess.Popen(
            command(case, inside, "race", str(os.getpid()), done),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == "+\n"
            instance = Instance(
                program,
                case.starter,
                ["-f", "-t", f"127.0.0.1/{port}:80", str(inside.pid)],
            )
            with contextlib.closing(contextlib.ExitStack()) as stack:
                stack.callback(instance.discard)
                instance.wait_ready()
                family = instance.processes()
                with open(done, "x", encoding="ascii"):
                    number, got = json.loads(attacker.communicate(timeout=PATIENCE)[0])
                tries += number
                assert not set(got) & set(family)
                instance.stop()
        finally:
            attacker.kill()
            attacker.wait(PATIENCE)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(done)
    assert tries > 100
