# SPDX-License-Identifier: GPL-2.0-or-later
"""PID 1 of a COMMAND's PID namespace. container.py says how it comes to be.

It makes the namespaces from inside, forks COMMAND, which waits, and gives up what it has itself:
COMMAND sees it, but can't trace it, and would find nothing there. Only then is hardsplice ready,
and COMMAND runs. From then on PID 1 reaps, passes on signals, and ends with COMMAND.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
from typing import TYPE_CHECKING, NoReturn

import prctl

from hardsplice import descriptors, isolate, linux, loopback, refusals, shield, users
from hardsplice.channel import Channel, Kind, Record
from hardsplice.descriptors import CHANNEL_FD, FIRST_LISTENER, LOG_FD, SIGNALS_FD
from hardsplice.errors import Failure, reason_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hardsplice.container import Recipe

# Linux/capability.h: COMMAND may change its user, and signals must reach it all the same
CAP_KILL = 5
# A fixed descriptor beside those of descriptors.py: where COMMAND says why it can't be run
REASON_FD = 8
_REASON_LIMIT = 256  # bytes
_SI_USER = 0  # asm-generic/siginfo.h: sent by kill(2)


def live(recipe: Recipe, channel: Channel, guard: Channel, mask: Iterable[int]) -> NoReturn:
    """The life of the process that the guard forks; ``mask`` is the caller's signal mask."""
    try:
        prctl.set_name("hs-init")
        prctl.set_pdeathsig(signal.SIGKILL)
        keep = (channel.fileno(), guard.fileno(), *recipe.aside.values())
        descriptors.close_others((0, 1, 2, *keep))
        has_own_proc = _make_namespaces(recipe, guard)
        channel.send(Record(Kind.NAMESPACES, detail=has_own_proc))
        _await_go(channel)  # it has opened them
        prctl.set_dumpable(0)
        _await_go(channel)
        signal.pthread_sigmask(signal.SIG_SETMASK, (signal.SIGCHLD, signal.SIGCONT))
        read, write = os.pipe2(os.O_CLOEXEC)
        pid = _fork_command(recipe, write, mask)
        os.close(write)
        _lock_down(recipe, channel, read)
        channel.send(Record(Kind.READY))
        os._exit(reap(channel, pid, recipe))
    except Failure as failure:
        channel.send(Record(Kind.FATAL, text=text_of(failure)))
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        unforeseen = Failure("create", "namespaces", f"{type(error).__name__}: {error}")
        with contextlib.suppress(Exception):
            channel.send(Record(Kind.FATAL, text=text_of(unforeseen)))
    os._exit(1)


