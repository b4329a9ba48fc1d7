# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors, in the one form in which they are displayed.

Every error that hardsplice reports is a `HardspliceError`: what it could not do (a verb), to what
(an object), and why (a reason), with the next step where there is one. Code below the top raises
and never prints; only the top knows where messages go.

All displayed text goes through `printable`: messages, lines of the log, STATUS=, cells of tables.
Much of it comes from elsewhere: names of files and processes, reports of other processes, answers
at a control socket. None of it may move a cursor, start a line, or hide or change the text beside
it.
"""

from __future__ import annotations

import contextlib
import os
import select
import unicodedata
from collections.abc import Iterable

from hardsplice.model.direction import Direction, group_name
from hardsplice.model.protocol import Protocol

__all__ = [
    "HardspliceError", "error_of", "not_done", "print_lines", "printable", "quote", "reason_of",
    "relay_lost", "relay_running", "text_of", "write_all",
]  # fmt: skip

SHOWN_LIMIT = 1000  # characters of one line
_QUOTED_LIMIT = 64
_PATIENCE = 1.0  # seconds that one line waits for its reader
_MARKS_LIMIT = 2  # combining marks on one letter: no script needs more
# Bidirectional classes of letters that are written from right to left. One of them is enough for a
# terminal to show the digits and brackets after it in another order.
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})
# Letters and marks that show nothing though their category is one of things to see
# (Default_Ignorable_Code_Point in DerivedCoreProperties.txt), and a blank that is no space.
_INVISIBLE = frozenset(
    map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0))
) | frozenset(
    chr(code)
    for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
    for code in range(first, last + 1)
)


class HardspliceError(Exception):
    """An error that ends the program: `cannot <verb> <object>: <reason>`."""

    def __init__(
        self,
        verb: str,
        object: str,  # noqa: A002 - the message's grammar: verb, object, reason
        reason: str,
        hint: str | None = None,
        status: int = 1,
    ) -> None:
        """``status`` is what the program ends with."""
        super().__init__(verb, object, reason, hint)
        self.verb = verb
        self.object = object
        self.reason = reason
        self.hint = hint
        self.status = status

    def __str__(self) -> str:
        # Each part has a share of the line, so that a long name can't hide the reason.
        what = printable(f"cannot {self.verb} {self.object}", SHOWN_LIMIT * 2 // 3)
        return f"{what}: {printable(self.reason, SHOWN_LIMIT // 3 - 2)}"

    def lines(self, program: str = "hardsplice") -> tuple[str, ...]:
        """The lines that the top shows: the message, then the next step if there is one."""
        texts = (str(self),) if self.hint is None else (str(self), printable(self.hint))
        return tuple(f"{program}: {text}" for text in texts)


def relay_lost(
    direction: Direction, protocol: Protocol, reason: str, hint: str | None
) -> HardspliceError:
    """The HardspliceError with which a monitor ends when a relay can't be kept running."""
    return HardspliceError("keep", relay_running(direction, protocol), reason, hint)


def relay_running(direction: Direction, protocol: Protocol) -> str:
    """What a monitor that can't keep a relay running can't do, without its verb."""
    return f"the {group_name(direction, protocol)} relay running"


def not_done(what: str, reason: str, hint: str | None = None) -> HardspliceError:
    """A HardspliceError at what is put as it is done: "clear the ambient set"."""
    verb, _, object = what.partition(" ")  # noqa: A001 - as in HardspliceError
    return HardspliceError(verb, object, reason, hint)


def text_of(failure: HardspliceError) -> bytes:
    """A HardspliceError as one process tells it another: verb, object, reason and perhaps a next
    step, one a line, whatever names are in it.
    """
    parts = [failure.verb, failure.object, failure.reason]
    if failure.hint:
        parts.append(failure.hint)
    return "\n".join(map(printable, parts)).encode(errors="replace")


def error_of(text: bytes, status: int = 1) -> HardspliceError:
    """The HardspliceError in such a text, which may come from any process."""
    parts = text.decode(errors="replace").split("\n", 3)
    if len(parts) < 3:
        return HardspliceError("go on", "serving", parts[0] or "no reason was given")
    return HardspliceError(
        parts[0], parts[1], parts[2], parts[3] if len(parts) > 3 else None, status
    )


def in_a_line(failure: HardspliceError) -> str:
    """A failure and its next step in one line, for callers that put their own words before it."""
    return f"{failure}; {printable(failure.hint)}" if failure.hint else str(failure)


def reason_of(error: OSError) -> str:
    """The reason alone ("Permission denied"): no errno, no file name, which the object says."""
    if error.strerror:
        return error.strerror
    if error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def quote(text: str) -> str:
    """User input as a message shows it: in quotes, and truncated if it is very long."""
    if len(text) > _QUOTED_LIMIT:
        text = text[: _QUOTED_LIMIT - 3] + "..."
    return f"'{text}'"


def printable(text: str, limit: int = SHOWN_LIMIT) -> str:
    """``text`` as it may be shown to people: on one line, of ``limit`` characters at most, from
    left to right, and each of them there to be seen. What isn't is spelt as in Python's strings.
    """
    is_plain = text.isascii() and text.isprintable()
    shown = text if is_plain else _spell(text[: limit + 1])
    return shown if len(shown) <= limit else shown[: max(0, limit - 3)] + "..."


def _spell(text: str) -> str:
    parts: list[str] = []
    marks = _MARKS_LIMIT  # as if after many: there is no letter for one to stand on
    for char in text:
        if char.isascii():
            marks = 0 if char.isprintable() and char != " " else _MARKS_LIMIT
            parts.append(char if char.isprintable() else _escape(char))
        elif not char.isprintable() or char in _INVISIBLE:
            parts.append(_escape(char))
            marks = _MARKS_LIMIT
        elif unicodedata.category(char)[0] == "M":
            marks += 1
            parts.append(char if marks <= _MARKS_LIMIT else _escape(char))
        else:
            is_shown = unicodedata.bidirectional(char) not in _RIGHT_TO_LEFT
            marks = 0 if is_shown else _MARKS_LIMIT
            parts.append(char if is_shown else _escape(char))
    return "".join(parts)


def _escape(char: str) -> str:
    # Undecodable bytes of argv included.
    if char.isascii():
        return repr(char)[1:-1]
    return char.encode("ascii", "backslashreplace").decode("ascii")


def print_lines(lines: Iterable[str], fd: int = 2) -> None:
    """Write lines to standard error, each as it may be displayed. If they can't be written, that is
    not an error, since there is no other place to report it, and is not waited for.
    """
    # All of them before the first is written: memory may be what there is too little of.
    shown = [printable(line).encode(errors="backslashreplace") + b"\n" for line in lines]
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    for line in shown:
        if poller.poll(1000 * _PATIENCE):
            with contextlib.suppress(OSError):
                write_all(fd, line)  # in one piece for a pipe (PIPE_BUF), which has room for it now


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``, in as many pieces as it takes. Raises OSError."""
    while data:
        data = data[os.write(fd, data) :]
