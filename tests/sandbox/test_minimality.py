# SPDX-License-Identifier: GPL-2.0-or-later
"""No rule is too many: without it the smoke run ends with a process killed by SIGSYS."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hardsplice.policyfile import OUTSIDE, Rule
from hardsplice.seccomp import ROLES, load_policy, native_arch
from tests.sandbox.captured import Captured, folder_for
from tests.sandbox.job import Job
from tests.sandbox.smoke import Killed, Smoke
from tests.support.netns import Identity, Namespace

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
AT_ONCE = 2
# A rule that is one condition, which the policy's language can only spell as many.
WHOLE = {("relay", "close")}


@pytest.fixture(scope="module")
def captured() -> Iterator[Captured]:
    program = Captured()
    yield program
    program.close()


def key(rule: Rule) -> str:
    """As takeover.py has it."""
    return f"{rule.role}: {rule.call} {rule.condition()}".strip()


def ways() -> list[str]:
    """All that hardsplice's own functions are allowed: each rule, and each way of a rule with several."""
    found = []
    for role in ROLES:
        for rule in load_policy(role).rules_for(native_arch()):
            if rule.role != role or any(name in OUTSIDE for name in rule.where):
                continue
            if len(rule.when) < 2 or (rule.role, rule.call) in WHOLE:
                found.append(key(rule))
            else:
                found += [key(replace(rule, when=(way,))) for way in rule.when]
    return found


def run_for(way: str) -> Callable[[Smoke, Job], None]:
    """The smoke run in which it is needed."""
    if way.startswith("init: "):
        return Smoke.command
    if way == "monitor: close fd == CHANNEL":
        return Smoke.background
    return Smoke.serve


@contextlib.contextmanager
def smokes(captured: Captured, identity: Identity, number: int) -> Iterator[queue.SimpleQueue[Smoke]]:
    """So many surroundings for runs, to be taken and put back."""
    free: queue.SimpleQueue[Smoke] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            namespace = stack.enter_context(Namespace(identity))
            folder = stack.enter_context(folder_for(identity))
            free.put(Smoke(captured, identity, namespace, folder))
        yield free


@dataclass
class Bench:
    """Where runs are made."""

    captured: Captured
    free: queue.SimpleQueue[Smoke]
    board: str

    def without(self, way: str) -> str:
        """What comes of a run without it: who was killed, or why that isn't shown."""
        smoke = self.free.get()
        try:
            run_for(way)(smoke, Job(board=self.board, drop=(way,)))
        except Killed as killed:
            return f"killed: {killed}"
        except BaseException as error:
            return f"not shown: {type(error).__name__}: {error}"
        finally:
            self.free.put(smoke)
        return "not shown: nothing was missing"


@pytest.fixture
def bench(captured: Captured) -> Iterator[Bench]:
    identity = Identity("root" if os.geteuid() == 0 else "user")
    with smokes(captured, identity, AT_ONCE) as free:
        yield Bench(captured, free, captured.board()[1])


def test_with_all_rules_the_smoke_runs_pass(bench: Bench) -> None:
    """Otherwise what follows would prove nothing."""
    smoke, job = bench.free.get(), Job(board=bench.board)
    smoke.serve(job)
    smoke.command(job)
    smoke.background(job)
    bench.free.put(smoke)


def test_without_any_rule_somebody_is_killed(bench: Bench) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(ways(), pool.map(bench.without, ways()), strict=True))
    assert len(found) > 50
    superfluous = {way: said for way, said in found.items() if not said.startswith("killed: ")}
    assert superfluous == {}


assert re and shutil and subprocess and threading and Path
