# SPDX-License-Identifier: GPL-2.0-or-later
"""Two heuristics that a relay learns from its clients' behaviour. Each saves a system call when a
guess is right. No I/O here.

A wrong guess costs a call that returns EAGAIN, so each is given up quickly and taken up slowly.
"""

from __future__ import annotations

BURST_MAX = 16  # connections to accept for each turn that the others have
SURE = 3  # right guesses that are remembered; a wrong one takes two of them away
GUESS_AGAIN = 64  # connections until what was given up is tried again


class Burst:
    """How many connections to accept at once: one, unless they keep coming round after round.

    In a round each descriptor that is ready has one turn. If more are ready than one wait reports,
    a round is several turns, and listeners wait for theirs like the others. So that new clients get
    the same share however many those are, the number to accept grows with the turns of a round.
    """

    __slots__ = ("_round", "_turn", "due", "size")

    def __init__(self) -> None:
        self.size = 1
        self.due = 1  # size times the turns of the round
        self._turn = self._round = 0

    def begin(self, turn: int, rounds: int, longest: int = 1) -> int:
        """How many to accept in this turn, at the most. ``rounds`` have ended by now; one takes no
        more than ``longest`` turns, however many are ready.
        """
        if rounds - self._round > 1:  # there was one with nothing to accept
            self.size = 1
            self._turn = turn - 1
        self.due = self.size
        if longest > 1:  # max and min cost more than all of the rest
            self.due *= max(1, min(turn - self._turn, longest))
        self._turn, self._round = turn, rounds
        return self.due

    def end(self, accepted: int) -> None:
        """So many were accepted."""
        if accepted == self.due:
            self.size = min(2 * self.size, BURST_MAX)
        else:
            self.size = max(1, min(accepted, self.size))


class Eagerness:
    """Whether clients have sent something by the time that their target is connected: reading at
    once then spares an event, and with one connection at a time a wait.
    """

    __slots__ = ("_sure", "_until")

    def __init__(self) -> None:
        self._sure = SURE
        self._until = 0

    def expects(self) -> bool:
        """Whether to read now. Called once a connection."""
        if self._sure:
            return True
        self._until -= 1
        return self._until < 0

    def learn(self, *, right: bool) -> None:
        """Whether there was input when it was expected."""
        if right:
            self._sure = min(self._sure + 1, SURE)
            return
        self._sure = max(self._sure - 2, 0)
        if not self._sure:
            self._until = GUESS_AGAIN
