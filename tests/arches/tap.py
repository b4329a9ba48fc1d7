# SPDX-License-Identifier: GPL-2.0-or-later
"""How a guest says what it found: the Test Anything Protocol, over whatever console it has.

Consoles fold long lines, put a carriage return before each newline and mix the kernel's own words
in, so lines are short and each is complete by itself. A report without its plan, the last line, is
that of a guest which didn't get to the end.
"""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_WIDTH = 76
_RESULT = re.compile(r"(not )?ok \d+ - (.*?)(?: # (?:SKIP (.*)|[\d.]+ s))?$")
_PLAN = re.compile(r"1\.\.(\d+)$")
_FACT = re.compile(r"# (\w+): (.*)$")
_DETAIL = re.compile(r"# {3}(.*)$")


class Writer:
    """Runs checks and reports each when it is done."""

    def __init__(self) -> None:
        self.count = 0

    def fact(self, name: str, value: str) -> None:
        """Something about the guest that the host looks at."""
        self._line(f"# {name}: {value}")

    def check(self, name: str, check: Callable[[], object]) -> bool:
        """Run a check and say whether it passed.

        An exception is its failure; a SkipCheck says that it doesn't apply here.
        """
        began = time.monotonic()
        try:
            check()
        except SkipCheck as reason:
            self._result(True, f"{name} # SKIP {reason}")
        except Exception:
            self._result(False, name)
            self._detail(traceback.format_exc())
            return False
        else:
            self._result(True, f"{name} # {time.monotonic() - began:.2f} s")
        return True

    def plan(self) -> None:
        """The end: how many results there are."""
        self._line(f"1..{self.count}")

    def _result(self, passed: bool, text: str) -> None:
        self.count += 1
        self._line(f"{'' if passed else 'not '}ok {self.count} - {text}")

    def _detail(self, text: str) -> None:
        for line in text.splitlines():
            for start in range(0, len(line), _WIDTH):
                self._line(f"#   {line[start : start + _WIDTH]}")

    def _line(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


class SkipCheck(Exception):
    """A check does not apply here; the message says why."""


@dataclass(slots=True)
class Report:
    """What the host reads out of a guest's console."""

    planned: int | None = None
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the guest got to its end and every result arrived."""
        results = len(self.passed) + len(self.skipped) + len(self.failed)
        return self.planned is not None and self.planned == results > 0


def read(lines: Iterable[str]) -> Report:
    """The report among the lines of a console."""
    report = Report()
    last = ""
    for line in (raw.strip("\r\n") for raw in lines):
        if found := _RESULT.match(line):
            failed, last, reason = found[1], found[2], found[3]
            if failed:
                report.failed[last] = ""
            elif reason:
                report.skipped[last] = reason
            else:
                report.passed.append(last)
        elif found := _PLAN.match(line):
            report.planned = int(found[1])
        elif last in report.failed and (found := _DETAIL.match(line)):
            report.failed[last] += f"{found[1]}\n"
        elif found := _FACT.match(line):
            report.facts[found[1]] = found[2]
    return report