def _await_go(channel: Channel) -> None:
    if channel.receive() is None:
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
            # The guard is to write our maps, whose owner is root where we aren't dumpable. Nobody
            # is in A yet but these two, and nobody enters it but whoever started us.
            prctl.set_dumpable(1)
            linux.unshare(others | linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
            guard.send(Record(Kind.READY))
            _await_go(guard)
        else:
            linux.unshare(others)
        guard.close()
    except OSError as error:
        reason = f"{error.filename or 'set-up inside'}: {reason_of(error)}"
        find = refusals.mount_hint if error.filename else refusals.userns_hint
        hint = refusals.PROC_HINT if error.errno == errno.EROFS else find(error)
        raise Failure("create", "namespaces", reason, hint) from error
    _set_up_loopback()
    return has_own_proc


def _set_up_loopback() -> None:
    try:
        loopback.bring_up()
    except OSError as error:
        hint = "without a user namespace it takes CAP_NET_ADMIN: leave --netns-only out"
        told = hint if error.errno == errno.EPERM else None
        raise Failure("set up", "the loopback interface", reason_of(error), told) from error


def _mount(recipe: Recipe) -> bool:
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    if recipe.is_shielded:
        shield.refuse_cgroup_namespaces()
        shield.make_settings_read_only()
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    try:
        linux.mount("proc", "/proc", "proc", flags)
    except PermissionError as error:
        if error.errno != errno.EPERM or refusals.filter_hint():
            raise
        _keep_proc(recipe)
        return False
    if recipe.is_shielded:
        shield.make_proc_read_only()
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
        raise Failure("create", "namespaces", reason, refusals.PROC_HINT)
    if recipe.is_root_outside:
        shield.make_read_only("/proc")


# --- COMMAND --------------------------------------------------------------------------------------


def _fork_command(recipe: Recipe, reason: int, mask: Iterable[int]) -> int:
    """Fork COMMAND, which waits until we send it SIGCONT; its pid. ``reason`` is where it says why
    it can't be run.
    """
    prctl.set_name("hs-command")  # what COMMAND is called until it runs: none of those that stay
    pid = os.fork()
    if pid == 0:
        _become_command(recipe, reason, mask)
    prctl.set_name("hs-init")
    return pid


def _become_command(recipe: Recipe, reason: int, mask: Iterable[int]) -> NoReturn:
    """Wait, and run COMMAND with what it would have without us: nothing else is open by then."""
    name = recipe.command[0]
    try:
        # Away from the numbers that are to be put back.
        moved = descriptors.above(reason, 1 + max(recipe.aside, default=LOG_FD), "a pipe")
        descriptors.close_others((0, 1, 2, moved, *recipe.aside.values()))
        reason = moved
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        if recipe.ignores_children:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while not _is_go(signal.sigwaitinfo({signal.SIGCONT})):
            pass
        descriptors.put_back(recipe.aside)
        resource.setrlimit(resource.RLIMIT_NOFILE, recipe.file_limits)
        if recipe.user is not None and not recipe.new_user:
            users.leave_what_is_the_callers(recipe.user)
            os.setresgid(*[recipe.user.gid] * 3)
            os.setresuid(*[recipe.user.uid] * 3)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvp(name, list(recipe.command))
    except OSError as error:
        os.write(reason, _reason_not_run(name, error).encode()[:_REASON_LIMIT])
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        os.write(reason, f"{type(error).__name__}: {error}".encode()[:_REASON_LIMIT])
    os._exit(127)


def _is_go(sent: signal.struct_siginfo) -> bool:
    """Whether it is PID 1 who sent a SIGCONT, and not the shell that continues a job, say."""
    return sent.si_code == _SI_USER and sent.si_pid == 1


def _reason_not_run(name: str, error: OSError) -> str:
    """Why COMMAND can't be run. A folder of PATH that can't be searched hides that nothing of that
    name was found.
    """
    if "/" not in name:
        places = (os.path.join(folder, name) for folder in os.get_exec_path())
        if not any(map(os.path.lexists, places)):
            return os.strerror(errno.ENOENT)
    return reason_of(error)


# --- afterwards -----------------------------------------------------------------------------------


def _lock_down(recipe: Recipe, channel: Channel, reason: int) -> None:
    signals = descriptors.above(linux.signalfd((signal.SIGCHLD,)), FIRST_LISTENER, "a signalfd")
    reason = descriptors.above(reason, FIRST_LISTENER, "a pipe")
    channel.move_to(CHANNEL_FD)
    descriptors.move(signals, SIGNALS_FD)
    descriptors.move(reason, REASON_FD)
    descriptors.null_standard_streams((0, 1, 2))
    descriptors.keep((CHANNEL_FD, SIGNALS_FD, REASON_FD), FIRST_LISTENER)
    lockdown = isolate.Lockdown(strict=recipe.strict, say=lambda _: None)
    lockdown.run(isolate.init_steps((CAP_KILL,), recipe.last_capability, recipe.deny_files))
    # The kernel forgets it at some changes of credentials. The guard has our user, or this would
    # not reach us; that it still lives is for the host monitor to see, as we can't.
    prctl.set_pdeathsig(signal.SIGKILL)
    lockdown.run([isolate.filter_step(recipe.init_program)])


def reap(channel: Channel, pid: int, recipe: Recipe) -> int:
    """Reap whatever ends, pass signals on to COMMAND, and report how it ended."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    poller.register(SIGNALS_FD, select.POLLIN)
    while True:
        ready = dict(poller.poll())
        if channel.fileno() in ready:
            record = channel.receive()
            if record is None:
                return 1  # the host monitor is gone: the kernel ends all processes in here with us
            if record.kind == Kind.GO:
                _send_signal(pid, signal.SIGCONT)
            elif record.kind == Kind.SIGNAL:
                _send_signal(pid, record.detail)
                channel.send(Record(Kind.SIGNAL, detail=record.detail))  # it was passed on
        if SIGNALS_FD in ready:
            os.read(SIGNALS_FD, linux.SIGNALFD_SIGINFO)
            status = _reap_all(pid)
            if status is not None:
                channel.send(_last_word(status, recipe))
                return 0


def _send_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap_all(pid: int) -> int | None:
    """Reap all that have ended; how COMMAND ended, if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == 0:
                break
            if ended == pid:
                found = status
    return found


def _last_word(status: int, recipe: Recipe) -> Record:
    """How COMMAND ended, or why it could not be run: the pipe's other end is closed by now."""
    said = os.read(REASON_FD, _REASON_LIMIT)
    if not said:
        return Record(Kind.EXITED, detail=status)
    name, reason = recipe.command[0], said.decode(errors="replace")
    # A path that its user could follow to where nothing is: nobody else would find more there
    is_nowhere = "/" in name and reason == os.strerror(errno.ENOENT)
    failure = Failure("run", name, reason, None if is_nowhere else recipe.hint)
    return Record(Kind.FATAL, text=text_of(failure))
