# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock-down: what a process gives up, in the required order, each step an object that can describe
itself.

A step that fails ends the start, unless it has an *excuse* for the very error: that this kernel
lacks what it needs. Then this is reported once, with the reason, and with ``--sandbox=strict`` it
ends the start too. Any other error may be caused by an attacker: root in a namespace that we joined
can forbid what others need there.

Monitors lock down before they fork relays, so a relay inherits all that its monitor gave up and
adds its own steps; a relay that is restarted goes the same way as the first one.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import signal
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from hardsplice.kernel import linux, prctl, unotify
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.errors import not_done, reason_of
from hardsplice.model.identity import RunAs
from hardsplice.model.unforeseen import next_step
from hardsplice.sandbox import empty_root, landlock, refusals, user_namespace

# What to do where only --sandbox=strict asks for a layer
NOT_STRICT = "leave out --sandbox=strict to go on without it"
_LAST_CAP = "/proc/sys/kernel/cap_last_cap"
# Bytes of address space that a process may take after its lock-down: so many, and so many for each
# descriptor that it may have. A connection, which has two, takes a good kilobyte.
MEMORY, MEMORY_EACH = 128 << 20, 2 << 10


def no_excuse(_: OSError) -> str | None:
    """The excuse for what every kernel that hardsplice runs on has: none."""
    return None


def why_unavailable(error: OSError) -> str | None:
    """The excuse for what an older kernel, or one built without it, may lack. For calls that return
    these errors for no other reason.
    """
    lacks = error.errno in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
    return landlock.lacked() if lacks else None


class Step(NamedTuple):
    """One thing to give up. ``excuse`` says why it may be left out for an error, or None; ``hint``
    says what the user can do where it may not.
    """

    describe: str
    execute: Callable[[], None]
    excuse: Callable[[OSError], str | None] = no_excuse
    hint: Callable[[OSError], str | None] = next_step


class Lockdown:
    """Runs steps and keeps what was missing, and why. ``strict`` takes no excuse."""

    def __init__(self, *, strict: bool, say: Callable[[str], None]) -> None:
        self.strict = strict
        self.say = say
        self.lacking: list[str] = []

    def run(self, steps: Iterable[Step]) -> None:
        """Take each step in turn; HardspliceError when one that is required can't be taken."""
        for one in steps:
            self.say(one.describe)
            try:
                one.execute()
            except OSError as error:
                why = one.excuse(error)
                if why is None or self.strict:
                    hint = one.hint(error) if why is None else NOT_STRICT
                    raise not_done(one.describe, why or reason_of(error), hint) from error
                self.lacking.append(f"{one.describe}: {why}")


def read_last_capability() -> int:
    """The highest capability that this kernel knows; python-prctl's own list may be older."""
    with open(_LAST_CAP, encoding="ascii") as file:
        return int(file.read())


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
            is_there = linux.prctl(linux.PR_CAPBSET_READ, capability) == 1
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            continue  # the kernel knows no such capability
        if is_there:
            linux.prctl(linux.PR_CAPBSET_DROP, capability)


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


def leaving_steps(*, new_user_namespace: bool, user: RunAs | None = None) -> list[Step]:
    """How a process leaves the namespaces that it shares: in a user namespace of its own, if it may
    not create others without one; ``user`` is the user that it becomes there.
    """
    own_user = Step(
        "enter a user namespace of its own",
        partial(user_namespace.enter_own_user_namespace, user),
        hint=refusals.userns_hint,
    )
    leave = Step(empty_root.LEAVE, empty_root.leave, hint=partial(refusals.limited_by, "mnt"))
    return [*([own_user] if new_user_namespace else []), leave, *separating_steps()]


def separating_steps() -> list[Step]:
    """Namespaces of its own that a kernel may have been built without."""
    made = (("an IPC", "ipc", linux.CLONE_NEWIPC), ("a UTS", "uts", linux.CLONE_NEWUTS))
    return [
        Step(
            f"enter {name} namespace of its own",
            partial(linux.unshare, flag),
            why_unavailable,
            partial(refusals.limited_by, kind),
        )
        for name, kind, flag in made
    ]


