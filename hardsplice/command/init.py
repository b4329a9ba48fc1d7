# SPDX-License-Identifier: GPL-2.0-or-later
"""PID 1 of COMMAND's PID namespace. command/container.py says how it is created.

It creates the namespaces from inside, forks COMMAND, which waits, and gives up what it has itself:
COMMAND sees it, but can't trace it, and would gain nothing by it. Only then is hardsplice ready,
and COMMAND runs. From then on PID 1 reaps, passes on signals, and reports how COMMAND ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import stat
import time
from functools import partial

from hardsplice.command import caller, environment, terminal
from hardsplice.ipc import child, descriptors
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.descriptors import CHANNEL_FD, FIRST_LISTENER, LOG_FD, SIGNALS_FD
from hardsplice.ipc.messages import Kind, Record
from hardsplice.kernel import linux, prctl, signals
from hardsplice.kernel.hints import TYPE_CHECKING, NoReturn
from hardsplice.kernel.status import exit_status
from hardsplice.model import roles
from hardsplice.model.errors import HardspliceError, reason_of, text_of
from hardsplice.model.unforeseen import as_error, next_step
from hardsplice.net import loopback
from hardsplice.sandbox import masks, refusals, steps, users

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hardsplice.command.recipe import Recipe

# linux/capability.h: COMMAND may change its user, and signals must still reach it
CAP_KILL = 5
# A fixed descriptor beside those of ipc/descriptors.py: where COMMAND reports why it can't be run
REASON_FD = 8
_REASON_LIMIT = 256  # bytes
# Hints when a program can't be run; the host monitor shows no others from here
_NO_PROGRAM = "it is no program"
_NOT_EXECUTABLE = "nobody may execute it: see its permissions"
_MOUNTED_NOEXEC = "its file system is mounted noexec"
HINTS = (_NO_PROGRAM, _NOT_EXECUTABLE, _MOUNTED_NOEXEC)
_GROUP_SECONDS = 0.5  # between a signal's arrival here and from the host monitor
_SHELL = "/bin/sh"  # what runs a script that names no interpreter, as execvp(3) has it
# Exit statuses if COMMAND could not be run, as with shells, env(1) and timeout(1)
NOT_EXECUTED, NOT_FOUND = 126, 127
_SI_USER = 0  # asm-generic/siginfo.h: sent by kill(2)


def live(recipe: Recipe, channel: Channel, guard: Channel, mask: Iterable[int]) -> NoReturn:
    """The life of the process that the guard forks; ``mask`` is the caller's signal mask."""
    child.live(lambda: _live(recipe, channel, guard, mask), channel, "create", "namespaces")


def _live(recipe: Recipe, channel: Channel, guard: Channel, mask: Iterable[int]) -> int:
    prctl.set_name(roles.INIT.name)
    prctl.set_pdeathsig(signal.SIGKILL)
    keep = (channel.fileno(), guard.fileno(), *recipe.aside.values())
    descriptors.close_others((0, 1, 2, *keep))
    has_own_proc = _make_namespaces(recipe, guard)
    channel.send(Record(Kind.NAMESPACES, detail=has_own_proc))
    _await(channel, Kind.ENTERED)
    prctl.set_dumpable(0)
    _await(channel, Kind.PREPARE)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = _fork_command(recipe, write, mask)
    os.close(write)
    _lock_down(recipe, channel, read)
    channel.send(Record(Kind.READY))
    return reap(channel, pid)


def _await(channel: Channel, kind: Kind) -> None:
    record = channel.receive()
    if record is None or record.kind != kind:
        os._exit(1)


# --- namespaces -----------------------------------------------------------------------------------


