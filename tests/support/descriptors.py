# SPDX-License-Identifier: GPL-2.0-or-later
"""Which descriptors this process has open, and what they can be taken for."""

from __future__ import annotations

import os
import socket

from hardsplice.ipc.channel import Channel


def open_descriptors() -> set[int]:
    """All of them, but for the one that the listing itself takes, which is closed by then."""
    return {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


def as_socket(channel: Channel) -> socket.socket:
    """A socket object for an end of a channel, to do what a channel doesn't."""
    return socket.socket(fileno=os.dup(channel.fileno()))
