# SPDX-License-Identifier: GPL-2.0-or-later
"""What went wrong, in the one form that a person gets to read.

Every error that hardsplice reports is a `Failure`: what it could not do (a verb), to what (an
object), and why (a reason), with the next step where there is one. Code below the top raises and
never prints; only the top knows where messages go. Whatever a file name or an option smuggles in,
a message stays on its line: characters that don't print are shown escaped.
"""

from __future__ import annotations

import os

__all__ = ["Failure", "failure_of", "printable", "quote", "reason_of", "relay_lost", "text_of"]

_QUOTED_LIMIT = 64


class Failure(Exception):  # noqa: N818 - it is what messages call it
    """An error that ends the program: `cannot <verb> <object>: <reason>`."""

    def __init__(
        self,
        verb: str,
        object: str,  # noqa: A002 - the message's grammar: verb, object, reason
        reason: str,
        hint: str | None = None,
    ) -> None:
        super().__init__(verb, object, reason, hint)
        self.verb = verb
        self.object = object
        self.reason = reason
        self.hint = hint

    def __str__(self) -> str:
        return printable(f"cannot {self.verb} {self.object}: {self.reason}")

    def lines(self, program: str = "hardsplice") -> tuple[str, ...]:
        """The lines that the top shows: the message, then the next step if there is one."""
        texts = (str(self),) if self.hint is None else (str(self), printable(self.hint))
        return tuple(f"{program}: {text}" for text in texts)


def relay_lost(direction: str, reason: str) -> Failure:
    """What both monitors end with when a relay of theirs can't be kept."""
    return Failure("keep", f"the {direction} relay running", reason)


def text_of(failure: Failure) -> bytes:
    """A Failure as one process tells it another: verb, object, reason and perhaps a next step, one
    a line.
    """
    parts = [failure.verb, failure.object, failure.reason]
    if failure.hint:
        parts.append(failure.hint)
    return "\n".join(parts).encode(errors="replace")


def failure_of(text: bytes) -> Failure:
    """The Failure that was told, by whomever."""
    parts = text.decode(errors="replace").split("\n", 3)
    if len(parts) < 3:
        return Failure("go on", "serving", parts[0] or "no reason was given")
    return Failure(parts[0], parts[1], parts[2], parts[3] if len(parts) > 3 else None)


def reason_of(error: OSError) -> str:
    """The reason alone ("Permission denied"): no errno, no file name, which the object says."""
    if error.strerror:
        return error.strerror
    if error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def quote(text: str) -> str:
    """`text` as a message shows what somebody typed: in quotes, and cut where it is very long."""
    if len(text) > _QUOTED_LIMIT:
        text = text[: _QUOTED_LIMIT - 3] + "..."
    return f"'{text}'"


def printable(text: str) -> str:
    """``text`` on one line, whatever is in it."""
    # repr() knows how to spell what doesn't print, undecodable bytes of argv included.
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
