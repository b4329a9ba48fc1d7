# SPDX-License-Identifier: GPL-2.0-or-later
"""A tripwire inside the interpreter: a relay that imports, opens, compiles or creates sockets
reports that and ends.

It doesn't confine an attacker: machine code in the process goes around it, and then the filter
stops it. But unexpected Python code ends here, with a message that names what it tried, where
SIGSYS would name nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

# Events of the interpreter's own audit table. Those of one kind share a first word.
FORBIDDEN = frozenset({"import", "open", "exec", "compile", "code.__new__", "mmap.__new__"})
FORBIDDEN_KINDS = (
    "socket.__new__",
    "socket.bind",
    "socket.connect",
    "os.",
    "subprocess.",
    "ctypes.dl",
    "ctypes.cdata",
    "marshal.",
    "pickle.",
    "shutil.",
    "pty.",
    "signal.",
)

STATUS = 3  # with which a process ends that did what is forbidden


def is_forbidden(event: str) -> bool:
    """Whether an audit event is one that a process which only moves bytes never causes."""
    return event in FORBIDDEN or event.startswith(FORBIDDEN_KINDS)


def arm(report: Callable[[str], None]) -> None:
    """From now on a forbidden event ends the process, after ``report`` was called with it. It can't
    be undone.
    """

    harmless: set[str] = set()  # events checked before: the hook is called for every connection

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in harmless:
            return
        if not is_forbidden(event):
            harmless.add(event)
        else:
            what = arguments[0] if arguments else ""
            report(f"sealed: {event} {what!s:.80}")
            os._exit(STATUS)

    sys.addaudithook(hook)