def _make_namespaces(recipe: Recipe, guard: Channel) -> bool:
    """First the mounts, in user namespace A; then B and all the rest, whose mounts are locked.
    Whether there is a /proc of its own.
    """
    try:
        linux.unshare(linux.CLONE_NEWNS)
        has_own_proc = _mount(recipe)
        others = linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
        if recipe.new_user:
            # The guard has to write our maps, whose owner is root while we aren't dumpable. Only
            # these two processes are in A yet, and only the user who started us can enter it.
            prctl.set_dumpable(1)
            linux.unshare(others | linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
            guard.send(Record(Kind.WANTS_MAPS))
            _await(guard, Kind.MAPPED)
        else:
            linux.unshare(others)
        guard.close()
    except OSError as error:
        reason = f"{error.filename or 'set-up inside'}: {reason_of(error)}"
        find = refusals.mount_hint if error.filename else partial(refusals.limited_by, "*")
        hint = refusals.PROC_HINT if error.errno == errno.EROFS else find(error)
        raise HardspliceError("create", "namespaces", reason, hint) from error
    _set_up_loopback()
    return has_own_proc


def _set_up_loopback() -> None:
    try:
        loopback.bring_up()
    except OSError as error:
        hint = "without a user namespace it takes CAP_NET_ADMIN: leave --netns-only out"
        told = hint if error.errno == errno.EPERM else None
        raise HardspliceError("set up", "the loopback interface", reason_of(error), told) from error


def _mount(recipe: Recipe) -> bool:
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    if recipe.is_shielded:
        masks.refuse_cgroup_namespaces()
        masks.make_settings_read_only()
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    try:
        linux.mount("proc", "/proc", "proc", flags)
    except PermissionError as error:
        if error.errno != errno.EPERM or refusals.filter_hint():
            raise
        _keep_proc(recipe)
        return False
    if recipe.is_shielded:
        masks.make_proc_read_only()
    return True


def _keep_proc(recipe: Recipe) -> None:
    """Go on with the /proc that is there. The kernel refuses a fresh one in a user namespace where
    parts of the one that is there are covered, as container engines do (mount_too_revealing).

    It shows the processes of our PID namespace, ours among them; and of each no more to COMMAND
    than its user name, its command line and the like, as long as that is in a user namespace below.
    But COMMAND may own files in there: where it is our root, those of processes that are not
    dumpable.
    """
    if not recipe.new_user:
        reason = "/proc: a fresh one is refused, and the one here shows more than COMMAND may see"
        raise HardspliceError("create", "namespaces", reason, refusals.PROC_HINT)
    if recipe.is_root_outside:
        masks.make_read_only("/proc")


# --- COMMAND --------------------------------------------------------------------------------------


def _fork_command(recipe: Recipe, reason: int, mask: Iterable[int]) -> int:
    """Fork COMMAND, which waits until we send it SIGCONT; its pid. ``reason`` is where it says why
    it can't be run.
    """
    prctl.set_name("hs-command")  # what COMMAND is called until it runs: none of those that stay
    pid = os.fork()
    if pid == 0:
        _become_command(recipe, reason, mask)
    prctl.set_name(roles.INIT.name)
    return pid


def _become_command(recipe: Recipe, reason: int, mask: Iterable[int]) -> NoReturn:
    """Wait, and run COMMAND with what it would have without hardsplice, and nothing else open."""
    name = recipe.command[0]
    try:
        # Away from the numbers that are to be put back: those of others are taken.
        changed = (old for old, new in recipe.aside.items() if old != new)
        moved = descriptors.above(reason, 1 + max(changed, default=LOG_FD), "a pipe")
        descriptors.close_others((0, 1, 2, moved, *recipe.aside.values()))
        reason = moved
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        while not _is_go(signal.sigwaitinfo({signal.SIGCONT})):
            pass
        descriptors.put_back(recipe.aside)
        resource.setrlimit(resource.RLIMIT_NOFILE, recipe.file_limits)
        if recipe.user is not None and not recipe.new_user:
            users.leave_what_is_the_callers(recipe.user)
            os.setresgid(*[recipe.user.gid] * 3)
            os.setresuid(*[recipe.user.uid] * 3)
        if recipe.takes_foreground:
            terminal.take_foreground()
        caller.give_back(recipe.caller)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _execute(name, recipe.command)
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        failure = not_run(name, recipe.hint, error)
        said = "\n".join(filter(None, (failure.reason, failure.hint)))
        os.write(reason, said.encode(errors="replace")[:_REASON_LIMIT])
        os._exit(failure.status)
    os._exit(NOT_EXECUTED)


def _execute(name: str, command: tuple[str, ...]) -> NoReturn:
    """Become COMMAND, as a shell would: ``os.execvp`` doesn't run scripts without an interpreter
    line.
    """
    for path in [name] if "/" in name else [os.path.join(one, name) for one in os.get_exec_path()]:
        try:
            os.execv(path, command)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                os.execv(_SHELL, [_SHELL, path, *command[1:]])
    os.execvp(name, command)  # for the error that counts


def _is_go(sent: signal.struct_siginfo) -> bool:
    """Whether PID 1 sent a SIGCONT, and not a shell that continues a job, for example."""
    return sent.si_code == _SI_USER and sent.si_pid == 1


def not_run(name: str, as_other_user: str | None, error: BaseException) -> HardspliceError:
    """Why this process can't run COMMAND, and the status that says so; ``as_other_user`` is what to
    do where that is because of whose process it is.
    """
    if not isinstance(error, OSError):
        failure = as_error(error, "run", name)
        return HardspliceError("run", name, failure.reason, failure.hint, NOT_EXECUTED)
    code = error.errno
    if code not in (errno.ENOENT, errno.EACCES):
        return HardspliceError("run", name, reason_of(error), next_step(error), NOT_EXECUTED)
    places = [name] if "/" in name else [os.path.join(one, name) for one in os.get_exec_path()]
    path = next(filter(os.path.lexists, places), None)
    if path is None and "/" not in name:
        # A folder of PATH that can't be searched hides that nothing of that name was found.
        hint = as_other_user if code == errno.EACCES else None
        return HardspliceError("run", name, os.strerror(errno.ENOENT), hint, NOT_FOUND)
    if code == errno.ENOENT:
        # A path that can be followed to where nothing is leads to nothing for any user.
        there = path is not None and os.path.exists(path)
        reason = "its interpreter is not there" if there else os.strerror(errno.ENOENT)
        return HardspliceError("run", name, reason, None, NOT_FOUND)
    hint = _whose(path) or as_other_user
    return HardspliceError("run", name, os.strerror(errno.EACCES), hint, NOT_EXECUTED)


def _whose(path: str | None) -> str | None:
    """Why no user can execute what is at a path, if none can."""
    with contextlib.suppress(OSError):
        if path is not None:
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                return _NO_PROGRAM
            if not mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH):
                return _NOT_EXECUTABLE
            if os.statvfs(path).f_flag & os.ST_NOEXEC:
                return _MOUNTED_NOEXEC
    return None


