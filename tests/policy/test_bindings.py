# SPDX-License-Identifier: GPL-2.0-or-later
"""Whichever binding of libseccomp is installed: the filters are the same, and so are errors."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.model.roles import POLICIES
from hardsplice.sandbox import libseccomp
from hardsplice.sandbox.libseccomp import LibraryBinding
from tests.policy import oracle
from tests.support.bindings import COMBINATIONS, Combination, fill, lacking, origin

# Prints which providers it has, and each filter.
PRINT_ALL = """
from hardsplice.kernel import prctl
from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.model.roles import POLICIES
from hardsplice.sandbox import libseccomp
from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.seccomp import compile_policy, native_arch
print(libseccomp.load().__name__, prctl.PROVIDER, sep=", ")
for role in POLICIES:
    policy = load_policy(role)
    for arch in ARCHITECTURES:
        print(role, arch, compile_policy(policy, arch).hex())
"""
# Any program that is started, pip's compiler or ldconfig, ends the process with a trace.
NO_PROCESS = """
import sys
def watch(event, arguments):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system"):
        raise RuntimeError(f"a process was to be started: {event} {arguments}")
sys.addaudithook(watch)
"""


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Isolated, as hardsplice's own interpreters are, with ``folder`` before all other packages."""
    path = [str(folder), str(oracle.ROOT)]
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:] += {path}\n{code}"],
        env={"PATH": ""}, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


def filters(folder: Path, combination: Combination) -> list[str]:
    if reason := lacking(combination):
        pytest.skip(reason)
    fill(folder, combination)
    done = python(folder, NO_PROCESS + PRINT_ALL)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert first == str(combination)
    return rest


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return filters(tmp_path_factory.mktemp("usual"), COMBINATIONS[0])


@pytest.mark.parametrize("combination", COMBINATIONS[1:], ids=str)
def test_the_filters_are_the_same_byte_for_byte(
    usual: list[str], tmp_path: Path, combination: Combination
) -> None:
    assert len(usual) == len(POLICIES) * len(ARCHITECTURES)
    assert filters(tmp_path, combination) == usual


def test_without_any_binding_the_next_step_names_the_packages(tmp_path: Path) -> None:
    fill(tmp_path, Combination("none", "hardsplice itself"))
    done = python(
        tmp_path,
        "from hardsplice.model.errors import HardspliceError\n"
        "from hardsplice.sandbox.seccomp import native_arch\n"
        "try:\n    native_arch()\n"
        "except HardspliceError as failure:\n    print(*failure.lines(), sep='\\n')\n",
    )
    said, step = done.stdout.splitlines()
    assert said == (
        "hardsplice: cannot import pyseccomp or seccomp: "
        "neither of these bindings of libseccomp is installed"
    )
    assert step.startswith("hardsplice: install one of them: ")


@pytest.mark.parametrize(
    ("prefix", "holds", "step"),
    [
        ("/usr", (), "{distribution}"),
        ("/usr/local", (), "{environment}/bin/python3 -m pip install pyseccomp"),
        ("/usr", ("pyvenv.cfg",), "{environment}/bin/python3 -m pip install pyseccomp"),
        ("/usr", ("pyvenv.cfg", "pipx_metadata.json"), "pipx inject hs pyseccomp"),
    ],
    ids=["a distribution's", "another", "a virtual environment", "pipx"],
)
def test_the_next_step_is_that_of_the_python_that_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str,
    holds: tuple[str, ...],
    step: str,
) -> None:
    """A distribution's doesn't let pip install, and its packages are for no other."""
    environment = tmp_path / "hs"
    environment.mkdir()
    for name in holds:
        (environment / name).touch()
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(sys, "executable", f"{environment}/bin/python3")
    distribution = (
        "apt install python3-seccomp, dnf install python3-libseccomp, or apk add py3-libseccomp"
    )
    wanted = step.format(environment=environment, distribution=distribution)
    assert libseccomp._how_to_install() == f"install one of them: {wanted}"


def test_something_else_that_is_called_seccomp_is_no_binding(tmp_path: Path) -> None:
    fill(tmp_path, Combination("none", "hardsplice itself"))
    (tmp_path / "seccomp.py").write_text("'''Of somebody else.'''\n")
    done = python(tmp_path, "from hardsplice.sandbox import libseccomp\nlibseccomp.load()\n")
    assert "the module seccomp that is installed is not libseccomp's" in done.stderr


