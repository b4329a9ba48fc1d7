# SPDX-License-Identifier: GPL-2.0-or-later
"""Landlock: no file, TCP only to the ports that are targets, no abstract socket and no signal
outside.

A ruleset is a descriptor. It is made during set-up, when ports may still be added to it, and a
process later puts itself under it with one call. Each layer only takes away. Kernels differ in what
they can restrict, by ABI version: 1 (Linux 5.13) files; 4 (6.7) TCP; 6 (6.12) abstract UNIX sockets
and signals.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

from hardsplice import linux

# linux/landlock.h. All rights on files that an ABI knows are handled, and none is granted.
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # number of LANDLOCK_ACCESS_FS_* bits from this ABI on
_NET_BIND_TCP, _NET_CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2
_NET_ABI, _SCOPE_ABI = 4, 6


@dataclass(frozen=True, slots=True)
class Rights:
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


def missing(abi: int) -> list[str]:
    """What Landlock of version ``abi`` can't deny, in words."""
    lacks = []
    if abi < 1:
        lacks.append("deny files by Landlock (Linux 5.13)")
    if abi < _NET_ABI:
        lacks.append("confine connections to the target ports by Landlock (Linux 6.7)")
    if abi < _SCOPE_ABI:
        lacks.append("confine signals and abstract sockets by Landlock (Linux 6.12)")
    return lacks


def abi() -> int:
    """The kernel's version of Landlock; 0 when it has none or it is switched off."""
    try:
        return linux.landlock_abi()
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def ruleset(
    version: int, connect: Iterable[int] | None, bind: Iterable[int] | None = ()
) -> int | None:
    """A ruleset's descriptor that grants nothing but TCP connections to the ports ``connect``, and
    binding to the ports ``bind``; either is not restricted where it is None. None where there is no
    Landlock.
    """
    if version < 1:
        return None
    handled = rights(version)
    granted = {_NET_CONNECT_TCP: connect, _NET_BIND_TCP: bind}
    net = handled.net & sum(access for access, ports in granted.items() if ports is not None)
    fd = linux.landlock_create_ruleset(handled.fs, net, handled.scoped)
    for access, ports in granted.items():
        for port in sorted(set(ports or ())):
            if net & access:
                linux.landlock_add_port(fd, access, port)
    return fd


def deny_files_and_ports(version: int) -> None:
    """Put this process under a layer that grants no file, no TCP port and no abstract socket, but
    leaves signals alone: for whoever must reach processes outside of it.
    """
    handled = rights(version)
    scoped = handled.scoped & ~_SCOPE_SIGNAL
    fd = linux.landlock_create_ruleset(handled.fs, handled.net, scoped)
    try:
        linux.landlock_restrict_self(fd)
    finally:
        os.close(fd)