# --- afterwards -----------------------------------------------------------------------------------


def _lock_down(recipe: Recipe, channel: Channel, reason: int) -> None:
    taken = linux.signalfd(signals.taken(has_command=True))
    taken = descriptors.above(taken, FIRST_LISTENER, "a signalfd")
    reason = descriptors.above(reason, FIRST_LISTENER, "a pipe")
    channel.move_to(CHANNEL_FD)
    descriptors.move(taken, SIGNALS_FD)
    descriptors.move(reason, REASON_FD)
    descriptors.null_standard_streams((0, 1, 2))
    descriptors.keep((CHANNEL_FD, SIGNALS_FD, REASON_FD), FIRST_LISTENER)
    lockdown = steps.Lockdown(strict=recipe.strict, say=lambda _: None)
    environment.forget()
    lockdown.run(steps.init_steps((CAP_KILL,), recipe.last_capability, recipe.deny_files))
    # The kernel forgets it at some changes of credentials. The guard has our user, or this would
    # not reach us; that it still lives is for the host monitor to see, as we can't.
    prctl.set_pdeathsig(signal.SIGKILL)
    lockdown.run([steps.filter_step(recipe.init_program)])


class ToGroup:
    """Signals to the whole process group, which the host monitor and this process are in: COMMAND
    has got them already, if it is in the group, too. The host monitor can't tell, and sends them
    here.

    The kernel signals a group's newest process first, so they have arrived here by then.
    """

    def __init__(self) -> None:
        self._arrived: dict[int, float] = {}  # signals, by when

    def read(self) -> None:
        """Read the signals that have arrived."""
        with contextlib.suppress(BlockingIOError):
            while True:
                number, code = linux.siginfo(os.read(SIGNALS_FD, linux.SIGNALFD_SIGINFO))
                if code != linux.SI_KERNEL:  # which the host monitor doesn't pass on
                    self._arrived[number] = time.monotonic()

    def had(self, number: int) -> bool:
        """Whether this signal arrived just now, and has not been reported yet."""
        return time.monotonic() - self._arrived.pop(number, -_GROUP_SECONDS) < _GROUP_SECONDS


