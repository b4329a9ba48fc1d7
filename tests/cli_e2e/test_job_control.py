# SPDX-License-Identifier: GPL-2.0-or-later
"""The terminal that hardsplice is started at: its hangup, its keys, and who has it afterwards, as
without hardsplice.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Program, can_bind, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
BASH = ["bash", "--norc", "--noprofile"]


class Session:
    """A session of its own on a new terminal, as ssh -t makes it; its first process leads it."""

    def __init__(self, identity: Identity, argv: list[str], environment: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        if identity.uid is not None:
            os.fchown(slave, identity.uid, -1)
        self.said = ""
        try:
            self.leader = subprocess.Popen(
                ["setsid", "--ctty", *argv], env={**environment, "PS1": "$ ", "TERM": "dumb"},
                cwd="/", stdin=slave, stdout=slave, stderr=slave,
            )  # fmt: skip
        finally:
            os.close(slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str) -> None:
        """Wait until that was said, after what was waited for before."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.said:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.said!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.said += os.read(self.master, 4096).decode(errors="replace")
        self.said = self.said.partition(text)[2]

    def hang_up(self) -> None:
        """What happens where the line is cut."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def close(self) -> None:
        family = procfs.tree(self.leader.pid)
        self.hang_up()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.leader.wait(PATIENCE)


@contextlib.contextmanager
def session(
    program: Program, identity: Identity, *words: str, script: str = "", shell: tuple[str, ...] = ()
) -> Iterator[Session]:
    """hardsplice as the session's leader; or a script in which $HS stands for it, run by bash."""
    argv, environment = program.argv(identity)
    if script:
        prefix = argv[: len(identity.wrap([]))]
        hardsplice = shlex.join(argv[len(prefix) :])
        argv = [*prefix, *BASH, *shell, "-c", script.replace("$HS", hardsplice)]
    elif shell:
        argv = [*argv[: len(identity.wrap([]))], *BASH, *shell]
    with contextlib.closing(Session(identity, [*argv, *words], environment)) as made:
        yield made


def command_line(program: Program, identity: Identity) -> str:
    """What to type for hardsplice, in a shell of that identity."""
    argv, _ = program.argv(identity)
    return shlex.join(argv[len(identity.wrap([])) :])


def ended(pids: list[int]) -> bool:
    return not any(map(procfs.alive, pids))


# --- hangup ---------------------------------------------------------------------------------------

IGNORE = "trap '' HUP;"
UP = ("sh", "-c", "echo up; exec sleep 1000")


@pytest.mark.parametrize("leader", ["hardsplice", "a script"])
def test_at_a_hangup_command_and_its_port_end(
    program: Program, identity: Identity, leader: str
) -> None:
    """The kernel tells the session's leader, and when that has ended those in the foreground."""
    port = free_ports()
    words = ("-q", "-t", f"127.0.0.1/{port}:80", "--", *UP)
    script = "" if leader == "hardsplice" else f"$HS {shlex.join(words)}; echo over"
    with session(program, identity, *(() if script else words), script=script) as line:
        line.until("up")
        family = procfs.tree(line.leader.pid)
        assert len(family) > 5
        line.hang_up()
        line.leader.wait(PATIENCE)
        eventually(lambda: ended(family), "processes are left", within=3)
    assert can_bind("127.0.0.1", port)


def test_command_is_told_of_a_hangup_once(program: Program, identity: Identity) -> None:
    code = (
        "import contextlib, os, signal, sys, time\n"
        "got = []\n"
        "signal.signal(signal.SIGHUP, lambda number, _: got.append(number))\n"
        "with contextlib.suppress(OSError): os.write(1, b'up\\n')\n"  # may be cut in the middle
        "while not got: time.sleep(0.01)\n"
        "until = time.monotonic() + 0.3\n"
        "while time.monotonic() < until: time.sleep(0.01)\n"
        "sys.exit(40 + len(got))\n"
    )
    with session(program, identity, "-q", "--", "/usr/bin/python3", "-c", code) as line:
        line.until("up")
        line.hang_up()
        assert line.leader.wait(PATIENCE) == 41


def test_who_ignores_hangups_has_a_command_that_does(program: Program, identity: Identity) -> None:
    """As nohup(1) has it."""
    argv, environment = program.argv(identity)
    shell = ["sh", "-c", f'{IGNORE} exec "$@"', "sh"]
    words = [*shell, *argv, "-q", "--", *UP]
    with contextlib.closing(Session(identity, words, environment)) as line:
        line.until("up")
        family = procfs.tree(line.leader.pid)
        line.hang_up()
        with pytest.raises(subprocess.TimeoutExpired):
            line.leader.wait(0.5)
        line.leader.terminate()
        assert line.leader.wait(PATIENCE) == 128 + signal.SIGTERM
        eventually(lambda: ended(family), "processes are left", within=3)


