# SPDX-License-Identifier: GPL-2.0-or-later
"""The caller's environment: only COMMAND needs it.

It may contain secrets, and an attacker who takes over a process can read its memory. So each
process overwrites its copy before it is locked down; a relay inherits its monitor's, which is
empty.
"""

from __future__ import annotations

import ctypes
import os

# proc_pid_stat(5), counted from the field behind the command's name
_ENV_START, _ENV_END = 50 - 3, 51 - 3


def forget() -> None:
    """Take all variables out of this process's environment, and out of its memory."""
    entries = list(os.environb.items())
    os.environb.clear()
    for text in (text for entry in entries for text in entry):
        if len(text) > 1:  # the interpreter shares those of one byte
            ctypes.memset(ctypes.c_char_p(text), 0, len(text))
    start, end = _block()
    ctypes.memset(start, 0, end - start)


def _block() -> tuple[int, int]:
    """Where the kernel has put the environment when the program was started, for good."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[_ENV_START]), int(fields[_ENV_END])