def _is_in_our_group(pid: int) -> bool:
    """The caller's process group has no number in this PID namespace."""
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid) == 0
    return False


def reap(channel: Channel, pid: int) -> int:
    """Reap all processes that end, pass signals on to COMMAND, and report how it ended. Processes
    that it leaves behind live until the host monitor closes the channel, which it does after
    connections were reset or have drained.
    """
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    poller.register(SIGNALS_FD, select.POLLIN)
    to_group, command, has_ended = ToGroup(), Charge(pid), False
    while True:
        ready = dict(poller.poll())
        if SIGNALS_FD in ready:
            to_group.read()
            command.reap()
            if command.is_stopped():
                channel.send(Record(Kind.STOPPED), wait=False)
            if command.status is not None and not has_ended:
                has_ended = True
                channel.send(_last_word(command.status))
        if channel.fileno() in ready:
            record = channel.receive()
            if record is None:
                return int(not has_ended)  # the kernel ends all processes in here with us
            if has_ended:
                continue
            if record.kind == Kind.RUN:
                _send_signal(pid, signal.SIGCONT)
            elif record.kind == Kind.SIGNAL:
                if not (to_group.had(record.detail) and _is_in_our_group(pid)):
                    _send_signal(pid, record.detail)
                channel.send(Record(Kind.PASSED_ON, detail=record.detail))
            elif record.kind == Kind.CHECK_STOPPED:
                channel.send(Record(Kind.CHECKED, int(command.is_stopped())))


def _send_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Charge:
    """COMMAND, as its parent knows it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.status: int | None = None  # how it ended

    def reap(self) -> None:
        """Reap all that have ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._pid:
                    self.status = status

    def is_stopped(self) -> bool:
        """Whether COMMAND is stopped now. The kernel is asked each time, and keeps the answer for
        the next (WNOWAIT): what it said before can't be relied on, since once a signal ends COMMAND
        it doesn't say any more that COMMAND went on before (wait_task_continued, kernel/exit.c).
        """
        if self.status is not None:
            return False
        try:
            found = os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # it has ended, and is yet to be reaped
            return False
        return found is not None


def _last_word(status: int) -> Record:
    """How COMMAND ended, or why it could not be run: the pipe's other end is closed by now. Which
    program that is the host monitor knows.
    """
    said = os.read(REASON_FD, _REASON_LIMIT)
    if not said:
        return Record(Kind.EXITED, detail=status)
    reason, _, hint = said.decode(errors="replace").partition("\n")
    failure = HardspliceError("run", "COMMAND", reason, hint or None)
    return Record(Kind.FATAL, detail=exit_status(status), text=text_of(failure))
