# SPDX-License-Identifier: GPL-2.0-or-later
"""Why namespaces and mounts are refused here, tested and not guessed, for the hint below an error.

A seccomp filter that was in force before we started, as those of container engines and service
managers, returns its error before the kernel checks a call's arguments. So a call with meaningless
arguments shows whether there is such a filter: the kernel itself would return EINVAL, ENOENT or
EBADF.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
from collections.abc import Callable, Iterable

from hardsplice.kernel import ids, linux, mounts, prctl
from hardsplice.sandbox import rights

_OF_THE_SENSELESS = (errno.EINVAL, errno.ENOENT, errno.EBADF)
_REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS)
_NOWHERE = "/proc/nothing is called so"
_LOW_FLAG = 1  # no flag of unshare(2), which looks at that first

_PROBES: dict[str, Callable[[], None]] = {
    "unshare": lambda: linux.unshare(linux.CLONE_NEWUSER | _LOW_FLAG),
    "mount": lambda: linux.mount("none", _NOWHERE, None, linux.MS_BIND),
    "setns": lambda: linux.setns(-1, 0),
    "pivot_root": lambda: linux.pivot_root(_NOWHERE, _NOWHERE),
}

# What switches user namespaces off where it has this value
_SWITCHES = (
    ("user.max_user_namespaces", "0"),
    ("kernel.unprivileged_userns_clone", "0"),  # Debian's
)
_APPARMOR_SWITCH = "kernel.apparmor_restrict_unprivileged_userns"  # Ubuntu's
_APPARMOR_LABELS = ("/proc/self/attr/apparmor/current", "/proc/self/attr/current")

PROC_HINT = (
    "the /proc of this container is masked: with Docker --security-opt systempaths=unconfined, "
    "with Podman --security-opt unmask=ALL lets COMMAND have its own"
)


def filter_hint() -> str | None:
    """What to do about a filter that forbids us some of these calls; None where there is none. A
    filter may also kill the process that makes such a call: so nothing is tried where there is
    none.
    """
    if not is_filtered():
        return None
    probes = dict(_PROBES)
    if not prctl.cap_effective.sys_admin or not _owns_mounts():
        del probes["pivot_root"]  # the kernel asks for the capability over the mounts first
    calls = [name for name, probe in probes.items() if not _reaches_kernel(probe)]
    if not calls:
        return None
    return (
        f"a seccomp filter that hardsplice was started under forbids {', '.join(calls)}: of a "
        "container --security-opt seccomp=unconfined takes it off, or a profile that allows them; "
        "of a systemd unit see RestrictNamespaces= and SystemCallFilter="
    )


@functools.cache
def is_filtered() -> bool:
    """Whether there was a seccomp filter when that was asked first, which is before ours is in
    force; taken for so where /proc does not say.
    """
    try:
        with open("/proc/self/status", "rb") as status:
            return b"\nSeccomp:\t2" in status.read()
    except OSError:
        return True


def _reaches_kernel(probe: Callable[[], None]) -> bool:
    try:
        probe()
    except OSError as error:
        return error.errno in _OF_THE_SENSELESS
    return True


def _owns_mounts() -> bool:
    """Whether our user namespace owns our mount namespace, and not one above, in which it was
    created; taken for so where /proc does not say.
    """
    try:
        mounts_here = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        owner = fcntl.ioctl(mounts_here, linux.NS_GET_USERNS)
    except PermissionError:  # it is above
        return False
    finally:
        os.close(mounts_here)
    is_ours = rights.is_own_user_namespace(owner)
    os.close(owner)
    return is_ours


def userns_hint(error: OSError) -> str | None:
    """Why a user namespace, or its maps, is refused; None for an error that no rule gives."""
    if error.errno == errno.EROFS:
        return "/proc is read-only here, where its maps are written: of bubblewrap add --proc /proc"
    if error.errno not in _REFUSED:
        return None
    found = filter_hint() or apparmor_hint(error)
    if found is not None:
        return found
    off = [f"{name} = {value}" for name, value in _switches() if _setting(name) == value]
    if off:
        return f"user namespaces are switched off here: sysctl {', '.join(off)}"
    if error.errno == errno.ENOSPC:
        return (
            "there are as many as the sysctl user.max_user_namespaces allows, here or further up, "
            "or too many are one in another"
        )
    if os.geteuid() == 0 and not prctl.cap_effective.setfcap:
        return (
            "root without CAP_SETFCAP can have none with a root in it: run hardsplice as another "
            "user; a container gets it by --cap-add SETFCAP"
        )
    for kind, number in (("uid", os.geteuid()), ("gid", os.getegid())):
        if not rights.is_mapped(number, kind):
            return (
                f"the {kind} of hardsplice is none in the user namespace that it runs in, so it "
                f"can make no other: see /proc/self/{kind}_map, and --map-root-user of unshare(1)"
            )
    if _is_in_chroot():
        return "in a chroot the kernel allows none"
    who = (
        "the seccomp filter that hardsplice was started under, or an LSM"
        if is_filtered()
        else "an LSM"
    )
    return f"it may be {who} that forbids them: of a container see --security-opt"


def apparmor_hint(error: OSError) -> str | None:
    """What to do where AppArmor restricts user namespaces; None where it isn't that.

    A process without a profile may create one, but then it has the profile unprivileged_userns,
    which denies all capabilities in there: writing the maps, other namespaces and mounts fail,
    although we have the capabilities as far as the kernel shows them. If that profile isn't loaded,
    creating one fails.
    """
    if error.errno not in (errno.EPERM, errno.EACCES) or _setting(_APPARMOR_SWITCH) != "1":
        return None
    label = _apparmor_label()
    is_denied = "unprivileged_userns" in label
    is_named = label not in ("", "unconfined")
    if not is_denied and (is_named or _is_privileged()):
        return None
    return (
        "AppArmor lets only programs that have a profile use user namespaces here: sysctl "
        f"{_APPARMOR_SWITCH} = 1. hardsplice's packages bring /etc/apparmor.d/hardsplice for "
        "/usr/bin/hardsplice; a hardsplice that is installed elsewhere takes one with its own path"
    )


def _apparmor_label() -> str:
    """The name of this process's profile, without its mode; empty where that can't be read."""
    for path in _APPARMOR_LABELS:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip(" \0\n").partition(" (")[0]
    return ""


def _is_privileged() -> bool:
    """Whether we may use user namespaces in spite of such a switch. In a user namespace of our own
    the capabilities say nothing about that.
    """
    with contextlib.suppress(OSError):
        return prctl.cap_effective.sys_admin and ids.owns_all_ids()
    return False


def _switches() -> Iterable[tuple[str, str]]:
    """Those that apply to us: a process with CAP_SYS_ADMIN is privileged."""
    return _SWITCHES[:1] if prctl.cap_effective.sys_admin else _SWITCHES


def _setting(name: str) -> str | None:
    path = f"/proc/sys/{name.replace('.', '/')}"
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return file.read().strip()
    return None


def _is_in_chroot() -> bool:
    """Whether our root folder is none that the table of mounts shows, as in a chroot."""
    with contextlib.suppress(OSError):
        return "/" not in mounts.here()
    return False


def mount_hint(error: OSError) -> str | None:
    """Why a mount is refused although we have the capability."""
    found = filter_hint() or apparmor_hint(error)
    if found is not None:
        return found
    if error.errno == errno.EACCES:
        return (
            "an LSM's profile forbids it: of a container --security-opt apparmor=unconfined takes "
            "AppArmor's off, --security-opt label=disable SELinux's"
        )
    return None


def limited_by(kind: str, error: OSError) -> str | None:
    """Why a namespace of a kind, or what is made in it, is refused."""
    if error.errno != errno.ENOSPC or error.filename is not None:
        return mount_hint(error)
    setting = f"user.max_{kind}_namespaces"
    return f"see the sysctl {setting}: root in a user namespace can set it for all in there"
