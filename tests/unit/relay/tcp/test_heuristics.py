# SPDX-License-Identifier: GPL-2.0-or-later
"""Habits: taken on from what comes, given up where they cost."""

from __future__ import annotations

from hardsplice.relay.tcp.heuristics import BURST_MAX, GUESS_AGAIN, SURE, Burst, Eagerness


def test_a_burst_grows_while_connections_come_turn_after_turn_up_to_a_limit() -> None:
    burst = Burst()
    sizes = []
    for turn in range(1, 8):
        sizes.append(burst.begin(turn, turn))
        burst.end(sizes[-1])
    assert sizes == [1, 2, 4, 8, 16, 16, 16]
    assert max(sizes) == BURST_MAX


def test_a_burst_shrinks_to_what_there_was() -> None:
    burst = Burst()
    for turn in range(1, 5):
        burst.end(burst.begin(turn, turn))
    assert burst.begin(5, 5) == 16
    burst.end(3)
    assert burst.begin(6, 6) == 3
    burst.end(0)
    assert burst.begin(7, 7) == 1


def test_connections_with_a_turn_between_them_are_accepted_singly() -> None:
    burst = Burst()
    for turn in (2, 4, 6, 8):
        assert burst.begin(turn, turn) == 1
        burst.end(1)


def test_a_burst_grows_round_after_round_however_many_turns_each_takes() -> None:
    burst = Burst()
    for turn in range(3, 3 * 8, 3):  # three turns a round, none of which ends one
        burst.end(burst.begin(turn, 0, 3))
    assert burst.begin(24, 0, 3) == 3 * BURST_MAX


def test_a_long_time_without_new_clients_is_no_claim_to_a_long_burst() -> None:
    burst = Burst()
    for turn in range(1, 8):
        burst.end(burst.begin(turn, turn))
    assert burst.begin(100_000, 7, 5) == 5 * BURST_MAX


def test_eagerness_survives_one_wrong_guess_and_not_two() -> None:
    habit = Eagerness()
    habit.learn(right=False)
    assert habit.expects()
    habit.learn(right=False)
    assert not habit.expects()


def test_what_was_given_up_is_tried_again_now_and_then() -> None:
    habit = Eagerness()
    habit.learn(right=False)
    habit.learn(right=False)
    waits = [habit.expects() for _ in range(GUESS_AGAIN + 1)]
    assert waits == [False] * GUESS_AGAIN + [True]
    habit.learn(right=True)
    assert habit.expects()
    habit.learn(right=False)
    assert [habit.expects() for _ in range(GUESS_AGAIN + 1)] == waits


def test_right_guesses_are_remembered_only_so_far() -> None:
    habit = Eagerness()
    for _ in range(1000):
        habit.learn(right=True)
    wrong = 0
    while habit.expects():
        habit.learn(right=False)
        wrong += 1
    assert wrong <= SURE
