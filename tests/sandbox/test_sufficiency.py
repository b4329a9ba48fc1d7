# SPDX-License-Identifier: GPL-2.0-or-later
"""No rule is missing: whatever befalls a process at lock-down, it is never SIGSYS that ends it.

The smoke run (smoke.py), with every allocator that CPython has and every Python of this machine;
and accidents, signals and heavy use of memory in each role.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from hardsplice.ipc.descriptors import (
    CHANNEL_FD,
    LIFELINE_FD,
    LOG_FD,
    READY_FD,
    SIGNALS_FD,
    first_flow,
)
from tests.sandbox import interpreters
from tests.sandbox.captured import Captured, end, folder_for
from tests.sandbox.job import VARIABLE, Board, Job
from tests.sandbox.smoke import Smoke, is_locked
from tests.sandbox.test_channel import Running, running
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance
from tests.support.stream import eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
VERSIONS = ("3.11", "3.12", "3.13", "3.14")


@pytest.fixture(scope="module")
def captured() -> Iterator[Captured]:
    program = Captured()
    yield program
    program.close()


def somebody() -> Identity:
    """Whoever runs the tests."""
    return Identity("root" if os.geteuid() == 0 else "user")


# --- the smoke run --------------------------------------------------------------------------------


def everyday(number: int, allocator: str) -> bool:
    """Whether a combination is tried each time: one for each version."""
    return allocator == ("malloc", "debug")[number % 2]


@pytest.mark.parametrize(
    ("version", "allocator"),
    [
        pytest.param(
            version, allocator, marks=() if everyday(number, allocator) else pytest.mark.soak
        )
        for number, version in enumerate(VERSIONS)
        for allocator in ("malloc", "debug", "pymalloc")
    ],
)
def test_the_smoke_run(captured: Captured, version: str, allocator: str) -> None:
    path = interpreters.found(str(captured.stage())).get(version)
    if path is None:
        pytest.skip(f"no Python {version} here; {interpreters.VARIABLE} can name one")
    program = Captured(path)
    with (
        contextlib.closing(program),
        Namespace(somebody()) as namespace,
        folder_for(somebody()) as folder,
    ):
        smoke = Smoke(program, somebody(), namespace, folder, {"PYTHONMALLOC": allocator})
        board, file = program.board()
        with contextlib.closing(board):
            smoke.serve(
                Job(board=file, role="relay-out", action="use memory"),
                lambda instance: use_memory(board, namespace),
            )
            smoke.command(Job(board=file))


def use_memory(board: Board, namespace: Namespace) -> None:
    """Have the outbound relay use a lot of memory."""
    board.go = True
    with namespace.socket(socket.AF_INET) as client:
        client.connect(("127.0.0.1", 82))
        told = eventually(lambda: board.text, "it did not act", within=5)
    assert told == "imported: "


@pytest.mark.parametrize("allocator", ["pymalloc", "malloc"])
@pytest.mark.parametrize("role", ["relay-in", "udp-in", "namespace", "host"])
def test_memory_and_imports(
    captured: Captured, monkeypatch: pytest.MonkeyPatch, role: str, allocator: str
) -> None:
    """Memory comes and goes in every role, errors are put into words, and no module is imported
    for it.
    """
    monkeypatch.setenv("PYTHONMALLOC", allocator)
    with running(captured, somebody(), role, "use memory", udp=True) as product:
        family = product.instance.processes()
        product.go()
        assert product.board.text == "imported: "
        assert product.instance.processes() == family
        product.instance.stop()


# --- accidents ------------------------------------------------------------------------------------

_NAMES = {
    "unforeseen": "ZeroDivisionError",
    "memory": "Cannot allocate memory",
    "recursion": "RecursionError",
}


def go_quietly(product: Running) -> None:
    """Say the word to a process that does not tell what it did."""
    product.board.go = True

    def acted() -> bool:
        product.poke()
        return not product.board.go

    eventually(acted, "it did not act", within=3)


@pytest.mark.parametrize("accident", _NAMES)
@pytest.mark.parametrize("role", ["relay-in", "udp-in"])
def test_an_error_in_a_relay(captured: Captured, role: str, accident: str) -> None:
    """It is named, and another relay takes over."""
    with running(captured, somebody(), role, accident) as product:
        go_quietly(product)
        instance = product.instance
        eventually(lambda: "started again" in instance.messages(), "no word of it", within=3)
        assert _NAMES[accident] in instance.messages()
        assert "SIGSYS" not in instance.messages()
        product.exchange()
        if role == "udp-in":
            product.exchange_datagrams()
        instance.stop()


@pytest.mark.parametrize("accident", _NAMES)
@pytest.mark.parametrize("role", ["namespace", "host"])
def test_an_error_in_a_monitor(captured: Captured, role: str, accident: str) -> None:
    """One line, status 1, and nothing is left."""
    with running(captured, somebody(), role, accident) as product:
        family = product.instance.processes()
        go_quietly(product)
        assert product.instance.wait(3) == 1
        lines = product.instance.messages().splitlines()
        said = [line for line in lines if line.startswith("hardsplice: cannot ")]
        assert len(said) == 1
        assert _NAMES[accident] in said[0]
        eventually(lambda: not any(map(procfs.alive, family)), "processes remain", within=3)


@pytest.mark.parametrize("accident", _NAMES)
def test_an_error_in_pid_1(captured: Captured, accident: str) -> None:
    board, path = captured.board()
    board.go = True
    job = Job(board=path, role="init", action=accident)
    instance = Instance(
        captured, somebody(), ["-f", "--", "sleep", "1000"], environment={VARIABLE: job.dump()}
    )
    with contextlib.ExitStack() as stack:
        stack.callback(board.close)
        stack.callback(end, instance)
        assert instance.wait(5) == 1
        assert _NAMES[accident] in instance.messages()
        assert instance.messages().startswith("hardsplice: ")


# --- signals --------------------------------------------------------------------------------------


@pytest.fixture
def product(captured: Captured, identity: Identity) -> Iterator[Running]:
    """One that nobody takes over."""
    with running(captured, identity, "", "", udp=True) as made:
        made.exchange()
        made.exchange_datagrams()
        yield made


def is_stopped(pid: int) -> bool:
    return procfs.stat(pid)[0] == "T"


def roles(product: Running) -> dict[str, int]:
    """Its processes by name."""
    return {procfs.status(pid)["Name"]: pid for pid in product.instance.processes()}


@pytest.mark.parametrize("role", ["hs-relay-in", "hs-udp-in"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_a_relay(product: Running, number: signal.Signals, role: str) -> None:
    """It ends by that signal, and is replaced."""
    os.kill(roles(product)[role], number)
    instance = product.instance
    eventually(lambda: "started again" in instance.messages(), "no word of it", within=3)
    assert f"killed by {number.name}" in instance.messages()
    product.exchange()
    product.exchange_datagrams()
    instance.stop()


def test_sigterm_is_for_the_host_monitor_alone(product: Running) -> None:
    """Who ends the others, in their order."""
    before = roles(product)
    for name in before.keys() - {"hs-host"}:
        os.kill(before[name], signal.SIGTERM)
    product.exchange()
    product.exchange_datagrams()
    assert roles(product) == before
    product.instance.stop()


def test_sigpipe_is_nothing_to_anybody(product: Running) -> None:
    before = roles(product)
    for pid in before.values():
        os.kill(pid, signal.SIGPIPE)
    product.exchange()
    product.exchange_datagrams()
    assert roles(product) == before
    product.instance.stop()


def test_stopped_and_continued(product: Running) -> None:
    """In the middle of every wait: restart_syscall, where the kernel wants it."""
    before = roles(product)
    for pid in before.values():
        os.kill(pid, signal.SIGSTOP)
    for pid in before.values():
        eventually(partial(is_stopped, pid), "it goes on", within=2)
        os.kill(pid, signal.SIGCONT)
    product.exchange()
    product.exchange_datagrams()
    assert roles(product) == before
    product.instance.stop()


def test_a_signal_to_the_namespace_monitor(product: Running) -> None:
    family = product.instance.processes()
    os.kill(roles(product)["hs-namespace"], signal.SIGINT)
    assert product.instance.wait(3) == 1
    said = product.instance.messages()
    assert "cannot keep the namespace monitor running: it was killed by SIGINT" in said
    eventually(lambda: not any(map(procfs.alive, family)), "processes remain", within=3)


def test_signals_to_pid_1_and_what_stops_it(captured: Captured, identity: Identity) -> None:
    """From outside it is stopped and goes on; what it has no handler for the kernel spares it."""
    board, path = captured.board()
    job = Job(board=path)
    command = ["-f", "--", "/bin/sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done"]
    instance = Instance(captured, identity, command, environment={VARIABLE: job.dump()})
    with contextlib.ExitStack() as stack:
        stack.callback(board.close)
        stack.callback(end, instance)
        eventually(lambda: is_locked(instance), "PID 1 is not locked down", within=5)
        (pid,) = [one for one in instance.processes() if procfs.status(one)["Name"] == "hs-init"]
        for number in (signal.SIGUSR1, signal.SIGPIPE, signal.SIGINT, signal.SIGSTOP):
            os.kill(pid, number)
        eventually(partial(is_stopped, pid), "it goes on", within=2)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)  # there is nothing to be seen of a signal that does nothing
        if instance.process.poll() is None:
            instance.process.terminate()
        assert instance.wait(3) in (5, 128 + signal.SIGINT, 1), instance.messages()
        assert "SIGSYS" not in instance.messages()


# --- what is there after lock-down ----------------------------------------------------------------


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
def test_no_memory_is_writable_and_executable(product: Running) -> None:
    """A page of the tests' own shows that the check can fail."""

    def both(pid: int) -> list[str]:
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return [line for line in maps if line.split()[1].startswith("rwx")]

    rights = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    with mmap.mmap(-1, mmap.PAGESIZE, prot=rights):
        assert both(os.getpid())
    for name, pid in roles(product).items():
        assert both(pid) == [], name


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
def test_each_process_shares_memory_with_those_that_it_has_to_do_with(product: Running) -> None:
    """A relay its own counters with monitors; the namespace monitor those of its relay, and its
    page, with the host monitor.
    """

    def shared(pid: int) -> set[str]:
        """What is shared and has no name, by inode."""
        maps = (line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
        return {one[4] for one in maps if one[1] == "rw-s" and one[5] == "/dev/zero"}

    ours = shared(os.getpid())
    found = {name: shared(pid) - ours for name, pid in roles(product).items()}
    tests_own = set.intersection(*found.values())  # what the launcher has besides
    found = {name: inodes - tests_own for name, inodes in found.items()}
    (inner,), (outer,) = found["hs-relay-in"], found["hs-relay-out"]
    (inner_udp,), (outer_udp,) = found["hs-udp-in"], found["hs-udp-out"]
    assert len({inner, outer, inner_udp, outer_udp}) == 4
    assert {inner, inner_udp} < found["hs-namespace"] < found["hs-host"]
    assert {outer, outer_udp} < found["hs-host"] - found["hs-namespace"]
    assert (len(found["hs-namespace"]), len(found["hs-host"])) == (4, 8)


def is_empty(extra: Callable[[str, int], dict[int, str]], name: str, pid: int) -> bool:
    return not extra(name, pid)


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
def test_the_list_of_descriptors(product: Running) -> None:
    """What each role may hold, exactly; the numbers that a policy names are what it says they
    are.
    """
    # Numbers below the first flow's that nobody has are /dev/null, so that nothing else gets them.
    kinds = {
        "hs-relay": ("socket:", "pipe:", "anon_inode:[eventpoll]"),
        "hs-udp-in": ("socket:", "anon_inode:[eventpoll]"),
        "hs-udp-out": ("socket:", "anon_inode:[eventpoll]"),
        "hs-host": ("socket:", "pipe:", "anon_inode:"),
        "hs-namespace": ("socket:", "anon_inode:"),
    }
    ours = {  # what is at a number that a policy names
        "hs-relay": {CHANNEL_FD: "socket:", READY_FD: "/dev/null"},
        "hs-udp-in": {CHANNEL_FD: "socket:", READY_FD: "/dev/null", LIFELINE_FD: "pipe:"},
        "hs-udp-out": {CHANNEL_FD: "socket:", READY_FD: "/dev/null", LIFELINE_FD: "/dev/null"},
        "hs-host": {READY_FD: "/dev/null", SIGNALS_FD: "anon_inode:[signalfd]"},
        "hs-namespace": {CHANNEL_FD: "socket:", LOG_FD: "/dev/null", LIFELINE_FD: "pipe:"},
    }
    first = first_flow(4)

    def extra(name: str, pid: int) -> dict[int, str]:
        held = procfs.descriptors(pid)
        (role,) = (role for role in kinds if name.startswith(role))
        named = ours[role]
        return {
            fd: what
            for fd, what in held.items()
            if not (
                what.startswith(named[fd])
                if fd in named
                else (fd < first and what == "/dev/null")
                or what.startswith(kinds[role])
                or (role == "hs-host" and fd == LOG_FD)
            )
        }

    for name, pid in roles(product).items():
        # The --ready-fd is closed right after the word.
        eventually(partial(is_empty, extra, name, pid), f"{name} holds more", within=1)


# --- the last words -------------------------------------------------------------------------------


def test_the_last_words_with_a_full_log(captured: Captured) -> None:
    """A log that has its size takes the reason for the end all the same."""
    with folder_for(somebody()) as folder:
        log = folder / "log"
        log.write_bytes(b"-" * 4095 + b"\n")
        log.chmod(0o666)
        more = ("-l", str(log), "--log-size", "4096")
        with running(captured, somebody(), "host", "unforeseen", *more) as product:
            go_quietly(product)
            assert product.instance.wait(3) == 1
        assert "ZeroDivisionError" in log.read_text(errors="replace")
