# SPDX-License-Identifier: GPL-2.0-or-later
"""The budgets of system calls and descriptors, which are what makes this engine fast.

strace(1) counts every call of every process, monitors included, from start to end. The same run is
done twice, with a short and with a long load; the difference is the load's alone. A count doesn't
depend on how fast the machine is, so unlike a time it may fail a build.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.load import Bed, Kit, LoadError
from hardsplice.model.families import FAMILIES
from hardsplice.relay.pools import POOL_SIZE
from tests.bench.tracing import Traced, calls_of, skip_without_strace
from tests.support import procfs
from tests.support.netns import Identity, ordinary_user
from tests.support.product import Instance, Program, free_ports

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

IDLE = 500
ENOUGH_FILES = 4096


@pytest.fixture(scope="module")
def kit() -> Iterator[Kit]:
    try:
        with Kit() as made:
            yield made
    except LoadError as error:
        pytest.skip(str(error))


@pytest.fixture
def bed(kit: Kit, identity: Identity) -> Iterator[Bed]:
    made = Bed(kit, f"budget-{identity.name}", identity)
    yield made
    made.close()


@pytest.fixture
def may_trace(identity: Identity) -> None:
    skip_without_strace(identity)


def calls_of_load(
    program: Program, bed: Bed, folder: Path, mode: str, operations: int, *options: str
) -> int:
    """Every system call of a run that carries so many operations."""
    summary = folder / f"{mode}-{operations}"
    port = free_ports()
    spec = f"127.0.0.1/{port}:{bed.port}"
    arguments = ["-f", "-q", "-t", spec, *_user(bed), *_namespace(bed)]
    instance = Instance(Traced(program, summary), bed.owner, arguments)
    try:
        instance.wait_ready()
        done = bed.kit.measure(mode, port, bed.shared, "--operations", str(operations), *options)
        assert done["operations"] == operations
        return sum(calls_of(instance, summary).values())
    finally:
        instance.discard()


def _namespace(bed: Bed) -> list[str]:
    return ["--netns", str(bed.path)] if bed.path else [str(bed.pid)]


def _user(bed: Bed) -> list[str]:
    """A user of its own for what root starts. As nobody, it would share an allowance of pipes with
    whatever else runs so, and with pipes of a page or two each connection costs a call more."""
    user = ordinary_user().uid
    return ["--runas", f"{user}:{user}"] if bed.owner.is_root and user else []


@pytest.mark.parametrize(
    ("at_once", "rounds", "budget"),
    [(1, 1000, 22), (32, 2000, 18)],
    ids=["sequential", "32-at-once"],
)
@pytest.mark.usefixtures("may_trace")
def test_a_connection_costs_no_more_calls_than_its_budget(
    program: Program,
    bed: Bed,
    user_directory: Path,
    at_once: int,
    rounds: int,
    budget: int,
) -> None:
    options = ("--connections", str(at_once))
    short = calls_of_load(program, bed, user_directory, "visits", 100, *options)
    long = calls_of_load(program, bed, user_directory, "visits", 100 + rounds, *options)
    assert (long - short) / rounds <= budget


@pytest.mark.usefixtures("may_trace")
def test_a_round_trip_costs_no_more_calls_than_its_budget(
    program: Program, bed: Bed, user_directory: Path
) -> None:
    rounds, budget = 2000, 6
    short = calls_of_load(program, bed, user_directory, "rounds", 100, "--size", "1")
    long = calls_of_load(program, bed, user_directory, "rounds", 100 + rounds, "--size", "1")
    # Two runs differ by a few calls that are the allocator's or a signal's; one more call
    # in each round would be 2,000.
    assert long - short <= rounds * budget + rounds // 100


def test_an_idle_connection_costs_two_descriptors(program: Program, bed: Bed) -> None:
    port = free_ports()
    arguments = ["-f", "-q", "-t", f"127.0.0.1/{port}:{bed.port}", *_namespace(bed)]
    instance = Instance(program, bed.owner, arguments, descriptors=ENOUGH_FILES)
    try:
        instance.wait_ready()
        before = _descriptors(instance)
        with bed.kit.idle(port, bed.shared, IDLE) as opened:
            assert opened == IDLE
            # The pools of sockets may have been empty before and be full now; a third descriptor
            # for each connection would be far more.
            assert _descriptors(instance) - before <= 2 * IDLE + len(FAMILIES) * POOL_SIZE
    finally:
        instance.stop()


def _descriptors(instance: Instance) -> int:
    return sum(len(procfs.descriptors(pid)) for pid in instance.processes())
