# SPDX-License-Identifier: GPL-2.0-or-later
"""Which signals the host monitor takes, and who else has them."""

from __future__ import annotations

import signal

from hardsplice.kernel import linux

# Without a COMMAND these end hardsplice.
ENDING = (signal.SIGTERM, signal.SIGINT)
# What people send who want COMMAND to end.
FINAL = (*ENDING, signal.SIGHUP, signal.SIGQUIT)
# Nobody is asked to end by these.
HARMLESS = (signal.SIGWINCH, signal.SIGCONT)
_SERVING = (*FINAL, signal.SIGUSR1, signal.SIGUSR2)
# Those that tell a process of what it did itself, and of its children; and what stops it, which
# whoever waits for it has to see.
_ITS_OWN = frozenset({
    signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS,
    signal.SIGTRAP, signal.SIGPIPE, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGURG, signal.SIGCHLD,
    signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
})  # fmt: skip
# What a terminal sends to all of its foreground group: COMMAND has it already.
_FOR_GROUPS = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGWINCH})


def take(*, has_command: bool) -> int:
    """Have these signals come by a descriptor from now on, as linux.signalfd does."""
    numbers = taken(has_command=has_command)
    # Who stands in the background may not write to some terminals, or give one back.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*numbers, signal.SIGTTOU))
    return linux.signalfd(numbers)


def taken(*, has_command: bool) -> tuple[int, ...]:
    """The signals that the host monitor reads: whatever a COMMAND could be sent."""
    if not has_command:
        return (*_SERVING, signal.SIGCHLD)
    return (*sorted(signal.valid_signals() - _ITS_OWN), signal.SIGCHLD)


def is_to_be_passed_on(number: int, code: int, *, is_told_of_hangup: bool) -> bool:
    """Whether COMMAND lacks a signal that the host monitor has; ``code`` is its si_code, and
    ``is_told_of_hangup`` says whether a hangup is told to this process alone.
    """
    if code != linux.SI_KERNEL or number not in _FOR_GROUPS:
        return True
    return number == signal.SIGHUP and is_told_of_hangup
