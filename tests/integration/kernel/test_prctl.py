# SPDX-License-Identifier: GPL-2.0-or-later
"""Without python-prctl, hardsplice does the same itself."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hardsplice.kernel import prctl, prctl_fallback
from tests.support.sources import MODULES, PACKAGE, parsed

PROVIDED = sorted(set(prctl.__all__) - {"PROVIDER"})


def in_a_process(code: str) -> str:
    """What code prints in an interpreter of its own, with ``ours`` and, where there is one,
    ``theirs``.
    """
    begin = (
        "import os, signal\n"
        "from hardsplice.kernel import prctl_fallback as ours\n"
        "try:\n    import prctl as theirs\nexcept ImportError:\n    theirs = ours\n"
        "def status(name):\n"
        "    with open('/proc/self/status') as file:\n"
        "        return next(line.split()[1] for line in file if line.startswith(name + ':'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin + code],
        env={"PYTHONPATH": str(PACKAGE.parent)}, capture_output=True, text=True, check=False,
        timeout=30,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.strip()


def python_prctl() -> Any:
    return pytest.importorskip("prctl")


def test_one_module_decides() -> None:
    """No other one imports python-prctl."""
    found = {
        str(path.relative_to(PACKAGE))
        for path in MODULES.values()
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Import) and any(one.name == "prctl" for one in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module in ("prctl", "_prctl"))
    }
    assert found == {"kernel/prctl.py"}


@pytest.mark.parametrize("name", PROVIDED)
def test_both_have_all_that_is_used(name: str) -> None:
    assert hasattr(prctl_fallback, name)
    assert hasattr(python_prctl(), name)


@pytest.mark.parametrize("name", [name for name in PROVIDED if name.startswith("SECBIT_")])
def test_constants_are_the_same(name: str) -> None:
    assert getattr(prctl_fallback, name) == getattr(python_prctl(), name)


@pytest.mark.parametrize(
    "name", ["hs-host", "as-long-as-it-may-be", "", "h\N{LATIN SMALL LETTER E WITH ACUTE}"]
)
def test_a_process_is_called_what_it_is_told(name: str) -> None:
    """No more than 15 bytes."""
    said = in_a_process(f"ours.set_name({name!r})\nprint(ascii(open('/proc/self/comm').read()))")
    assert ast.literal_eval(said) == os.fsencode(name)[:15].decode() + "\n"


@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGKILL])
def test_the_signal_at_the_parent_s_end_is_set_and_read(number: int) -> None:
    said = in_a_process(
        f"ours.set_pdeathsig({int(number)})\nprint(ours.get_pdeathsig(), theirs.get_pdeathsig())"
    )
    assert said == f"{int(number)} {int(number)}"


def test_switches_are_set() -> None:
    said = in_a_process(
        "import ctypes\n"
        "get = ctypes.CDLL(None).prctl\n"
        "def subreaper():\n"
        "    value = ctypes.c_int()\n"
        "    assert get(37, ctypes.byref(value), 0, 0, 0) == 0\n"
        "    return value.value\n"
        "before = get(3, 0, 0, 0, 0), status('NoNewPrivs'), subreaper()\n"
        "ours.set_dumpable(0)\nours.set_child_subreaper(1)\n"
        "dumpable = get(3, 0, 0, 0, 0)\n"
        "ours.set_dumpable(1)\nours.set_no_new_privs(1)\n"
        "print(*before, dumpable, status('NoNewPrivs'), subreaper())\n"
    )
    assert said.split() == ["1", said.split()[1], "0", "0", "1", "1"]


@pytest.mark.parametrize("call", ["set_pdeathsig(1000)", "set_no_new_privs(2)", "set_dumpable(7)"])
def test_the_kernel_s_refusal_is_an_os_error(call: str) -> None:
    said = in_a_process(f"try:\n    ours.{call}\nexcept OSError as error:\n    print(error.errno)")
    assert said == "22"


SETS = {"cap_effective": "CapEff", "cap_permitted": "CapPrm", "cap_inheritable": "CapInh"}


@pytest.mark.parametrize("name", SETS)
def test_capabilities_are_read_as_python_prctl_reads_them(name: str) -> None:
    theirs = getattr(python_prctl(), name)
    for capability in ("setgid", "setuid", "sys_ptrace", "sys_admin", "setfcap"):
        assert getattr(getattr(prctl_fallback, name), capability) == getattr(theirs, capability)


@pytest.mark.root
@pytest.mark.parametrize("keep", [(), (21,), (6, 7, 31), (40,), (21, 21)])
@pytest.mark.parametrize("name", ["cap_effective", "cap_permitted"])
def test_a_set_is_limited_to_what_is_kept(name: str, keep: tuple[int, ...]) -> None:
    """Those of the permitted set are given up first where they are effective."""
    lower = f"%s.cap_effective.limit(*{keep})\n" if name == "cap_permitted" else ""
    code = f"{lower}%s.{name}.limit(*{keep})\nprint(status('CapEff'), status('CapPrm'))\n"
    said = in_a_process(code.replace("%s", "ours"))
    assert said == in_a_process(code.replace("%s", "theirs"))
    kept = int(said.split()[name == "cap_permitted"], 16)
    held = next(
        int(line.split()[1], 16)
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{SETS[name]}:")
    )
    assert kept == held & sum(1 << one for one in set(keep))


@pytest.mark.root
def test_the_inheritable_set_is_emptied() -> None:
    said = in_a_process(
        "from hardsplice.kernel import linux\n"
        "effective, permitted, _ = linux.capget()\n"
        "linux.capset(effective, permitted, permitted)\n"
        "print(int(status('CapInh'), 16) == permitted != 0)\n"
        "ours.cap_inheritable.limit()\n"
        "print(int(status('CapInh'), 16), linux.capget() == (effective, permitted, 0))\n"
    )
    assert said == "True\n0 True"


def test_no_capability_is_added() -> None:
    """Keeping what isn't there changes nothing."""
    said = in_a_process(
        "ours.cap_effective.limit()\nours.cap_effective.limit(*range(41))\nprint(status('CapEff'))"
    )
    assert int(said, 16) == 0


@pytest.mark.root
def test_more_than_is_permitted_is_refused() -> None:
    said = in_a_process(
        "from hardsplice.kernel import linux\n"
        "linux.capset(0, 0, 0)\n"
        "try:\n    linux.capset(1, 1, 0)\nexcept OSError as error:\n    print(error.errno)"
    )
    assert said == "1"


@pytest.mark.parametrize(
    ("module", "provider"),
    [
        ("raise ModuleNotFoundError('no module')", "hardsplice itself"),
        ("import _prctl_that_is_nowhere", "hardsplice itself"),
        ("set_name = None", "hardsplice itself"),  # something else of that name
        ("raise ImportError('libcap.so.2: cannot open shared object file')", "hardsplice itself"),
        ("def __getattr__(name): return name", "python-prctl"),
    ],
)
def test_what_is_installed_as_prctl_is_used_if_it_is_whole(
    tmp_path: Path, module: str, provider: str
) -> None:
    (tmp_path / "prctl.py").write_text(f"{module}\n")
    done = subprocess.run(
        [sys.executable, "-c", "from hardsplice.kernel import prctl; print(prctl.PROVIDER)"],
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{provider}\n", "")
