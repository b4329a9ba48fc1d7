# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice as i386 programs on this machine's own kernel: Debian's Python, libc, libseccomp.

The kernel has another table of system calls for such programs, and their C library makes other
calls (socketcall, mmap2, fcntl64, those with 64-bit time). Two releases, since the C library's
choice changes from one to the next.
"""

from __future__ import annotations

import platform
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.arches import debian, folder
from tests.arches.outcome import Outcome, tell

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def tree(request: pytest.FixtureRequest) -> Path:
    """An i386 Python."""
    release = debian.Release(request.param, "i386")
    if platform.machine() != "x86_64":
        pytest.skip(f"a kernel for {platform.machine()} runs no i386 programs")
    try:
        tree = debian.python_tree(release)
    except debian.Unavailable as reason:
        pytest.skip(f"no Python of {release} to be had: {reason}")
    if not _runs(tree / "lib/ld-linux.so.2"):
        pytest.skip("this kernel runs no i386 programs: IA32 emulation is off")
    return tree


def _runs(loader: Path) -> bool:
    """Whether the kernel runs that architecture's programs; the loader needs no other file."""
    try:
        done = subprocess.run([loader, "--version"], capture_output=True, check=False, timeout=30)
    except OSError:
        return False
    return done.returncode == 0


@pytest.fixture(scope="module")
def outcome(
    request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    """The guest's run."""
    sources = folder.stage(tmp_path_factory.mktemp("sources"))
    began = time.monotonic()
    report, console = folder.run(tree, sources, "i686")
    outcome = Outcome(tree.name, "i686", report, console, time.monotonic() - began)
    tell(request, outcome)
    return outcome


def test_the_guest_gets_to_its_end(outcome: Outcome) -> None:
    outcome.is_complete()


def test_connections_work_end_to_end_under_the_filters(outcome: Outcome) -> None:
    outcome.end_to_end()


def test_forbidden_calls_end_in_sigsys_and_work_without_a_filter(outcome: Outcome) -> None:
    outcome.forbidden_calls()


def test_a_policy_that_lacks_a_call_is_found_out(tree: Path, tmp_path: Path) -> None:
    sources = folder.stage(tmp_path / "sources")
    table = sources / "hardsplice/sandbox/policy/rules.py"
    before, relay, rest = table.read_text().partition('\n    "relay": (\n')
    kept, number = re.subn(r'\n +\("recvfrom", .*\),(?=\n)', "", rest, count=1)
    assert number == 1
    table.write_text(before + relay + kept)
    report, _ = folder.run(tree, sources, "i686")
    assert {"inbound IPv4: urgent byte", "outbound IPv4: urgent byte"} <= set(report.failed)
    assert "inbound IPv4: echo" in report.passed
