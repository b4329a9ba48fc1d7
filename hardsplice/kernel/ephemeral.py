# SPDX-License-Identifier: GPL-2.0-or-later
"""The ephemeral ports, which the kernel assigns by itself."""

from __future__ import annotations

_EPHEMERAL_PATH = "/proc/sys/net/ipv4/ip_local_port_range"
_EPHEMERAL_DEFAULT = (32768, 60999)  # net/ipv4/af_inet.c, inet_init_net()


def read_ephemeral_range(path: str = _EPHEMERAL_PATH) -> tuple[int, int]:
    """The first and last ephemeral port; the kernel's default if they can't be read.

    Only `all` and lone exclusions need it, so being unable to read it is no reason to stop.
    """
    try:
        with open(path, encoding="ascii") as file:
            first, last = map(int, file.read().split())
    except (OSError, ValueError):
        return _EPHEMERAL_DEFAULT
    return first, last
