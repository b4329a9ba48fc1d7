# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock-down: what a process gives up, in the order in which it must, each step an object that can
say what it does.

A step is *required* (without it the process refuses to go on) or *additional* (an older kernel may
lack it; then this is said once, and with ``--sandbox=strict`` it is required too). Monitors lock
down before they fork relays, so a relay inherits all that its monitor gave up and adds its own
steps; a relay that is restarted goes the same way as the first one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import prctl

from hardsplice import linux, namespaces
from hardsplice.errors import Failure, reason_of
from hardsplice.values import RunAs

# Fixed descriptors, whose numbers the policies name.
LOG_FD = 2  # the host monitor's messages; /dev/null elsewhere
# A process's channel to its monitor; the host monitor's to the launcher, if there is one
CHANNEL_FD = 3
READY_FD = 4  # the host monitor's --ready-fd
NOTIFY_FD = 5  # the host monitor's socket to the service manager
RULESET_FD = 6  # the Landlock ruleset, kept by monitors for the relays that they start
LAST_FIXED_FD = RULESET_FD
FIXED_FDS = (0, 1, LOG_FD, CHANNEL_FD)
_EMPTY_ROOT = "/proc"  # a folder that is there for sure, to mount the new root on
_LAST_CAP = "/proc/sys/kernel/cap_last_cap"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to give up."""

    describe: str
    execute: Callable[[], None]
    required: bool = True


class Lockdown:
    """Runs steps and keeps what was missing. ``strict`` makes every step required."""

    def __init__(self, *, strict: bool, say: Callable[[str], None]) -> None:
        self.strict = strict
        self.say = say
        self.missing: list[str] = []

    def run(self, steps: Iterable[Step]) -> None:
        """Take each step in turn; Failure when one that is required can't be taken."""
        for one in steps:
            self.say(one.describe)
            try:
                one.execute()
            except OSError as error:
                if one.required or self.strict:
                    raise Failure("lock down", one.describe, reason_of(error)) from error
                self.missing.append(one.describe)


def keep_descriptors(keep: Iterable[int]) -> None:
    """Close every descriptor but these: whatever was inherited is a way out."""
    edge = 0
    for fd in sorted(set(keep)):
        if edge < fd:  # an empty range would mean all to close_range(2)
            os.closerange(edge, fd)
        edge = fd + 1
    # The limit may have been lowered below descriptors that are open; fs.nr_open's default is
    # 2**20.
    os.closerange(edge, max(1 << 20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def null_standard_streams(streams: Sequence[int]) -> None:
    """Put /dev/null where a terminal or a pipe to somebody else was."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in streams:
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def read_last_capability() -> int:
    """The highest capability that this kernel knows; python-prctl's own list may be older."""
    with open(_LAST_CAP, encoding="ascii") as file:
        return int(file.read())


def _own_user_namespace() -> None:
    """Enter a user namespace of our own, ids unchanged: an ordinary user may drop the bounding set
    only in one.
    """
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER)
    namespaces.write_id_maps("self", f"{uid} {uid} 1", f"{gid} {gid} 1", deny_setgroups=True)


def _leave_file_system() -> None:
    """New IPC, UTS and mount namespaces, and in the latter an empty, read-only root and nothing
    else.
    """
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    flags = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("tmpfs", _EMPTY_ROOT, "tmpfs", flags, "nr_inodes=2,size=4k,mode=0555")
    os.chdir(_EMPTY_ROOT)
    # Both on the same place: the old root ends up on top of the new one, and is then taken off
    # (pivot_root(2)).
    linux.pivot_root(".", ".")
    linux.umount2(".", linux.MNT_DETACH)
    os.chdir("/")


def _restrict(ruleset: int) -> None:
    linux.landlock_restrict_self(ruleset)


def _change_user(user: RunAs) -> None:
    # In a user namespace that denies setgroups there are none to drop beyond its maps.
    with contextlib.suppress(PermissionError):
        os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def _limit(which: int, value: int) -> None:
    resource.setrlimit(which, (value, value))


def _drop_bounding(last: int) -> None:
    for capability in range(last + 1):
        try:
            if linux.prctl(linux.PR_CAPBSET_READ, capability) == 1:
                linux.prctl(linux.PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise


def _clear_ambient() -> None:
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)


def _clear_capabilities(keep: Sequence[int]) -> None:
    prctl.cap_inheritable.limit()
    prctl.cap_effective.limit(*keep)
    prctl.cap_permitted.limit(*keep)


def _lock_securebits() -> None:
    bits = (
        prctl.SECBIT_NOROOT
        | prctl.SECBIT_NOROOT_LOCKED
        | prctl.SECBIT_NO_SETUID_FIXUP
        | prctl.SECBIT_NO_SETUID_FIXUP_LOCKED
        | prctl.SECBIT_KEEP_CAPS_LOCKED
        | _SECBIT_NO_CAP_AMBIENT_RAISE
        | _SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED
    )
    linux.prctl(_PR_SET_SECUREBITS, bits)


# linux/securebits.h and linux/prctl.h: newer than python-prctl.
_PR_SET_SECUREBITS = 28
_SECBIT_NO_CAP_AMBIENT_RAISE = 1 << 6
_SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED = 1 << 7


def monitor_steps(
    *,
    user: RunAs | None,
    new_user_namespace: bool,
    last_capability: int,
    file_limit: int,
    ruleset: int | None,
) -> list[Step]:
    """What a monitor gives up before its filter. ``file_limit`` is the largest file that it may
    write, in bytes; ``ruleset`` is Landlock's, if there is one.
    """
    steps: list[Step] = []
    if new_user_namespace:
        steps.append(Step("enter a user namespace of its own", _own_user_namespace, required=False))
    steps += [
        Step("leave the file system for an empty one", _leave_file_system, required=False),
        Step("limit core dumps and files", lambda: _limit_files(file_limit)),
        Step("lock the securebits", _lock_securebits, required=False),
        Step("empty the bounding set", lambda: _drop_bounding(last_capability), required=False),
        Step("clear the ambient set", _clear_ambient),
    ]
    if user is not None:
        steps.append(Step(f"become user {user.uid}", lambda: _change_user(user)))
    steps += [
        Step("drop all capabilities", lambda: _clear_capabilities(())),
        *_common_steps(),
    ]
    if ruleset is not None:
        steps.append(Step("deny files, ports and signals by Landlock", lambda: _restrict(ruleset)))
    return steps


def _limit_files(file_limit: int) -> None:
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_limit)


