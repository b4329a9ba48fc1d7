# SPDX-License-Identifier: GPL-2.0-or-later
"""What the caller gave is taken out of the way, and put back. Each case has a process of its own,
whose descriptors are known.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

FIRST = 7


def run(code: str, numbers: tuple[int, ...] = ()) -> str:
    """What a process prints that was started with copies of /dev/null at these numbers."""
    open_them = "import os, sys\nfor n in sys.argv[2].split(): os.dup2(0, int(n))\n"
    again = "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    done = subprocess.run(
        [sys.executable, "-c", open_them + again, code, " ".join(map(str, numbers))],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=20,
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    return done.stdout.strip()


IMPORT = "import os; from hardsplice.ipc import descriptors; "


@pytest.mark.parametrize(
    ("numbers", "aside"),
    [
        ((), {}),
        ((3,), {3: 7}),
        ((3, 6, 7), {3: 8, 6: 9, 7: 7}),
        ((9,), {9: 9}),
        ((4, 8, 500), {4: 7, 8: 8, 500: 500}),
    ],
)
def test_what_was_given_is_moved_above(numbers: tuple[int, ...], aside: dict[int, int]) -> None:
    assert run(f"{IMPORT} print(descriptors.set_aside({FIRST}))", numbers) == str(aside)


def test_nobody_inherits_it_then_and_its_number_is_free() -> None:
    code = (
        f"{IMPORT} aside = descriptors.set_aside({FIRST})\n"
        "print(*map(os.get_inheritable, aside.values()), os.path.exists('/proc/self/fd/5'))"
    )
    assert run(code, (5, 12)) == "False False False"


def test_what_we_opened_stays_where_it_is() -> None:
    code = f"{IMPORT} fd = os.open('/', 0); print(fd < {FIRST}, descriptors.set_aside({FIRST}))"
    assert run(code) == "True {}"


LOOK = (  # what a program finds that is run then; the folder's own descriptor is one more
    "import os; there = os.listdir('/proc/self/fd'); "
    "print(*(os.readlink('/proc/self/fd/' + one) for one in '39'), len(there) - 1)"
)


def test_it_comes_back_under_its_numbers_even_where_something_else_is_there_by_now() -> None:
    code = (
        f"{IMPORT} aside = descriptors.set_aside({FIRST})\n"
        "assert os.open('/', 0) == 3\n"
        "descriptors.put_back(aside)\n"
        f"import sys; os.execv(sys.executable, [sys.executable, '-c', {LOOK!r}])"
    )
    assert run(code, (3, 9)).split() == ["/dev/null", "/dev/null", "5"]


def test_the_ready_descriptor_is_moved_unless_it_is_a_standard_stream() -> None:
    code = (
        f"{IMPORT} take = descriptors.take_ready\n"
        f"print(take(4, {FIRST}) >= {FIRST}, take(1, {FIRST}) >= {FIRST},"
        " os.path.exists('/proc/self/fd/4'), os.path.exists('/proc/self/fd/1'))"
    )
    assert run(code, (4,)) == "True True False True"


def test_the_limit_that_was_is_told() -> None:
    code = f"{IMPORT} print(descriptors.raise_limit())"
    assert run(code) == str(resource.getrlimit(resource.RLIMIT_NOFILE))
