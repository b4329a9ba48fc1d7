# SPDX-License-Identifier: GPL-2.0-or-later
"""When a target on the loopback interface can't be reached: is the interface down?

The error of connect(2) doesn't show it. In IPv4 it is that there is no route, or, if the interface
was up before, a timeout; in IPv6 that there is no source address, which is also the error when all
local ports are in use. A monitor can check the interface, a relay can't.
"""

from __future__ import annotations

import errno
import time

from hardsplice.ipc.messages import Note
from hardsplice.kernel.socketcalls import endpoint
from hardsplice.net import loopback
from hardsplice.net.listener import Listener
from hardsplice.telemetry.flow_table import End, read_record

CHECK_SECONDS = 1.0  # an answer holds so long
_NO_WAY = (errno.ENETUNREACH, errno.EADDRNOTAVAIL)
_UNREACHED = (End.REFUSED, End.LIMIT, End.TIMEOUT)
_LOOPBACK_IPV6 = bytes(15) + b"\x01"
_LOOPBACK_IPV4 = bytes(10) + b"\xff\xff\x7f"  # 127.0.0.0/8, mapped


class Doubt:
    """Whether it is that, in the network namespace of this process."""

    def __init__(self) -> None:
        self._checked = -CHECK_SECONDS
        self._is_down = False

    def explains_note(self, kind: int, detail: int, listener: Listener) -> bool:
        """Whether it explains a relay's note about a port; ``detail`` is an errno."""
        is_unreached = kind == Note.TIMED_OUT or (kind == Note.REFUSED and detail in _NO_WAY)
        return is_unreached and leads_to_loopback(listener) and self._check()

    def explains_end(self, end: int, row: bytes) -> bool:
        """Whether it explains a flow's end. Raises InvalidRowError."""
        if end not in _UNREACHED:
            return False
        return read_record(end, row).flow.target[0].is_loopback and self._check()

    def _check(self) -> bool:
        now = time.monotonic()
        if now - self._checked >= CHECK_SECONDS:
            self._checked, self._is_down = now, loopback.is_down()
        return self._is_down


def leads_to_loopback(listener: Listener) -> bool:
    """Whether a target of it is there."""
    targets = (endpoint(one.sockaddr)[0] for one in (*listener.route_ipv4, *listener.route_ipv6))
    return any(one == _LOOPBACK_IPV6 or one.startswith(_LOOPBACK_IPV4) for one in targets)
