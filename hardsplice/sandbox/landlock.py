# SPDX-License-Identifier: GPL-2.0-or-later
"""Landlock: no file, TCP only to the ports that are targets, no abstract socket and no signal
outside.

A ruleset is a descriptor. It is created during set-up, when ports may still be added to it, and a
process later puts itself under it with one call. Each layer only restricts further. Kernels differ
in what they can restrict, by ABI version: 1 (Linux 5.13) files; 4 (6.7) TCP; 6 (6.12) abstract UNIX
sockets and signals.

A layer that scopes signals keeps them from every process that is not under it, including children
that were forked before: not even the SIGKILL of PR_SET_PDEATHSIG would reach those. So before it
forks the namespace monitor, the host monitor puts itself under a layer that does nothing else, and
its second layer doesn't scope. The layers of its relays do, and keep signals from the host monitor.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from hardsplice.kernel import linux
from hardsplice.kernel.record import NamedTuple
from hardsplice.sandbox import refusals

# linux/landlock.h. All rights on files that an ABI knows are handled, and none is granted.
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # number of LANDLOCK_ACCESS_FS_* bits from this ABI on
_NET_BIND_TCP, _NET_CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2
_NET_ABI, _SCOPE_ABI = 4, 6

LACKED = "this kernel lacks it"
HIDDEN = f"{LACKED}, or a filter that hardsplice was started under hides it"
FORBIDDEN = "a filter that hardsplice was started under forbids it"


class Rights(NamedTuple):
    """What a ruleset handles, which is to say denies unless a rule grants it."""

    fs: int
    net: int
    scoped: int


def rights(abi: int) -> Rights:
    """All that Landlock of version ``abi`` can deny; nothing for 0."""
    bits = max((count for since, count in _FS_RIGHTS.items() if since <= abi), default=0)
    return Rights(
        fs=(1 << bits) - 1,
        net=_NET_BIND_TCP | _NET_CONNECT_TCP if abi >= _NET_ABI else 0,
        scoped=_SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if abi >= _SCOPE_ABI else 0,
    )


class Support(NamedTuple):
    """What this kernel, and the filter that we were started under, permit of Landlock."""

    abi: int  # 0 for none
    reason: str = LACKED  # why there is no more

    @property
    def lacking(self) -> list[str]:
        """What can't be denied, and why, in words."""
        lacks = []
        if self.abi < 1:
            lacks.append("deny files by Landlock (Linux 5.13)")
        if self.abi < _NET_ABI:
            lacks.append("confine connections to the target ports by Landlock (Linux 6.7)")
        if self.abi < _SCOPE_ABI:
            lacks.append("confine signals and abstract sockets by Landlock (Linux 6.12)")
        return [f"{what}: {self.reason}" for what in lacks]


def support() -> Support:
    """Ask the kernel, before there is any filter of our own. EPERM doesn't come from the kernel:
    none of Landlock's calls returns it to a process with no_new_privs, but filters of
    systemd-nspawn and of container managers return it for each call that they don't know.
    """
    refusals.is_filtered()
    try:
        version = linux.landlock_abi()
        tried = ruleset(version, connect=(1,))  # each call may be forbidden by itself
        if tried is not None:
            os.close(tried)
    except OSError as error:
        reason = why_unavailable(error)
        if reason is None:
            raise
        return Support(0, reason)
    return Support(version)


def why_unavailable(error: OSError) -> str | None:
    """Why Landlock isn't available, by the error of one of its calls; None for any other error."""
    if error.errno == errno.EPERM:
        return FORBIDDEN
    return lacked() if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP) else None


def lacked() -> str:
    """What to say of a call that is not there. Some filters answer ENOSYS, too, for what they don't
    know (runc's, for calls newer than itself).
    """
    return HIDDEN if refusals.is_filtered() else LACKED


def scope(version: int) -> int | None:
    """A ruleset that keeps signals and connections to abstract sockets among the processes that
    come under it, and their descendants; it denies nothing else. None where there is no such thing.
    """
    handled = rights(version)
    return linux.landlock_create_ruleset(0, 0, handled.scoped) if handled.scoped else None


def no_files(version: int) -> int | None:
    """A ruleset that denies all files, and nothing else; None where there is no Landlock."""
    return linux.landlock_create_ruleset(rights(version).fs, 0, 0) if version else None


def ruleset(
    version: int,
    connect: Iterable[int] | None,
    bind: Iterable[int] | None = (),
    *,
    scoped: bool = True,
) -> int | None:
    """A ruleset's descriptor that grants nothing but TCP connections to the ports ``connect``, and
    binding to the ports ``bind``; either is not restricted where it is None. None where there is no
    Landlock. With ``scoped`` off signals are left as they are.
    """
    if version < 1:
        return None
    handled = rights(version)
    granted = {_NET_CONNECT_TCP: connect, _NET_BIND_TCP: bind}
    net = handled.net & sum(access for access, ports in granted.items() if ports is not None)
    fd = linux.landlock_create_ruleset(handled.fs, net, handled.scoped if scoped else 0)
    for access, ports in granted.items():
        for port in sorted(set(ports or ())):
            if net & access:
                linux.landlock_add_port(fd, access, port)
    return fd


def deny_files_and_ports(version: int) -> None:
    """Put this process under a layer that grants no file, no TCP port and no abstract socket, but
    leaves signals alone: for a process that must signal others outside of it.
    """
    handled = rights(version)
    scoped = handled.scoped & ~_SCOPE_SIGNAL
    fd = linux.landlock_create_ruleset(handled.fs, handled.net, scoped)
    try:
        linux.landlock_restrict_self(fd)
    finally:
        os.close(fd)