def _common_steps() -> list[Step]:
    return [
        Step("forbid new privileges", lambda: prctl.set_no_new_privs(1)),
        Step("be neither dumped nor traced", lambda: prctl.set_dumpable(0)),
        Step(
            "refuse memory that is writable and executable",
            _refuse_exec_gain,
            required=False,
        ),
    ]


def _refuse_exec_gain() -> None:
    linux.prctl(linux.PR_SET_MDWE, linux.PR_MDWE_REFUSE_EXEC_GAIN)


def relay_steps(ruleset: int | None) -> list[Step]:
    """What a relay gives up on top of what its monitor did. Its own Landlock layer puts the monitor
    out of reach.
    """
    layer = (
        [] if ruleset is None else [Step("deny signals to the monitor", lambda: _restrict(ruleset))]
    )
    return [
        *layer,
        Step("start no process", lambda: _limit(resource.RLIMIT_NPROC, 0)),
        Step("write no file", lambda: _limit(resource.RLIMIT_FSIZE, 0)),
    ]


def init_steps(
    keep: Sequence[int], last_capability: int, deny_files: Callable[[], None] | None
) -> list[Step]:
    """What PID 1 of a COMMAND and its guard give up; ``keep`` are the capabilities that are needed,
    ``deny_files`` puts it under Landlock, where there is that.
    """
    steps = [
        Step("leave the file system for an empty one", _leave_file_system),
        Step("limit core dumps and files", lambda: _limit_files(0)),
        Step("lock the securebits", _lock_securebits),
        Step("clear the ambient set", _clear_ambient),
        Step("empty the bounding set", lambda: _drop_bounding(last_capability)),
        Step("drop capabilities", lambda: _clear_capabilities(keep)),
        *_common_steps(),
    ]
    if deny_files is not None:
        steps.append(Step("deny files and ports by Landlock", deny_files))
    return steps


def filter_step(program: bytes) -> Step:
    """The seccomp filter: always last."""
    return Step("install the system call filter", lambda: linux.set_seccomp_filter(program))


def die_with(parent: int) -> None:
    """Be killed when the process that forked us ends, even if it is killed itself.

    The kernel forgets this at a change of credentials, so it comes after those.
    """
    prctl.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it has ended already