def test_a_broken_pyseccomp_does_not_hide_a_working_binding(tmp_path: Path) -> None:
    fill(tmp_path, Combination("seccomp", "hardsplice itself"))
    (tmp_path / "pyseccomp.py").write_text("raise ImportError('it is broken')\n")
    load = "from hardsplice.sandbox import libseccomp\nprint(libseccomp.load().SyscallFilter)\n"
    assert "SyscallFilter" in python(tmp_path, load).stdout
    (tmp_path / "seccomp.py").write_text("raise ImportError('so is this')\n")
    for other in tmp_path.glob("seccomp.*.so"):
        other.unlink()
    assert "cannot import a binding of libseccomp: it is broken" in python(tmp_path, load).stderr


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("libseccomp.so.2: cannot open shared object file", "install libseccomp"),
        ("libseccomp.so.2: cannot open shared object file: Error 24", "ulimit -n"),
    ],
)
def test_a_binding_that_is_there_without_its_library_says_so(
    tmp_path: Path, reason: str, told: str
) -> None:
    fill(tmp_path, Combination("none", "hardsplice itself"))
    (tmp_path / "seccomp.py").write_text(f"raise ImportError({reason!r})\n")
    done = python(
        tmp_path,
        "from hardsplice.model.errors import HardspliceError\n"
        "from hardsplice.sandbox import libseccomp\n"
        "try:\n    libseccomp.load()\n"
        "except HardspliceError as failure:\n    print(*failure.lines(), sep='\\n')\n",
    )
    assert done.stdout.startswith("hardsplice: cannot load libseccomp.so.2: "), done.stderr
    assert told in done.stdout


# --- where the bindings differ ---


def module(name: str) -> Any:
    """A module wherever it is installed."""
    found = origin(name)
    spec = importlib.util.spec_from_file_location(name, found) if found else None
    if spec is None or spec.loader is None:
        pytest.skip(f"this Python has no {name}")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def binding(**parts: object) -> LibraryBinding:
    return LibraryBinding(SimpleNamespace(**parts))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("socket", -101), ("accept4", -118), ("sendmmsg", -120), ("semop", -201), ("msgctl", -214),
        ("shmctl", -224), ("socketcall", 102), ("ipc", 117), ("close", 6), ("unheard", -1),
        ("bind", 361),
    ],
)  # fmt: skip
def test_a_sub_call_has_no_number_of_its_own(name: str, number: int) -> None:
    """As on an architecture where bind has got one."""
    numbers = {
        **dict.fromkeys(("socket", "accept4", "sendmmsg", "socketcall"), 102), "bind": 361,
        **dict.fromkeys(("semop", "msgctl", "shmctl", "ipc"), 117), "close": 6,
    }  # fmt: skip
    own = binding(resolve_syscall=lambda arch, name: numbers.get(name, -1))
    assert own.resolve_syscall(0, name) == number


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_numbers_are_those_that_pyseccomp_has(arch: str) -> None:
    pyseccomp, own = module("pyseccomp"), module("seccomp")
    token = ARCHITECTURES[arch].token
    ours, theirs = getattr(own.Arch, token), getattr(pyseccomp.Arch, token)
    names = [*oracle.numbers(arch), "socketcall", "ipc", "semop", "shmctl", "unheard"]
    assert {name: LibraryBinding(own).resolve_syscall(ours, name) for name in names} == {
        name: pyseccomp.resolve_syscall(theirs, name) for name in names
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("Library error (errno = -22)"), errno.EINVAL),
        (RuntimeError("Library error (errno = -12)"), errno.ENOMEM),
        (RuntimeError("Library error (errno = -125)"), errno.ECANCELED),
        (RuntimeError("Library error"), errno.EINVAL),
        (ValueError("Invalid attribute"), errno.EINVAL),
    ],
    ids=str,
)
def test_its_errors_are_the_system_s(error: Exception, code: int) -> None:
    def refuse(*_: object) -> None:
        raise error

    own = binding(SyscallFilter=lambda action: SimpleNamespace(add_arch=refuse))
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        own.SyscallFilter(0).add_arch(1)
    assert caught.value.errno == code
    with pytest.raises(OSError, match=os.strerror(code)):
        binding(SyscallFilter=refuse).SyscallFilter(0)


@pytest.mark.parametrize(
    "refused",
    [
        lambda rules, library: rules.add_rule_exactly(library.ALLOW, -50),
        lambda rules, library: rules.set_attr(99, 1),
        lambda rules, library: rules.add_arch(1),
    ],
    ids=["add_rule_exactly", "set_attr", "add_arch"],
)
def test_what_libseccomp_refuses_is_the_same_error(refused: Callable[[Any, Any], object]) -> None:
    codes = []
    for library in (module("pyseccomp"), LibraryBinding(module("seccomp"))):
        with pytest.raises(OSError, match=r"^\[Errno \d+\]") as caught:
            refused(library.SyscallFilter(library.KILL_PROCESS), library)
        codes.append(caught.value.errno)
    assert codes[0] == codes[1]
