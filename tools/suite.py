# SPDX-License-Identifier: GPL-2.0-or-later
"""All tests of an everyday run, several at the same time (`make test JOBS=2`).

    python -m tools.suite --jobs N

Tests that run at the same time are in processes of pytest's of their own, as if several people
tested on one machine; each has an ordinary user of its own. What a run is given is a folder, or
some files of one; the next is begun when a run has ended. Of a run that fails all output is shown,
of others the last line; at the end come the names of all tests that failed.

Where a few have failed, these are repeated, with nothing beside them: three times each, since what
failed once among others may be a matter of chance. What then passes every time doesn't fail the
whole, but is named.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# Whose tests are one run: they take as long as several files elsewhere, or share what they drive.
WHOLE = ("unit", "engines", "policy", "integration")
# What takes longest comes first, but for what tells in seconds that something simple is broken.
ORDER = ("unit", "engines", "relay_udp", "relay", "cli_e2e", "sandbox", "policy")
FEW, TIMES = 5, 3  # how many failures are repeated, and how often
FILES = 4  # of other folders that are one run
NOTHING_TO_RUN = 5  # pytest's status where all tests of a run are left out
_FAILED = re.compile(r"FAILED (\S+?::[\w:]+(?:\[.*?\](?= - |$))?)")
_COUNTED = re.compile(r"(\d+) (passed|failed|skipped|error)")


class Ended(NamedTuple):
    """What became of a run."""

    words: tuple[str, ...]
    status: int
    output: str
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether anything did."""
        return self.status not in (0, NOTHING_TO_RUN)

    def failures(self) -> list[str]:
        """The tests that did, as pytest names them; or what was run, if it names none."""
        if not self.failed:
            return []
        named = re.findall(r"^(?:FAILED|ERROR) .*", self.output, re.MULTILINE)
        return named or [f"status {self.status} of {' '.join(self.words)}"]

    def counts(self) -> Counter[str]:
        """How many tests passed, failed, were skipped, or could not be run (error)."""
        last = self.output.rstrip().rpartition("\n")[2]
        return Counter({what: int(number) for number, what in _COUNTED.findall(last)})


def repeatable(failures: Sequence[str]) -> list[str]:
    """Of which tests it is worth while to see whether they fail again; none if they are many, or
    not all of them are tests.
    """
    found = [_FAILED.match(line) for line in failures]
    named = [one[1] for one in found if one is not None]
    return named if len(named) == len(failures) <= FEW else []


def runs(files: Iterable[Path]) -> Iterator[tuple[str, ...]]:
    """What each run is given, of test files that are named as from the folder of all tests."""
    folders: dict[str, list[str]] = {}
    for file in sorted(files):
        folders.setdefault(file.parts[0] if len(file.parts) > 1 else "", []).append(f"tests/{file}")
    rank = {name: at for at, name in enumerate(ORDER)}
    for folder in sorted(folders, key=lambda name: rank.get(name, len(rank))):
        if folder in WHOLE:
            yield (f"tests/{folder}",)
            continue
        names = folders[folder]
        contract = [name for name in names if name.endswith("/test_contract.py")]
        yield from ((name,) for name in contract)
        left = [name for name in names if name not in contract]
        for at in range(0, len(left), FILES):
            yield tuple(left[at : at + FILES])


def run(words: tuple[str, ...]) -> Ended:
    """Run pytest with these arguments."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    return Ended(words, done.returncode, done.stdout, time.monotonic() - began)


def main() -> int:
    """Run them all; 1 if any test failed."""
    parser = argparse.ArgumentParser(prog="tools.suite", description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (2)")
    jobs = parser.parse_args().jobs
    tests = ROOT / "tests"
    given = runs(file.relative_to(tests) for file in tests.rglob("test_*.py"))
    failed: list[str] = []
    total = Counter[str]()
    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(run, words) for words in given]):
            ended = future.result()
            total += ended.counts()
            failed += ended.failures()
            if ended.failed:
                print(ended.output)
            last = ended.output.rstrip().rpartition("\n")[2].strip("= ")
            print(f"{ended.seconds:5.0f} s  {' '.join(ended.words)}: {last}", flush=True)
    print(*failed, ", ".join(f"{number} {what}" for what, number in total.items()), sep="\n")
    named = repeatable(failed)
    for name in named:
        again = [run((name,)) for _ in range(TIMES)]
        if any(ended.failed or not ended.counts()["passed"] for ended in again):
            print(f"{name}: it fails again", again[-1].output, sep="\n")
            return 1
        print(f"{name}: it passed {TIMES} times with nothing beside it", flush=True)
    return 1 if failed and not named else 0


if __name__ == "__main__":
    sys.exit(main())