def first_steps(file_limit: int) -> list[Step]:
    """What a monitor gives up first, for its relays too. ``file_limit`` is the largest file that it
    may write, in bytes. Made while there is still a /proc.
    """
    return [
        Step("limit core dumps and files", lambda: _limit_files(file_limit)),
        _memory_step(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        *_common_steps(),
    ]


def rights_steps(user: RunAs | None, last_capability: int, ruleset: int | None) -> list[Step]:
    """What a monitor gives up before its filter, once all is bound. ``user`` is the user that it
    becomes; ``ruleset`` is Landlock's, if there is one.
    """
    steps = [
        Step("lock the securebits", _lock_securebits),
        Step("empty the bounding set", lambda: _drop_bounding(last_capability)),
        Step("clear the ambient set", _clear_ambient),
    ]
    if user is not None:
        steps.append(Step(f"become user {user.uid}", lambda: _change_user(user)))
    steps += [Step("drop all capabilities", lambda: _clear_capabilities(())), _undumpable()]
    if ruleset is not None:
        steps.append(restriction("deny files, ports and signals by Landlock", ruleset))
    return steps


def restriction(describe: str, ruleset: int) -> Step:
    """Come under a Landlock ruleset."""
    return Step(describe, lambda: linux.landlock_restrict_self(ruleset), landlock.why_unavailable)


def _limit_files(file_limit: int) -> None:
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_limit)


def _memory_step(descriptors: int) -> Step:
    """Limit the address space, which all memory takes, the stack's and shared one too."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * mmap.PAGESIZE
    bound = used + MEMORY + MEMORY_EACH * descriptors
    for limit in resource.getrlimit(resource.RLIMIT_AS):
        if limit != resource.RLIM_INFINITY:
            bound = min(bound, limit)
    return Step("limit memory", lambda: _limit(resource.RLIMIT_AS, bound))


def _common_steps() -> list[Step]:
    return [
        no_new_privileges(),
        _undumpable(),
        Step("refuse memory that is writable and executable", _refuse_exec_gain, why_unavailable),
    ]


def _undumpable() -> Step:
    """Asked for again after each change of user: fs.suid_dumpable says what that leaves."""
    return Step("refuse to be dumped or traced", lambda: prctl.set_dumpable(0))


def no_new_privileges() -> Step:
    """What Landlock and seccomp require of a process that isn't privileged."""
    return Step("forbid new privileges", lambda: prctl.set_no_new_privs(1))


def _refuse_exec_gain() -> None:
    linux.prctl(linux.PR_SET_MDWE, linux.PR_MDWE_REFUSE_EXEC_GAIN)


def relay_steps(ruleset: int | None) -> list[Step]:
    """What a relay gives up on top of what its monitor did. Its own Landlock layer puts the monitor
    out of reach.
    """
    layer = [] if ruleset is None else [restriction("deny signals to the monitor", ruleset)]
    return [
        *layer,
        Step("forbid processes of its own", lambda: _limit(resource.RLIMIT_NPROC, 0)),
        Step("forbid files of its own", lambda: _limit(resource.RLIMIT_FSIZE, 0)),
    ]


def init_steps(
    keep: Sequence[int], last_capability: int, deny_files: Callable[[], None] | None
) -> list[Step]:
    """What PID 1 of a COMMAND and its guard give up; ``keep`` are the capabilities that are needed,
    ``deny_files`` puts it under Landlock, where there is that. Made while there is still a /proc.
    """
    steps = [
        Step(empty_root.LEAVE, empty_root.leave, hint=partial(refusals.limited_by, "mnt")),
        *separating_steps(),
        Step("limit core dumps and files", lambda: _limit_files(0)),
        _memory_step(0),
        Step("lock the securebits", _lock_securebits),
        Step("clear the ambient set", _clear_ambient),
        Step("empty the bounding set", lambda: _drop_bounding(last_capability)),
        Step("drop capabilities", lambda: _clear_capabilities(keep)),
        *_common_steps(),
    ]
    if deny_files is not None:
        steps.append(Step("deny files and ports by Landlock", deny_files, landlock.why_unavailable))
    return steps


def filter_step(program: bytes) -> Step:
    """The seccomp filter: always last."""
    return Step("install the system call filter", lambda: linux.set_seccomp_filter(program))


def notifying_filter_step(program: bytes, take: Callable[[int], None]) -> Step:
    """The same for a filter that passes a call on to the monitor; ``take`` gets the descriptor from
    which that is read.
    """
    return Step("install the system call filter", lambda: take(unotify.set_filter(program)))


class Parent(NamedTuple):
    """The parent of this process, and the signal that is to come when it ends, if any: the kernel
    clears that at a change of credentials.
    """

    pid: int
    signal: int

    @classmethod
    def now(cls) -> Parent:
        """As it is."""
        return cls(os.getppid(), prctl.get_pdeathsig())

    def check_again(self) -> None:
        """Have that signal at its end; at once where it has ended meanwhile."""
        if self.signal:
            prctl.set_pdeathsig(self.signal)
            if os.getppid() != self.pid:
                os.kill(os.getpid(), self.signal)


def die_with(parent: int) -> None:
    """Be killed when the process that forked us ends, even if it is killed itself.

    The kernel clears this at a change of credentials, so it comes after those.
    """
    prctl.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it has ended already
