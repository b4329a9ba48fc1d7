# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of descriptors: each has its meaning, and none below the first flow's is ever free.

What is done to all descriptors is done in processes of their own.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.ipc.descriptors import (
    FIRST_LISTENER,
    LATE_MAX,
    LATE_SHARE,
    first_flow,
    late,
)
from tests.support import fresh

BEGIN = """
import fcntl, json, os, resource, socket, sys
from hardsplice.ipc import descriptors
from hardsplice.model.errors import HardspliceError
def table():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the listing's own
    return found
def inheritable():
    return [fd for fd in table() if os.get_inheritable(fd)]
def say(thing):
    print(json.dumps(thing), file=out, flush=True)
out = os.fdopen(fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 900), "w")
"""


def run(program: str, *, passed: tuple[int, ...] = ()) -> list[Any]:
    """What a program says that is started afresh."""
    said = fresh.output(BEGIN + program, passed=passed)
    return [json.loads(line) for line in said.splitlines()]


# --- where flows begin ----------------------------------------------------------------------------


@given(st.integers(0, 70_000), st.integers(3, 1 << 20))
def test_flows_begin_behind_all_listeners_and_those_that_may_come(
    listeners: int, limit: int
) -> None:
    first = first_flow(listeners + late(limit))
    assert first - FIRST_LISTENER - listeners == min(LATE_MAX, limit // LATE_SHARE)


# --- taking numbers -------------------------------------------------------------------------------


def test_every_number_below_the_first_flow_is_taken() -> None:
    """By /dev/null, but for the standard streams and what belongs there; the next descriptor gets
    the first number behind.
    """
    read, write = os.pipe()
    with open("/etc/hostname") as kept, open("/etc/hostname") as left:
        taken, new, inherited = run(
            f"""
for fd, number in (({kept.fileno()}, 6), ({left.fileno()}, 8)):
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)
before = table()
descriptors.reserve(20, (6,))
say({{fd: what == "/dev/null" for fd, what in table().items() if fd < 900}})
say(os.open("/dev/zero", os.O_RDONLY))
say([fd for fd in inheritable() if 2 < fd < 20 and fd != 6])
""",
            passed=(kept.fileno(), left.fileno()),
        )
    os.close(read)
    os.close(write)
    assert set(taken) >= {str(fd) for fd in range(20)}
    assert not taken["6"]
    assert all(taken[str(fd)] for fd in range(3, 20) if fd != 6), "3 to 5, 8: what was left there"
    assert new == 20
    assert inherited == []


def test_too_many_listeners_are_a_failure_with_a_next_step() -> None:
    (lines,) = run("""
resource.setrlimit(resource.RLIMIT_NOFILE, (950, 950))
try:
    descriptors.reserve(1000, (out.fileno(),))
except HardspliceError as failure:
    say(list(failure.lines()))
""")
    assert "cannot keep room for 990 listeners" in lines[0]
    assert "ulimit -n" in lines[1]


def test_the_limit_is_raised_as_far_as_it_goes() -> None:
    (said, limits) = run("""
resource.setrlimit(resource.RLIMIT_NOFILE, (920, 1000))
say(descriptors.raise_limit())
say(resource.getrlimit(resource.RLIMIT_NOFILE))
""")
    assert (said, limits) == ([920, 1000], [1000, 1000])


# --- keeping some ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "wanted"),
    [
        (12, ()),
        (12, (0, 1, 2, 3)),
        (12, (3, 10, 11, 12, 13, 15, 40)),
        (12, (12,)),
        (12, (39, 40)),
        (3, (3, 4, 7)),
    ],
)
def test_what_is_not_wanted_is_closed_or_dev_null(first: int, wanted: tuple[int, ...]) -> None:
    ((outcome, high),) = run(f"""
wanted, first = {wanted!r}, {first}
keep = out.fileno()
for fd in range(1, 41):
    if fd not in (0, keep):
        where = os.open("/dev/zero", os.O_RDONLY)
        if where != fd:
            os.dup2(where, fd)
            os.close(where)
os.dup2(os.open("/dev/zero", os.O_RDONLY), 990)  # far behind
descriptors.keep((*wanted, keep), first)
found = table()
say([{{fd: found.get(fd) for fd in range(41)}}, found.get(990)])
""")
    for fd in range(1, 41):
        if fd in wanted:
            expected = "/dev/zero"
        elif fd < first:
            expected = "/dev/null"
        else:
            expected = None
        assert outcome[str(fd)] == expected, fd
    assert outcome["0"] == "/dev/null", "where the others' come from"
    assert high is None


def test_places_that_were_reserved_are_given_up_whatever_came_to_be_there() -> None:
    (found, again) = run("""
names = (3, 9)
for fd in (11, *names):
    os.dup2(os.open("/dev/zero", os.O_RDONLY), fd)
descriptors.reserve(20, (11,))
zero = os.open("/dev/zero", os.O_RDONLY)
for fd in names:
    os.dup2(zero, fd)  # as of whoever has no place
descriptors.copy(zero, 12)
descriptors.copy(zero, 13)
descriptors.move(descriptors.above(zero, 30, "it"), 14)
descriptors.copy(zero, 15)
descriptors.clear((15,))
descriptors.copy(zero, 15)
descriptors.keep((13, out.fileno()), 20)
say({fd: what for fd, what in table().items() if 2 < fd < 40})
descriptors.keep((out.fileno(),), 20)
say({fd: what for fd, what in table().items() if 2 < fd < 40})
""")
    assert found == {str(fd): "/dev/zero" if fd == 13 else "/dev/null" for fd in range(3, 20)}
    assert again == dict.fromkeys(found, "/dev/null")


def test_those_above_a_limit_that_was_lowered_are_closed_too() -> None:
    (high,) = run("""
os.dup2(0, 990)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
descriptors.keep((0, out.fileno()), 3)
say(sorted(table()))
""")
    assert 990 not in high


# --- moving them ----------------------------------------------------------------------------------


def test_a_descriptor_is_moved_copied_and_cleared() -> None:
    (above, moved, copied, cleared, inherited) = run("""
descriptors.reserve(20, ())
fd = os.open("/dev/zero", os.O_RDONLY)
high = descriptors.above(fd, 30, "it")
say([high, table()[high]])
descriptors.move(high, 12)
say([high in table(), table()[12]])
descriptors.copy(fd, 13)
descriptors.move(13, 13)
say([fd in table(), table()[13]])
descriptors.clear((12, 13))
say([table()[12], table()[13]])
say([fd for fd in inheritable() if fd > 2])
""")
    assert above == [30, "/dev/zero"]
    assert moved == [False, "/dev/zero"]
    assert copied == [True, "/dev/zero"]
    assert cleared == ["/dev/null", "/dev/null"]
    assert inherited == []


def test_one_for_which_there_is_no_room_is_a_failure() -> None:
    (line,) = run("""
resource.setrlimit(resource.RLIMIT_NOFILE, (920, 920))
try:
    descriptors.above(0, 920, "listener web")
except HardspliceError as failure:
    say(str(failure))
""")
    assert line.startswith("cannot use listener web: ")


def test_standard_streams_become_dev_null() -> None:
    (found,) = run("""
for fd in (0, 2):
    os.dup2(os.open("/dev/zero", os.O_RDWR), fd)
descriptors.null_standard_streams((0, 2))
say([table()[0], table()[2], [fd for fd in inheritable() if fd in (0, 2)]])
""")
    assert found == ["/dev/null", "/dev/null", []]
