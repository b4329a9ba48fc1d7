# SPDX-License-Identifier: GPL-2.0-or-later
"""Which signals the host monitor takes, and which of them COMMAND gets from elsewhere."""

from __future__ import annotations

import signal

from hardsplice.kernel import linux

# Without a COMMAND these end hardsplice.
ENDING = (signal.SIGTERM, signal.SIGINT)
# Signals by which COMMAND is asked to end.
FINAL = (*ENDING, signal.SIGHUP, signal.SIGQUIT)
# Signals that ask no process to end.
HARMLESS = (signal.SIGWINCH, signal.SIGCONT)
_SERVING = (*FINAL, signal.SIGUSR1, signal.SIGUSR2)
# Signals that report what the process itself or a child of it did; and those that stop it, which
# its parent has to see.
_ITS_OWN = frozenset({
    signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS,
    signal.SIGTRAP, signal.SIGPIPE, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGURG, signal.SIGCHLD,
    signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
})  # fmt: skip
# Signals that a terminal sends to all of its foreground group: COMMAND gets them from there.
_FOR_GROUPS = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGWINCH})


def take(*, has_command: bool) -> int:
    """Receive these signals through a descriptor from now on, as linux.signalfd does."""
    numbers = taken(has_command=has_command)
    # A process in the background may not write to some terminals, nor set the foreground group.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*numbers, signal.SIGTTOU))
    return linux.signalfd(numbers)


def taken(*, has_command: bool) -> tuple[int, ...]:
    """The signals that the host monitor reads: all that can be sent to COMMAND."""
    if not has_command:
        return (*_SERVING, signal.SIGCHLD)
    return (*sorted(signal.valid_signals() - _ITS_OWN), signal.SIGCHLD)


def is_to_be_passed_on(number: int, code: int, *, is_told_of_hangup: bool) -> bool:
    """Whether COMMAND hasn't got a signal that the host monitor has; ``code`` is its si_code, and
    ``is_told_of_hangup`` says whether only this process gets a hangup.
    """
    if code != linux.SI_KERNEL or number not in _FOR_GROUPS:
        return True
    return number == signal.SIGHUP and is_told_of_hangup
