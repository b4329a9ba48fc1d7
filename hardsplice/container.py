# SPDX-License-Identifier: GPL-2.0-or-later
"""A COMMAND's namespaces, and PID 1 in them.

Three processes take part. A *maker* unshares all namespaces at once and forks PID 1 of the new PID
namespace; then it ends, and PID 1 becomes the host monitor's child, which is why that one is a
subreaper. PID 1 sets up the namespaces from inside (its own /proc, lo) and waits; the target
monitor joins through it as it would join any process. Once that side is locked down, PID 1 forks
COMMAND, which waits, and gives up what it has itself. Only then is hardsplice ready, and COMMAND
runs. From then on PID 1 reaps, passes on signals, and ends with COMMAND.

PID 1 is not COMMAND itself, since the kernel spares a PID 1 all signals that it has no handler for:
Ctrl-C would not end `hardsplice sleep 100`. COMMAND sees PID 1, but can't trace it: that is not
dumpable, and belongs to a user namespace above.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import prctl

from hardsplice import descriptors, isolate, linux, namespaces
from hardsplice.channel import Channel, Kind, Malformed, Record
from hardsplice.descriptors import CHANNEL_FD, FIRST_LISTENER, SIGNALS_FD
from hardsplice.errors import Failure, reason_of
from hardsplice.values import RunAs

ALL_NAMESPACES = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
)
# Linux/capability.h: COMMAND may change its user, and signals must reach it all the same
CAP_KILL = 5


@dataclass(frozen=True, slots=True)
class Container:
    """A COMMAND's namespaces, before COMMAND runs."""

    command: str  # its program's name
    target: namespaces.Target
    init: int  # PID 1, by its number here
    pidfd: int
    channel: Channel


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make."""

    command: tuple[str, ...]
    user: RunAs | None  # whom hardsplice's own processes become
    program: bytes  # PID 1's filter
    last_capability: int
    new_user: bool  # a user namespace too, in which COMMAND is root

    @property
    def namespaces(self) -> int:
        """The flags to unshare with."""
        return ALL_NAMESPACES if self.new_user else ALL_NAMESPACES & ~linux.CLONE_NEWUSER


def id_maps(user: RunAs | None) -> tuple[str, str, bool]:
    """Maps for uid and gid, and whether setgroups must be denied: the caller, or ``user``, is root
    inside.

    Started as root, the user that hardsplice's own processes become is mapped too, so that they
    can.
    """
    uid, gid = os.geteuid(), os.getegid()
    if user is None or user.uid == uid:
        return f"0 {uid} 1", f"0 {gid} 1", uid != 0
    return f"0 {uid} 1\n{user.uid} {user.uid} 1", f"0 {gid} 1\n{user.gid} {user.gid} 1", False


def create(recipe: Recipe) -> Container:
    """Make the namespaces and their PID 1, which waits for GO to run COMMAND."""
    prctl.set_child_subreaper(1)
    ours, theirs = Channel.pair()
    sync_ours, sync_theirs = Channel.pair()
    maker = os.fork()
    if maker == 0:
        ours.close()
        sync_ours.close()
        _make(theirs, sync_theirs, recipe)
    theirs.close()
    sync_theirs.close()
    try:
        _expect(sync_ours)
        if recipe.new_user:
            uids, gids, deny_setgroups = id_maps(recipe.user)
            namespaces.write_id_maps(maker, uids, gids, deny_setgroups=deny_setgroups)
        sync_ours.send(Record(Kind.GO))
        init = _expect(sync_ours).detail
        os.waitpid(maker, 0)
        maker = 0
        ours.send(Record(Kind.GO))
        _expect(ours)
        pidfd = os.pidfd_open(init)
    except OSError as error:
        raise Failure("create", "namespaces", reason_of(error), namespaces.USERNS_HINT) from error
    finally:
        sync_ours.close()
        if maker:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(maker, 0)
    target = namespaces.open_process(init, netns_only=not recipe.new_user)
    return Container(recipe.command[0], target, init, pidfd, ours)


def _expect(channel: Channel) -> Record:
    """The other side's next record; its Failure when it says that it failed."""
    try:
        record = channel.receive()
    except Malformed as error:
        raise Failure("create", "namespaces", str(error)) from error
    if record is None:
        raise Failure("create", "namespaces", "the process that makes them ended early")
    if record.kind == Kind.FATAL:
        reason, _, hint = record.text.decode(errors="replace").partition("\n")
        raise Failure("create", "namespaces", reason, hint or None)
    return record


