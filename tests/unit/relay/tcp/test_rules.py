# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of a flow, held against an independent statement of them, for every state there is."""

from __future__ import annotations

import ast
import inspect
import itertools
import select

import pytest

from hardsplice.relay.tcp import rules as module
from hardsplice.relay.tcp.rules import (
    BLOCKED,
    CLIENT,
    CLOSE,
    CONNECTING,
    END,
    FINISHED,
    NEXT,
    OPEN,
    PAUSED,
    RESET,
    SHUT_SINK,
    SIDES,
    STATE_NAMES,
    STATES,
    STEP_NAMES,
    STEPS,
    TARGET,
    UNWATCHED,
    Flow,
    diagram,
    end_of_source,
    marked,
    side_failed,
    step,
    unmarked,
    watch,
)
from hardsplice.sandbox.address_book import USUAL, Pointer


def flow_in(client: int, target: int) -> Flow:
    """A flow whose directions are in these states."""
    flow = Flow(3, ())
    flow.state[:] = [client, target]
    return flow


# --- steps ---

LEGAL = {
    "PAUSED": {"CONNECT": "CONNECTING", "RESUME": "OPEN", "ABANDON": "FINISHED"},
    "CONNECTING": {"CONNECT": "CONNECTING", "RESUME": "OPEN"},
    "OPEN": {"STARVE": "PAUSED", "BLOCK": "BLOCKED", "END": "FINISHED", "ABANDON": "FINISHED"},
    "BLOCKED": {"UNBLOCK": "OPEN", "ABANDON": "FINISHED"},
    "FINISHED": {"ABANDON": "FINISHED"},
}


@pytest.mark.parametrize("direction", SIDES)
@pytest.mark.parametrize("what", STEPS)
@pytest.mark.parametrize("state", STATES)
def test_a_step_leads_where_the_rules_say_or_is_refused(
    state: int, what: int, direction: int
) -> None:
    for other in STATES:
        flow = flow_in(state, other) if direction == CLIENT else flow_in(other, state)
        after = LEGAL[STATE_NAMES[state]].get(STEP_NAMES[what])
        if after is None:
            with pytest.raises(KeyError):
                step(flow, direction, what)
            assert flow.state[direction] == state, "a refused step changes nothing"
        else:
            step(flow, direction, what)
            assert STATE_NAMES[flow.state[direction]] == after
        assert flow.state[1 - direction] == other, "a step is one direction's alone"


def test_nothing_leads_out_of_the_end() -> None:
    assert {after for (state, _), after in NEXT.items() if state == FINISHED} == {FINISHED}


def test_every_state_is_reached_from_the_first_and_reaches_the_last() -> None:
    def reached(start: int) -> set[int]:
        found = {start}
        while more := {after for (state, _), after in NEXT.items() if state in found} - found:
            found |= more
        return found

    assert reached(PAUSED) == set(STATES)
    assert all(FINISHED in reached(state) for state in STATES)


def test_end_of_file_is_met_only_where_nothing_is_held() -> None:
    """R1: only an OPEN direction, which holds no byte, can end; so FIN never overtakes data."""
    assert {state for state, what in NEXT if what == END} == {OPEN}


# --- what epoll is asked for ---


def asked(flow: Flow, side: int) -> int:
    """The rules in words, one after the other; written without a look at the tables."""
    out_of, into = flow.state[side], flow.state[1 - side]
    mask = 0
    if out_of == OPEN:  # R3: a source is watched while its direction can take something
        mask |= select.EPOLLIN | select.EPOLLRDHUP
        if not flow.urgent_hidden[side]:  # R6
            mask |= select.EPOLLPRI
    if into in (BLOCKED, CONNECTING):  # for room, or for the handshake
        mask |= select.EPOLLOUT
    nothing_for_the_sink = into not in (BLOCKED, CONNECTING)
    if flow.edge[side] and out_of in (OPEN, FINISHED) and nothing_for_the_sink:
        # Reported once: so it can stay watched when it has finished, and never spins (R3).
        return select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
    if not mask and flow.muted[side]:  # R2: HUP repeated for ever ends nothing and tells nothing
        return UNWATCHED
    return mask


BOTH = tuple((client, target) for client in (False, True) for target in (False, True))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("client", "target"), tuple(itertools.product(STATES, repeat=2)))
def test_the_mask_is_a_function_of_the_states_and_follows_the_rules(
    client: int, target: int, side: int
) -> None:
    for muted, hidden, failed, edge in itertools.product(BOTH, repeat=4):
        if (edge[0] and hidden[0]) or (edge[1] and hidden[1]):
            continue  # urgent data makes a source level-triggered
        flow = flow_in(client, target)
        flow.muted, flow.urgent_hidden, flow.failed, flow.edge = muted, hidden, failed, edge
        wanted = asked(flow, side)
        for watched, held in itertools.product((UNWATCHED, 0, select.EPOLLIN), (0, 17)):
            flow.watched[:] = [watched, watched]
            flow.held[:] = [held, held]
            assert watch(flow, side) == wanted, "what was asked for before has no say"


