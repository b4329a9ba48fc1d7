# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked of a guest's report, wherever the guest ran."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest

from tests.arches import attempts, captured, forbidden
from tests.arches.tap import Report

_FORBIDDEN = "forbidden: "
_TAIL = 30  # lines of a console that are worth showing


@dataclass(frozen=True, slots=True)
class Outcome:
    """One guest's run."""

    guest: str
    arch: str
    report: Report
    console: str
    seconds: float

    def is_complete(self) -> None:
        """The guest is what it should be, got to its end, and all of its words arrived."""
        if not self.report.complete:
            tail = "\n".join(self.console.splitlines()[-_TAIL:])
            pytest.fail(f"{self.guest} did not get to its end; its last words:\n{tail}")
        assert self.report.facts["arch"] == self.arch

    def end_to_end(self) -> None:
        """Every way that a connection can go works under the filters."""
        self._no_failure(forbidden_calls=False)
        names = [name for name in self.report.passed if not name.startswith(_FORBIDDEN)]
        assert any("short connections" in name for name in names)

    def forbidden_calls(self) -> None:
        """Each attempt works without a filter and ends in SIGSYS with it."""
        self._no_failure(forbidden_calls=True)
        everywhere = {one.name: one.everywhere for one in forbidden.attempts(self.arch)}
        wanted = {f"{_FORBIDDEN}{name}": always for name, always in everywhere.items()}
        for one in attempts.attempts(self.arch):
            wanted[f"{captured.FORBIDDEN}{one.name}"] = True
        wanted[captured.SEAL] = False
        passed = {name for name in self.report.passed if name in wanted}
        assert passed | set(self.report.skipped) == set(wanted)
        for name in self.report.skipped:
            assert not wanted[name], f"{name} was skipped"

    def _no_failure(self, *, forbidden_calls: bool) -> None:
        failed = {
            name: why
            for name, why in self.report.failed.items()
            if name.startswith(_FORBIDDEN) == forbidden_calls
        }
        if failed:
            told = "\n".join(f"{name}\n{why}" for name, why in failed.items())
            pytest.fail(f"{self.guest}: {len(failed)} checks failed\n{told}", pytrace=False)


def tell(request: pytest.FixtureRequest, outcome: Outcome) -> None:
    """Say how long the guest took, though output is captured."""
    plugins = request.config.pluginmanager
    terminal, capture = plugins.getplugin("terminalreporter"), plugins.getplugin("capturemanager")
    if terminal is None:
        return
    found = ", ".join(outcome.report.facts.values()) or "no report"
    checks = len(outcome.report.passed)
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        terminal.write_line("")
        terminal.write_line(
            f"{outcome.guest}: {checks} checks passed in {outcome.seconds:.1f} s ({found})"
        )