def _make(channel: Channel, sync: Channel, recipe: Recipe) -> NoReturn:
    """The maker: unshare, have the maps written from outside, fork PID 1, end."""
    try:
        try:
            linux.unshare(recipe.namespaces)
        except OSError as error:
            hint = namespaces.USERNS_HINT
            sync.send(Record(Kind.FATAL, text=f"{reason_of(error)}\n{hint}".encode()))
            os._exit(1)
        sync.send(Record(Kind.READY))
        if sync.receive() is None:
            os._exit(1)
        if recipe.new_user:  # root inside: until the maps stood we were nobody here
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        init = os.fork()
        if init == 0:
            sync.close()
            _init(channel, recipe)
        sync.send(Record(Kind.READY, detail=init))
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        with contextlib.suppress(Exception):
            sync.send(Record(Kind.FATAL, text=f"{type(error).__name__}: {error}".encode()))
        os._exit(1)


def _init(channel: Channel, recipe: Recipe) -> NoReturn:
    """PID 1: prepare the namespaces, wait for GO, run COMMAND, lock down, serve until it ends."""
    try:
        if channel.receive() is None:
            os._exit(1)
        prctl.set_name("hs-init")
        try:
            _prepare()
        except OSError as error:
            reason = f"{error.filename or 'set-up inside'}: {reason_of(error)}"
            channel.send(Record(Kind.FATAL, text=reason.encode()))
            os._exit(1)
        channel.send(Record(Kind.NAMESPACES))
        if channel.receive() is None:
            os._exit(1)
        prctl.set_dumpable(0)  # before COMMAND, which is the same user, could trace us
        pid = _run(channel, recipe.command)
        channel.move_to(CHANNEL_FD)
        signals = linux.signalfd((signal.SIGCHLD,))
        descriptors.move(signals, SIGNALS_FD)
        descriptors.null_standard_streams((0, 1, 2))
        descriptors.keep((CHANNEL_FD, SIGNALS_FD), FIRST_LISTENER)
        lockdown = isolate.Lockdown(strict=False, say=lambda _: None)
        lockdown.run(isolate.init_steps((CAP_KILL,), recipe.last_capability))
        # The parent is in another PID namespace: EOF tells of an earlier end
        prctl.set_pdeathsig(signal.SIGKILL)
        lockdown.run([isolate.filter_step(recipe.program)])
        channel.send(Record(Kind.READY))
        os._exit(_reap(channel, SIGNALS_FD, pid))
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        with contextlib.suppress(Exception):
            channel.send(Record(Kind.FATAL, text=f"{type(error).__name__}: {error}".encode()))
        os._exit(1)


def _prepare() -> None:
    """Make the namespaces usable from inside."""
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("proc", "/proc", "proc", flags)
    namespaces.bring_up_loopback()


def _run(channel: Channel, command: Sequence[str]) -> int:
    """Fork COMMAND, which waits for SIGCONT; its pid. It says itself when it can't be run."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGCONT})
    prctl.set_name("hs-command")  # what COMMAND is called until it runs: none of those that stay
    pid = os.fork()
    if pid == 0:
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.sigwait({signal.SIGCONT})
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            os.execvp(command[0], list(command))
        except OSError as error:
            reason = _reason_not_run(command[0], error)
            parts = (b"run", os.fsencode(command[0]), reason.encode())
            channel.send(Record(Kind.FATAL, text=b"\n".join(parts)))
            os._exit(127)
    prctl.set_name("hs-init")
    return pid


def _reason_not_run(name: str, error: OSError) -> str:
    """Why COMMAND can't be run. A folder of PATH that can't be searched hides that nothing of that
    name was found.
    """
    folders = [""] if "/" in name else os.get_exec_path()
    if not any(os.path.lexists(os.path.join(folder, name)) for folder in folders):
        return os.strerror(errno.ENOENT)
    return reason_of(error)


def _reap(channel: Channel, signals: int, pid: int) -> int:
    """Reap whatever ends, pass signals on to COMMAND, and report how it ended."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    poller.register(signals, select.POLLIN)
    while True:
        ready = dict(poller.poll())
        if channel.fileno() in ready:
            record = channel.receive()
            if record is None:
                return 1  # the host monitor is gone: the kernel ends all processes in here with us
            if record.kind in (Kind.SIGNAL, Kind.GO):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, record.detail or signal.SIGCONT)
        if signals in ready:
            os.read(signals, linux.SIGNALFD_SIGINFO)
            while True:
                try:
                    ended, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if ended == 0:
                    break
                if ended == pid:
                    channel.send(Record(Kind.EXITED, detail=status))
                    return 0
