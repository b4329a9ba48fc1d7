# SPDX-License-Identifier: GPL-2.0-or-later
"""libseccomp is loaded without a search for it, and compiling is quick."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.policy import oracle

# Ends with a trace at the first attempt to start a process.
NO_PROCESS = """
import sys
def watch(event, arguments):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system"):
        raise RuntimeError(f"a process was to be started: {event} {arguments}")
sys.addaudithook(watch)
"""

NO_LIBRARY = """
import ctypes
def refuse(name):
    raise OSError("libseccomp.so.2: cannot open shared object file")
ctypes.CDLL = refuse
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NO_PROCESS + code],
        env={"PATH": "", "PYTHONPATH": os.pathsep.join([str(oracle.ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_the_watch_sees_pyseccomp_s_own_search() -> None:
    pytest.importorskip("pyseccomp")
    assert "a process was to be started" in run("import pyseccomp").stderr


def test_the_import_starts_no_process_and_leaves_ctypes_as_it_was() -> None:
    got = run(
        "from hardsplice.sandbox.policy.table import policy_of\n"
        "from hardsplice.sandbox.seccomp import *\n"
        "compile_policy(policy_of('relay'), native_arch())\n"
        "import ctypes\n"
        "assert 'ctypes.util' not in sys.modules and not hasattr(ctypes, 'util')\n"
        "import ctypes.util\n"
        "assert ctypes.util.find_library.__module__ == 'ctypes.util'\n"
    )
    assert (got.returncode, got.stderr) == (0, "")


def test_an_earlier_import_of_ctypes_util_stays() -> None:
    got = run(
        "import ctypes.util\n"
        "before = ctypes.util\n"
        "from hardsplice.sandbox.seccomp import native_arch\n"
        "native_arch()\n"
        "assert ctypes.util is before is sys.modules['ctypes.util']\n"
    )
    assert (got.returncode, got.stderr) == (0, "")


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [
        pytest.param(
            NO_LIBRARY,
            "cannot load libseccomp.so.2: libseccomp.so.2: cannot open shared object file",
            marks=pytest.mark.skipif(
                find_spec("pyseccomp") is None, reason="only pyseccomp loads it by ctypes"
            ),
        ),
        (
            "sys.modules['pyseccomp'] = sys.modules['seccomp'] = None\n",
            "cannot import pyseccomp or seccomp: ",
        ),
    ],
)
def test_a_missing_library_is_one_error(sabotage: str, message: str) -> None:
    got = run(
        f"{sabotage}"
        "from hardsplice.model.errors import HardspliceError\n"
        "from hardsplice.sandbox.seccomp import native_arch\n"
        "try:\n    native_arch()\nexcept HardspliceError as failure:\n    print(*failure.lines())\n"
    )
    assert got.stderr == ""
    assert message in got.stdout
    assert "install" in got.stdout


@pytest.mark.bench
def test_loading_and_compiling_all_roles_takes_a_fifth_of_the_budget() -> None:
    """A start has 250 ms in all. In a process of its own, since what was parsed is kept."""
    code = (
        "import time\n"
        "from hardsplice.model.roles import POLICIES\n"
        "from hardsplice.sandbox.policy.table import policy_of\n"
        "from hardsplice.sandbox.seccomp import *\n"
        "began = time.perf_counter()\n"
        "for role in POLICIES:\n    compile_policy(policy_of(role), native_arch())\n"
        "print(1000 * (time.perf_counter() - began))\n"
    )
    best = min(float(run(code).stdout) for _ in range(5))
    print(f"all roles: {best:.1f} ms")
    assert best < 50
