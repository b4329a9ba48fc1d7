# SPDX-License-Identifier: GPL-2.0-or-later
"""Which processes may join a network namespace, and the hint for those that may not.

The kernel requires CAP_SYS_ADMIN in the user namespace that owns the network namespace, which is
not always the one that a process of it lives in: bubblewrap, for one, nests another one. Root has
it in its own user namespace and in all below. Everybody else has it in those that they made, and in
all below them (cap_capable, security/commoncap.c). So of the user namespaces on the way up from the
owner to ours the last one decides: the child of ours.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from hardsplice.kernel import linux, prctl
from hardsplice.model.errors import HardspliceError, quote

AS_OWNER = "run hardsplice as the user who owns that namespace, or as root"
_AS_ROOT = "run hardsplice as root"
_PTRACE_HINT = (
    "looking at another one's process takes it: a container gets it by --cap-add SYS_PTRACE, a "
    "unit by CapabilityBoundingSet="
)
_CONTAINER_HINT = (
    "run hardsplice where root has it: a container gets it by --cap-add SYS_ADMIN, or hardsplice "
    "runs outside of the container"
)
_OUTSIDE = (
    "run hardsplice where that process was started: outside of this container or user namespace"
)
_LSM_HINT = (
    "look for what it denied in the kernel's log (dmesg), and at that process's own confinement"
)
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h


def may_make_namespaces() -> bool:
    """Whether this process has CAP_SYS_ADMIN here, and so over the namespaces below."""
    return bool(prctl.cap_effective.sys_admin)


def same_namespace(fd: int, path: str) -> bool:
    """Whether ``fd`` is the namespace at ``path``."""
    return os.path.samestat(os.fstat(fd), os.stat(path))


def is_own_user_namespace(user: int) -> bool:
    """Whether it is the one that this process is in."""
    return same_namespace(user, "/proc/self/ns/user")


def owner_of(net: int, name: str) -> int:
    """A descriptor of the user namespace that owns a network namespace."""
    try:
        user = fcntl.ioctl(net, linux.NS_GET_USERNS)
    except PermissionError as error:
        hint = "run hardsplice in the user namespace that owns it, or in a parent of that one"
        raise HardspliceError("join", name, "its owner is out of reach", hint) from error
    os.set_inheritable(user, False)
    return user


def refuse_without(user: int, name: str) -> None:
    """HardspliceError where this process has no CAP_SYS_ADMIN in a user namespace: ours, or one
    below.
    """
    if may_make_namespaces():
        return
    if is_own_user_namespace(user):
        raise _not_ours(0, name)
    made_by = _maker(user)
    if made_by not in (None, os.geteuid()):
        raise _not_ours(made_by, name)


def _maker(user: int) -> int | None:
    """The owner of the child of our user namespace that ``user`` is or is below; None: unknown."""
    here = os.dup(user)
    try:
        while True:
            try:
                above = fcntl.ioctl(here, linux.NS_GET_PARENT)
            except OSError:
                return None
            if is_own_user_namespace(above):
                os.close(above)
                return _owner_uid(here)
            os.close(here)
            here = above
    finally:
        os.close(here)


def _owner_uid(user: int) -> int:
    answer = fcntl.ioctl(user, linux.NS_GET_OWNER_UID, bytes(4))
    return int(struct.unpack("=I", answer)[0])


def _not_ours(uid: int, name: str) -> HardspliceError:
    """It is another user's: whose, and what to do."""
    us = os.geteuid()
    if uid == us:
        return HardspliceError("join", name, "root has no CAP_SYS_ADMIN here", _CONTAINER_HINT)
    whose = "root's" if uid == 0 else f"user {uid}'s"
    if us == 0:
        reason = f"it is {whose}, and root has no CAP_SYS_ADMIN here"
        return HardspliceError("join", name, reason, f"run hardsplice as user {uid}")
    hint = _AS_ROOT if uid == 0 else f"run hardsplice as user {uid}, or as root"
    return HardspliceError("join", name, f"it is {whose}, and hardsplice runs as user {us}", hint)


def unreadable(path: str, pid: int | None, name: str, error: OSError) -> HardspliceError | None:
    """Why a namespace's file can't be opened, if something forbids it; None otherwise. ``pid`` is
    the process whose file in /proc it is, and exists.
    """
    if pid is not None and error.errno == errno.ENOENT:
        reason = "/proc does not show it: hidepid may keep it from others than its user"
        return HardspliceError("join", name, reason, AS_OWNER)
    if error.errno not in (errno.EACCES, errno.EPERM):
        return None
    if pid is not None:
        return _untraceable(pid, name)
    folder = _barrier(path)
    if folder is not None and os.stat(folder).st_uid == 0 and os.geteuid() != 0:
        return HardspliceError("join", name, f"{quote(folder)} is root's alone", _AS_ROOT)
    return None


def _untraceable(pid: int, name: str) -> HardspliceError | None:
    """The kernel shows a process's namespaces to processes that may trace it (PTRACE_MODE_READ)."""
    may_trace = bool(prctl.cap_effective.sys_ptrace)
    if os.geteuid() == 0 and not may_trace:
        return HardspliceError("join", name, "root has no CAP_SYS_PTRACE here", _PTRACE_HINT)
    uid = _uid_of(pid)
    if uid is None:
        return None
    if not is_mapped(uid, "uid") or (
        _is_below_the_initial() and (may_trace or _is_dumpable(pid, uid))
    ):
        return HardspliceError(
            "join", name, "it is in a user namespace that is not below ours", _OUTSIDE
        )
    if may_trace:
        reason = "the kernel keeps it even from who has CAP_SYS_PTRACE, as an LSM makes it do"
        return HardspliceError("join", name, reason, _LSM_HINT)
    if uid != os.geteuid():
        return _not_ours(uid, name)
    reason = "it keeps what it has from others of its user, as setuid programs do"
    return HardspliceError("join", name, reason, _AS_ROOT)


def is_mapped(number: int, kind: str) -> bool:
    """Whether an ID from the kernel (``kind`` is uid or gid) is mapped in our user namespace, and
    not the overflow ID, which stands for all that aren't.
    """
    with open(f"/proc/self/{kind}_map", encoding="ascii") as lines:
        ranges = [tuple(map(int, line.split())) for line in lines]
    return any(first <= number < first + count for first, _, count in ranges)


def _is_below_the_initial() -> bool:
    """Whether our user namespace has one above it."""
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/user").st_ino != _INITIAL_USER_NAMESPACE
    return False


def _is_dumpable(pid: int, uid: int) -> bool:
    """Whether the files of a process in /proc are its user's; root's are those of one that isn't
    dumpable (task_dump_owner, fs/proc/base.c).
    """
    with contextlib.suppress(OSError):
        return os.geteuid() == uid == os.stat(f"/proc/{pid}/status").st_uid
    return False


def _uid_of(pid: int) -> int | None:
    """The real user ID of a process; None where it is hidden, or gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Uid:"):
                return int(line.split()[1])
    return None


def _barrier(path: str) -> str | None:
    """The folder on the way to a file that can't be searched."""
    folder = ""
    for part in os.path.abspath(path).split("/")[1:-1]:
        folder = f"{folder}/{part}"
        if os.path.isdir(folder) and not os.access(folder, os.X_OK, effective_ids=True):
            return folder
    return None
