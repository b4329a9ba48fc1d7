# SPDX-License-Identifier: GPL-2.0-or-later
"""What each child of a monitor may say, and when: what is not in a table is a breach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.ipc.dialogue import (
    DYNAMIC_RELAY,
    INIT,
    NAMESPACE_MONITOR,
    OF_INIT,
    OF_NAMESPACE_MONITOR,
    RELAY,
    ChildState,
    Dialogue,
    Rules,
    last_words,
)
from hardsplice.ipc.messages import Kind, MalformedError, Record, on
from hardsplice.model import roles
from hardsplice.model.roles import HOST, INBOUND_RELAY, NAMESPACE, OUTBOUND_RELAY, Role
from hardsplice.model.unforeseen import LIMIT_HINTS
from hardsplice.monitor.notes import LACKING_LENGTH, LACKING_MAX, newly_lacking

ONCE = (Kind.READY, Kind.READY_PLACING, Kind.EXITED)
CHILDREN = {
    "relay": RELAY,
    "dynamic relay": DYNAMIC_RELAY,
    "namespace monitor": NAMESPACE_MONITOR,
    "init": INIT,
}
children = pytest.mark.parametrize("rules", CHILDREN.values(), ids=CHILDREN.keys())


def heard(rules: Rules, *kinds: int, state: ChildState = ChildState.STARTING) -> ChildState:
    """Where a child stands that has said all this."""
    dialogue = Dialogue(rules)
    dialogue.state = state
    for kind in kinds:
        dialogue.check(Record(kind))
    return dialogue.state


def refused(rules: Rules, *kinds: int, state: ChildState = ChildState.STARTING) -> None:
    """All but the last is due."""
    where = heard(rules, *kinds[:-1], state=state)
    with pytest.raises(MalformedError):
        heard(rules, kinds[-1], state=where)


@pytest.mark.parametrize("rules", [RELAY, NAMESPACE_MONITOR], ids=["relay", "namespace monitor"])
def test_ready_is_said_once_and_last_words_are_the_last(rules: Rules) -> None:
    assert heard(rules, Kind.READY, Kind.NOTE, Kind.FLOW, Kind.NOTE) is ChildState.SERVING
    refused(rules, Kind.READY, Kind.READY)
    for kind in Kind:
        refused(rules, Kind.READY, Kind.FATAL, kind)
        refused(rules, Kind.FATAL, kind)


def test_a_relay_says_nothing_before_it_is_ready_but_why_it_is_not() -> None:
    for kind in set(Kind) - {Kind.READY, Kind.FATAL}:
        refused(RELAY, kind)


def test_relays_of_a_namespace_monitor_may_be_busy_before_all_of_them_are() -> None:
    assert heard(NAMESPACE_MONITOR, Kind.NOTE, Kind.FLOW, Kind.READY) is ChildState.SERVING
    for kind in (Kind.PONG, Kind.OPENED, Kind.SERVED, Kind.CLOSED):
        refused(NAMESPACE_MONITOR, kind)


def test_init_is_ready_once_it_was_told_to_be_and_command_ends_once() -> None:
    refused(INIT, Kind.READY)
    refused(INIT, Kind.EXITED)
    prepared = ChildState.PREPARING
    refused(INIT, Kind.EXITED, state=prepared)
    refused(INIT, Kind.READY, Kind.READY, state=prepared)
    refused(INIT, Kind.READY, Kind.EXITED, Kind.EXITED, state=prepared)
    refused(INIT, Kind.READY, Kind.FATAL, Kind.FATAL, state=prepared)
    refused(INIT, Kind.READY, Kind.FATAL, Kind.EXITED, state=prepared)
    for last in ((Kind.FATAL,), (Kind.READY, Kind.EXITED), (Kind.READY, Kind.FATAL)):
        assert heard(INIT, *last, state=prepared) is ChildState.ENDING


def test_init_says_that_a_signal_was_passed_on_as_often_as_one_was() -> None:
    dialogue = Dialogue(INIT)
    dialogue.state = ChildState.SERVING
    dialogue.expect(Kind.PASSED_ON)
    dialogue.check(Record(Kind.PASSED_ON))
    with pytest.raises(MalformedError, match="nobody asked"):
        dialogue.check(Record(Kind.PASSED_ON))


def test_init_says_whether_command_is_stopped_as_often_as_it_was_asked() -> None:
    dialogue = Dialogue(INIT)
    dialogue.state = ChildState.SERVING
    dialogue.expect(Kind.CHECKED)
    with pytest.raises(MalformedError, match="nobody asked"):
        dialogue.check(Record(Kind.PASSED_ON))
    dialogue.check(Record(Kind.CHECKED))
    with pytest.raises(MalformedError, match="nobody asked"):
        dialogue.check(Record(Kind.CHECKED))


@children
@given(st.integers(0, 255), st.sampled_from(ChildState))
def test_what_is_refused_changes_nothing(rules: Rules, kind: int, state: ChildState) -> None:
    dialogue = Dialogue(rules)
    dialogue.state = state
    try:
        dialogue.check(Record(kind))
    except MalformedError:
        assert dialogue.state is state


@pytest.mark.parametrize(
    ("rules", "senders"),
    [
        (RELAY, (INBOUND_RELAY, OUTBOUND_RELAY)),
        (DYNAMIC_RELAY, (INBOUND_RELAY, OUTBOUND_RELAY)),
        (NAMESPACE_MONITOR, (NAMESPACE,)),
        (INIT, (roles.INIT,)),
    ],
    ids=["relay", "relay whose ports change", "namespace monitor", "init"],
)
def test_what_is_due_is_its_to_send_at_all(rules: Rules, senders: tuple[Role, ...]) -> None:
    for sender in senders:
        receiver = HOST.name if sender is roles.INIT else sender.parent
        may_be_said = on(sender.name, receiver)
        assert {kind for due in rules.values() for kind in due} <= set(may_be_said)


def test_a_relay_whose_ports_change_is_ready_with_what_its_questions_are_read_from() -> None:
    assert heard(DYNAMIC_RELAY, Kind.READY_PLACING, Kind.NOTE) is ChildState.SERVING
    refused(DYNAMIC_RELAY, Kind.READY)
    refused(DYNAMIC_RELAY, Kind.READY_PLACING, Kind.READY_PLACING)
    refused(RELAY, Kind.READY_PLACING)


@children
def test_what_is_said_once_leads_on(rules: Rules) -> None:
    """Otherwise it could be said for ever."""
    for state, due in rules.items():
        for kind, following in due.items():
            assert kind not in ONCE or following is not state


@pytest.mark.parametrize("rules", [RELAY, NAMESPACE_MONITOR], ids=["relay", "namespace monitor"])
@given(st.lists(st.booleans(), max_size=30))
def test_there_is_an_answer_for_each_question_and_none_more(rules: Rules, said: list[bool]) -> None:
    dialogue = Dialogue(rules)
    dialogue.check(Record(Kind.READY))
    owed = 0
    for is_question in said:
        if is_question:
            dialogue.expect()
            owed += 1
        elif owed:
            dialogue.check(Record(Kind.PONG))
            owed -= 1
        else:
            with pytest.raises(MalformedError):
                dialogue.check(Record(Kind.PONG))


# --- what the namespace monitor had to do without ---


def test_what_is_lacking_is_told_once() -> None:
    assert newly_lacking(b"Landlock\nMDWE\n\nMDWE\nseccomp", ["Landlock"]) == ["MDWE", "seccomp"]
    assert newly_lacking(b"", []) == []


@given(st.binary(max_size=2048))
def test_what_is_lacking_has_a_bound(text: bytes) -> None:
    for some in (text, b"\n".join(str(number).encode() for number in range(500)), b"x" * 2048):
        found = newly_lacking(some, [])
        assert len(found) <= LACKING_MAX
        assert all(0 < len(line) <= LACKING_LENGTH for line in found)


# --- last words -----------------------------------------------------------------------------------

LIMIT = "raise the limit with ulimit -n"


@pytest.mark.parametrize("about", [OF_NAMESPACE_MONITOR, OF_INIT])
def test_last_words_are_about_the_task_of_who_says_them(about: frozenset[tuple[str, str]]) -> None:
    for verb, subject in about:
        text = f"{verb}\n{subject}\nwhy".encode()
        assert str(last_words(text, about)) == f"cannot {verb} {subject}: why"
    for text in (
        b"",
        b"why",
        b"reach\nthe service manager\nno",
        b"trust\nthe namespace monitor\nno",
    ):
        with pytest.raises(MalformedError, match="not about its task"):
            last_words(text, about)


def test_of_one_that_has_not_served_they_are_about_anything() -> None:
    text = b"empty\nthe bounding set\nOperation not permitted\ntry something else"
    failure = last_words(text, None)
    assert str(failure) == "cannot empty the bounding set: Operation not permitted"
    assert failure.hint == "try something else"


def test_a_next_step_is_one_that_we_know() -> None:
    """It is a line of its own: whoever chose it could write any line into the log."""
    text = b"run\nthe namespace monitor\nToo many open files"
    assert LIMIT in LIMIT_HINTS
    assert last_words(text + f"\n{LIMIT}".encode(), OF_NAMESPACE_MONITOR).hint == LIMIT
    for hint in ("inbound, port 22: 10.0.0.9:4444 to 127.0.0.1:22: closed by FIN", f"{LIMIT} now"):
        assert last_words(text + f"\n{hint}".encode(), OF_NAMESPACE_MONITOR).hint is None
    assert last_words(text + b"\nthis", OF_NAMESPACE_MONITOR, ("this",)).hint == "this"
