# SPDX-License-Identifier: GPL-2.0-or-later
"""Connecting to a target of the address book, and what it means where that fails."""

from __future__ import annotations

import errno

from hardsplice.kernel import socketcalls
from hardsplice.sandbox.address_book import Pointer
from hardsplice.telemetry.flow_table import End


def connect(fd: int, target: Pointer) -> int:
    """Start a connection to a target of the address book: 0 when it is established, -EINPROGRESS
    while it is under way, or the negated errno; -ECONNREFUSED when the host monitor has given the
    target up meanwhile.
    """
    if not target.holds():
        return -errno.ECONNREFUSED
    return socketcalls.connect(fd, target.where, target.length)


def telling(before: int, code: int) -> int:
    """Which errno of two attempts to report, ``before`` being 0 at the first: that nothing listens
    rather than that there is no way, and that rather than that there is no address to come from,
    as the other address family may be switched off.
    """
    return before if before and _LITTLE.get(before, 0) < _LITTLE.get(code, 0) else code


def end_of_attempt(code: int) -> End:
    """How a flow ended whose target could not be connected, by the errno."""
    if code == errno.ETIMEDOUT:
        return End.TIMEOUT
    return End.LIMIT if code in _SHORT else End.REFUSED


# What connect(2) says when this machine is the reason: no local port (tcp_v4_connect), no memory.
_SHORT = (errno.EADDRNOTAVAIL, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
# How little an errno says of where the target is
_LITTLE = {errno.ENETUNREACH: 1, errno.EADDRNOTAVAIL: 2}