@pytest.mark.parametrize("ignored", [False, True], ids=["minded", "nohup"])
def test_a_hangup_ends_what_stays_in_the_foreground_for_a_process(
    program: Program, identity: Identity, namespace: Namespace, ignored: bool
) -> None:
    port = free_ports()
    argv, environment = program.argv(identity)
    words = [*argv, "-f", "-d", "-t", f"127.0.0.1/{port}:80", str(namespace.pid)]
    shell = ["sh", "-c", f'{IGNORE * ignored} exec "$@"', "sh"]
    with contextlib.closing(Session(identity, [*shell, *words], environment)) as line:
        line.until("ready in")
        line.hang_up()
        if ignored:
            with pytest.raises(subprocess.TimeoutExpired):
                line.leader.wait(0.5)
            assert not can_bind("127.0.0.1", port)
            line.leader.terminate()
        assert line.leader.wait(PATIENCE) == 0
    assert can_bind("127.0.0.1", port)


# --- who has the terminal -------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["bash --norc -i", "sh", "env bash --norc -i", ""])
def test_the_terminal_comes_back_from_an_inner_shell(
    program: Program, identity: Identity, inner: str
) -> None:
    """The script that hardsplice is part of goes on, and reads."""
    script = (
        f"SHELL=/bin/bash $HS -q {'-- ' * bool(inner)}{inner}; echo was $?; read x; echo got $x"
    )
    with session(program, identity, script=script) as line:
        line.type("echo in''side\nexit 7\n")
        line.until("inside")
        line.until("was 7")
        line.type("some words\n")
        line.until("got some words")
        assert line.leader.wait(PATIENCE) == 0


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
def test_what_the_host_monitor_has_of_the_terminal_is_for_neither_reading_nor_writing(
    program: Program, identity: Identity
) -> None:
    """Access mode 3, with which the kernel refuses both (open(2))."""
    with session(program, identity, "-q", "--", *UP) as line:
        line.until("up")
        for pid, name in procfs.names(line.leader.pid).items():
            if not name.startswith("hs-"):
                continue
            held = [fd for fd, what in procfs.descriptors(pid).items() if what == "/dev/tty"]
            assert len(held) == (pid == line.leader.pid), name
            for fd in held:
                flags = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split("flags:")[1].split()[0]
                assert int(flags, 8) & os.O_ACCMODE == 3
    fd = os.open("/dev/null", 3)
    try:
        for attempt in (lambda: os.read(fd, 1), lambda: os.write(fd, b"x")):
            with pytest.raises(OSError, match="Bad file descriptor"):
                attempt()
    finally:
        os.close(fd)


@pytest.mark.parametrize("stops", ["by the key", "by itself", "again and again"])
def test_ctrl_z_and_fg(program: Program, identity: Identity, stops: str) -> None:
    """A program may also take the key itself, and stop nobody but itself, as editors do."""
    by_itself = "kill -TSTP $$; " * (stops != "by the key")
    by_itself *= 3 if stops == "again and again" else 1
    script = f"echo u''p; {by_itself}echo w''ent on; exec sleep 1000"
    with session(program, identity, shell=("-i",)) as line:
        line.type(f"{command_line(program, identity)} -q -- sh -c {shlex.quote(script)}\n")
        line.until("up\r\n")
        if not by_itself:
            line.until("went on\r\n")
            line.type("\x1a")
        for _ in range(max(1, by_itself.count("kill"))):
            line.until("Stopped")
            line.type("echo o''uter\n")
            line.until("outer")
            line.type("fg\n")
        if by_itself:
            line.until("went on\r\n")
        eventually(lambda: _front(line) != line.leader.pid, "it is not in the foreground")
        eventually(lambda: not _stopped(line), "it does not go on")
        line.type("\x03")
        line.until("$ ")
        line.type("echo status $?\n")
        line.until("status 130")
        line.type("exit\n")
        line.leader.wait(PATIENCE)


def _front(line: Session) -> int:
    return os.tcgetpgrp(line.master)


def _stopped(line: Session) -> list[int]:
    stats = procfs.each(procfs.stat, procfs.tree(line.leader.pid))
    return [pid for pid, stat in stats.items() if stat[0] == "T"]


def test_a_shell_can_be_suspended(program: Program, identity: Identity) -> None:
    """It has a process group of its own."""
    with session(program, identity, shell=("-i",)) as line:
        line.type(f"{command_line(program, identity)} -q -- bash --norc -i\n")
        line.type("echo in''ner; suspend\n")
        line.until("inner")
        line.until("Stopped")
        line.type("echo o''uter; fg\n")
        line.until("outer")
        line.type("echo in''side; exit 5\n")
        line.until("inside")
        line.type("echo status $?\n")
        line.until("status 5")
        line.type("exit\n")
        line.leader.wait(PATIENCE)


def test_an_end_in_the_background_leaves_the_terminal_to_whoever_has_it(
    program: Program, identity: Identity, user_directory: Path
) -> None:
    fifo = user_directory / "fifo"
    os.mkfifo(fifo)
    if identity.uid is not None:
        os.chown(fifo, identity.uid, -1)
    os.chmod(fifo, 0o666)
    with session(program, identity, shell=("-i",)) as line:
        line.type(f"{command_line(program, identity)} -q -- sh -c 'echo u''p; cat {fifo}' &\n")
        line.until("up\r\n")
        inside = [p for p in procfs.tree(line.leader.pid) if p != line.leader.pid]
        line.type("cat\n")
        eventually(
            lambda: "cat" in procfs.names(line.leader.pid).values(),
            "there is no cat",
        )
        fifo.write_text("")
        eventually(lambda: ended(inside), "hardsplice goes on")
        line.type("typed\n")
        line.until("typed\r\ntyped\r\n")
