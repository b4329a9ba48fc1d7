# SPDX-License-Identifier: GPL-2.0-or-later
"""Whichever modules hardsplice finds for libseccomp and prctl(2), it starts, serves, and gives up
the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.bindings import COMBINATIONS, Combination, Combined, Distributed, lacking
from tests.support.netns import Identity, Namespace
from tests.support.product import Program, free_ports, run
from tests.support.serving import served

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture(scope="module", params=COMBINATIONS, ids=str)
def combined(request: pytest.FixtureRequest) -> Iterator[Program]:
    if reason := lacking(request.param):
        pytest.skip(reason)
    with contextlib.closing(Combined(request.param)) as program:
        yield program


@pytest.fixture(scope="module")
def usual() -> Iterator[Program]:
    """With the first combination that is there."""
    found = next(one for one in COMBINATIONS if not lacking(one))
    with contextlib.closing(Combined(found)) as program:
        yield program


def test_it_serves_and_gives_up_the_same(
    combined: Combined, usual: Program, identity: Identity, namespace: Namespace
) -> None:
    found = served(combined, identity, namespace)
    assert [name for name, _ in found] == ["hs-host", "hs-namespace", "hs-relay-in", "hs-relay-out"]
    assert all(set("".join(fields[:5])) == {"0"} for _, fields in found)
    assert found == served(usual, identity, namespace)


def test_it_runs_a_command_and_says_what_it_uses(combined: Combined, identity: Identity) -> None:
    words = ("--debug", "--sandbox=strict", "-t", f"127.0.0.1/{free_ports()}:80", "--")
    done = run(combined, identity, *words, "sh", "-c", "exit 7")
    assert done.returncode == 7, done.stderr
    library, prctl = combined.combination
    assert f"libseccomp by {library}, prctl by {prctl}" in done.stderr


def test_the_system_s_python_finds_what_its_distribution_installed(
    usual: Program, identity: Identity, namespace: Namespace
) -> None:
    """In dist-packages, where only site looks: the isolated interpreter is told."""
    with contextlib.closing(Distributed()) as program:
        assert served(program, identity, namespace) == served(usual, identity, namespace)


def test_without_any_binding_the_start_ends_with_the_next_step(
    usual: Program, identity: Identity
) -> None:
    nothing = Combination("none", "hardsplice itself")
    with contextlib.closing(Combined(nothing)) as program:
        path = {"PYTHONPATH": str(program.stage())}
        done = run(usual, identity, "-t", "none", "--", "true", environment=path)
    said = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(said)) == (1, "", 2)
    assert said[0].startswith("hardsplice: cannot import pyseccomp or seccomp: ")
    assert said[1].startswith("hardsplice: install one of them: ")