def test_a_blocked_sink_takes_its_source_out_of_sight() -> None:
    flow = flow_in(BLOCKED, FINISHED)
    assert watch(flow, CLIENT) == 0
    assert watch(flow, TARGET) == select.EPOLLOUT


def test_an_unwatched_side_is_one_that_asks_for_nothing() -> None:
    """Whatever is muted, nothing that a direction waits for is ever missed."""
    for client, target in itertools.product(STATES, repeat=2):
        flow = flow_in(client, target)
        flow.muted = (True, True)
        if client == OPEN:
            assert watch(flow, CLIENT) & select.EPOLLIN
        if client == BLOCKED:
            assert watch(flow, TARGET) & select.EPOLLOUT


def test_a_mask_of_nothing_is_not_the_same_as_unwatched() -> None:
    """R4: a reset must be noticed where nothing is read; epoll reports it with a mask of 0, too."""
    flow = flow_in(FINISHED, OPEN)
    flow.edge = (False, True)
    assert watch(flow, CLIENT) == 0
    flow.muted = (True, False)
    assert watch(flow, CLIENT) == UNWATCHED


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("pair", BOTH)
def test_a_pair_changes_on_one_side(pair: tuple[bool, bool], side: int) -> None:
    for change, value in ((marked, True), (unmarked, False)):
        changed = change(pair, side)
        assert changed[side] is value
        assert changed[1 - side] is pair[1 - side]


# --- ends ---


@pytest.mark.parametrize("direction", SIDES)
@pytest.mark.parametrize("failed", BOTH)
@pytest.mark.parametrize("other", STATES)
def test_what_an_end_means(other: int, failed: tuple[bool, bool], direction: int) -> None:
    flow = flow_in(OPEN, OPEN)
    flow.state[1 - direction] = other
    flow.failed = failed
    verdict = end_of_source(flow, direction)
    if failed[direction]:  # R4: the end of a side that failed is no clean end
        assert verdict == RESET
    elif other == FINISHED:
        assert verdict == CLOSE
    else:  # R7: FIN is passed on, the other direction goes on
        assert verdict == SHUT_SINK
    assert flow.state[1 - direction] == other, "a decision changes nothing"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("out_of", STATES)
@pytest.mark.parametrize("into", [PAUSED, OPEN, BLOCKED, FINISHED])
def test_a_side_that_failed_takes_nothing_more_but_is_read_to_its_end(
    into: int, out_of: int, side: int
) -> None:
    flow = flow_in(PAUSED, PAUSED)
    flow.state[side], flow.state[1 - side] = out_of, into
    is_over = side_failed(flow, side)
    assert flow.failed == (side == CLIENT, side == TARGET)
    assert flow.state[1 - side] == FINISHED
    assert flow.state[side] == out_of
    assert is_over == (out_of == FINISHED)


def test_a_new_flow_watches_nothing_and_holds_nothing() -> None:
    flow = Flow(7, (Pointer(USUAL, 0, 0, bytes(16)),), 3)
    assert flow.fd == [7, -1]
    assert flow.state == [PAUSED, PAUSED]
    assert flow.held == [0, 0]
    assert flow.pipe == [None, None]
    assert flow.watched == [UNWATCHED, UNWATCHED]
    assert not any(flow.failed + flow.muted + flow.urgent_hidden)


# --- the module itself ---


def test_the_rules_do_no_input_or_output() -> None:
    imported = set()
    tree = ast.parse(inspect.getsource(module))
    # What is only for a type checker is no import.
    unseen = [node for node in tree.body if ast.unparse(node).startswith("if TYPE_CHECKING")]
    tree.body = [node for node in tree.body if node not in unseen]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert imported <= {"__future__", "enum", "hardsplice.kernel.hints"}


@pytest.mark.parametrize("name", ["IN", "PRI", "OUT", "ERR", "HUP", "RDHUP"])
def test_the_event_bits_are_the_kernels(name: str) -> None:
    assert getattr(module, f"EPOLL{name}") == getattr(select, f"EPOLL{name}")


def test_the_diagram_shows_each_transition_once() -> None:
    lines = diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", f"    [*] --> {STATE_NAMES[PAUSED]}"]
    assert lines[-1] == f"    {STATE_NAMES[FINISHED]} --> [*]"
    assert len(lines[2:-1]) == len(set(lines)) - 3 == len(NEXT)
    for (state, what), after in NEXT.items():
        assert f"    {STATE_NAMES[state]} --> {STATE_NAMES[after]}: {STEP_NAMES[what]}" in lines
