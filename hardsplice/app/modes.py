# SPDX-License-Identifier: GPL-2.0-or-later
"""The namespaces that are served: which of the three synopses a command line is."""

from __future__ import annotations

from hardsplice.app.options import Mode
from hardsplice.cli import values
from hardsplice.kernel.hints import TYPE_CHECKING
from hardsplice.model.errors import HardspliceError, quote

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAST_PID = 2**22  # PID_MAX_LIMIT, include/linux/threads.h


def detect_mode(positional: Sequence[str], netns: str | None) -> Mode:
    """Which of the three synopses this is. Raises HardspliceError where it is a mixture of them."""
    first = positional[0] if positional else ""
    is_pid = first.isascii() and first.isdigit()
    if netns is not None:
        if is_pid and len(positional) == 1:
            reason = "a process has a network namespace already; leave out one of the two"
            raise HardspliceError("combine", f"--netns with PID {quote(first)}", reason)
        if positional:
            reason = "COMMAND runs in new namespaces; leave out --netns, or run it with nsenter(1)"
            raise HardspliceError("combine", f"--netns with COMMAND {quote(first)}", reason)
        return Mode.NETNS
    if positional:
        _refuse_nothing(first)
    if not is_pid:
        return Mode.COMMAND
    if len(positional) > 1:
        reason = (
            f"after it stands {quote(positional[1])}; put options before it "
            f"(a command of that name is ./{first})"
        )
        raise HardspliceError("use", f"PID {quote(first)}", reason)
    return Mode.PID


def _refuse_nothing(first: str) -> None:
    """Words that an unset variable, or another program's answer, gives if there is no process."""
    if not first.strip():
        reason = "it is empty, as a variable is that was not set; write one, or leave it out"
        raise HardspliceError("use", f"COMMAND or PID {quote(first)}", reason)
    words = first.split()
    if first != words[0] and all(word.isascii() and word.isdigit() for word in words):
        reason = "it is not one number; write one, and nothing else"
        raise HardspliceError("use", f"PID {quote(first)}", reason)


def pid_of(text: str) -> int:
    """The PID that a word of digits is. Raises HardspliceError where it can't be one."""
    pid = values.number(text, 1, _LAST_PID)
    if pid is not None:
        return pid
    if not text.strip("0"):
        reason = "no process has it; it is what engines say of a container that does not run"
        raise HardspliceError(
            "use", f"PID {quote(text)}", f"{reason} (a command of that name is ./{text})"
        )
    reason = f"PIDs are 1 to {_LAST_PID} (a command of that name is ./{text})"
    raise HardspliceError("use", f"PID {quote(text)}", reason)


def refuse_no_command(*, has_terminal: bool) -> None:
    """Without COMMAND a shell is run, which needs a terminal: without one, COMMAND or PID was
    probably meant to be given, and a variable for it was empty.
    """
    if not has_terminal:
        reason = "there is neither COMMAND nor PID, and no terminal to run a shell at"
        hint = "write COMMAND or PID after the options (was a variable empty?); a shell is: -- sh"
        raise HardspliceError("start", "hardsplice", reason, hint)
