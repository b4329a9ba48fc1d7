# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice on other architectures' kernels, each booted under qemu (make test-arches).

What a filter says can be worked out anywhere (tests/policy); what a system call means, in which
order it takes its arguments, and what the C library makes of a function, only a kernel of that
architecture shows.
"""

from __future__ import annotations

import time

import pytest

from tests.arches import debian, folder, qemu
from tests.arches.outcome import Outcome, tell

pytestmark = [pytest.mark.arches, pytest.mark.timeout(qemu.LIMIT + 900)]


@pytest.fixture(scope="module", params=qemu.MACHINES, ids=lambda machine: machine.arch)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The machine's run."""
    machine: qemu.Machine = request.param
    try:
        qemu.need(machine)
        kernel, modules = debian.kernel(machine.release, machine.image)
        tree = debian.python_tree(machine.release)
    except debian.Unavailable as reason:
        pytest.skip(f"no {machine.arch} machine to be had: {reason}")
    sources = folder.stage(tmp_path_factory.mktemp("sources"))
    began = time.monotonic()
    scratch = tmp_path_factory.mktemp("boot")
    report, console = qemu.boot(machine, kernel, modules, tree, sources, scratch)
    guest = f"{machine.arch} kernel ({machine.release})"
    outcome = Outcome(guest, machine.arch, report, console, time.monotonic() - began)
    tell(request, outcome)
    return outcome


def test_the_machine_gets_to_its_end(outcome: Outcome) -> None:
    outcome.is_complete()
    machines = {machine.arch: machine for machine in qemu.MACHINES}
    assert outcome.report.facts["kernel"].split()[-1] == machines[outcome.arch].uname


def test_connections_work_end_to_end_under_the_filters(outcome: Outcome) -> None:
    outcome.end_to_end()


def test_forbidden_calls_end_in_sigsys_and_work_without_a_filter(outcome: Outcome) -> None:
    outcome.forbidden_calls()
