# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing around the interpreter has a say in hardsplice, and COMMAND gets its environment as it
was.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli_e2e import hooks
from tests.cli_e2e.hooks import HOOK
from tests.support.netns import Identity, Namespace
from tests.support.product import ROOT, Instance, Launched, Program, free_ports, run
from tests.support.stream import PATIENCE, eventually

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")
STRANGERS = ("argparse", "array", "ctypes", "dataclasses", "json", "select", "signal", "socket")
VARIABLES = {
    "PYTHONASYNCIODEBUG": "1",
    "PYTHONCOERCECLOCALE": "warn",
    "PYTHONDEVMODE": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONHASHSEED": "1",
    "PYTHONINSPECT": "1",
    "PYTHONIOENCODING": "cp037",
    "PYTHONMALLOC": "debug",
    "PYTHONMALLOCSTATS": "1",
    "PYTHONOPTIMIZE": "2",
    "PYTHONPERFSUPPORT": "1",
    "PYTHONPROFILEIMPORTTIME": "1",
    "PYTHONSTARTUP": "/nonexistent",
    "PYTHONTRACEMALLOC": "5",
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "0",
    "PYTHONVERBOSE": "1",
    "PYTHONWARNINGS": "error",
    "PYTHON_GIL": "1",
    "PYTHON_JIT": "1",
}


@pytest.fixture
def strange(user_directory: Path) -> Iterator[Path]:
    """A folder with modules that nobody wants."""
    folder = user_directory.with_name(user_directory.name + "-strange")
    folder.mkdir()
    for name in (*STRANGERS, "prctl", "pyseccomp"):
        (folder / f"{name}.py").write_text("raise SystemExit('a stranger was imported')\n")
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def started(
    program: Program, identity: Identity, cwd: Path | str, environment: dict[str, str], *words: str
) -> subprocess.CompletedProcess[str]:
    argv, base = program.argv(identity)
    return subprocess.run(
        [*argv, *words], env={**base, **environment}, cwd=cwd, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def test_the_current_directory_is_none_of_its_own(
    program: Program, identity: Identity, strange: Path
) -> None:
    done = started(program, identity, strange, {}, "-q", "-t", "none", "echo", "ran")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


@pytest.mark.parametrize("module", ["hardsplice", "hardsplice.ctl", "hardsplice.policy"])
def test_nor_is_it_for_the_other_commands(program: Program, strange: Path, module: str) -> None:
    argv, environment = program.argv(Identity("me"))
    if "-m" not in argv:
        pytest.skip("an installed hardsplice is started by its script")
    done = subprocess.run(
        [*argv[: argv.index("-m") + 1], module, "--help"],
        env=environment, cwd=strange, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


SCRIPT = f"""
import re
import sys
sys.path.append({str(ROOT)!r})
from hardsplice.__main__ import main
sys.exit(main())
"""
# How hardsplice may be started, and what of a stranger's is run before it begins again.
WAYS = {
    "a module": (["-m", "hardsplice"], {"current directory", "PYTHONPATH", "sitecustomize"}),
    "a script": (["SCRIPT"], {"PYTHONPATH", "sitecustomize"}),
    "a script of a distribution": (["-I", "SCRIPT"], set[str]()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stranger", ["current directory", "PYTHONPATH", "sitecustomize"])
def test_what_runs_before_it_begins_again(tmp_path: Path, way: str, stranger: str) -> None:
    """And in the isolated interpreter none of it."""
    words, runs = WAYS[way]
    folder, cwd, script = (tmp_path / name for name in ("folder", "cwd", "script"))
    for one in (folder, cwd):
        one.mkdir()
    script.write_text(SCRIPT)
    told = "import os, sys; os.write(2, b'a stranger: isolated %d\\n' % sys.flags.isolated)\n"
    if stranger == "sitecustomize":
        (folder / "sitecustomize.py").write_text(told)
    else:
        # Something that Python imports itself, before any module of ours.
        name = "importlib.py" if way == "a module" else "re.py"
        place = folder if stranger == "PYTHONPATH" else cwd
        (place / name).write_text(f"{told}os._exit(7)\n")
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *(str(script) if word == "SCRIPT" else word for word in words),
         "--version"],
        env={"PYTHONPATH": path, "PATH": os.defpath}, cwd=cwd, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.stderr == ("a stranger: isolated 0\n" if stranger in runs else "")
    ran_to_its_end = stranger == "sitecustomize" or stranger not in runs
    assert done.returncode == (0 if ran_to_its_end else 7)
    assert done.stdout.startswith("hardsplice ") == ran_to_its_end


def test_in_a_checkout_that_checkout_runs(tmp_path: Path) -> None:
    """Without PYTHONPATH, and whatever else of the same name may be installed."""
    copy = tmp_path / "hardsplice"
    shutil.copytree(ROOT / "hardsplice", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "__init__.py").write_text('__version__ = "of this folder"\n')
    done = subprocess.run(
        [sys.executable, "-m", "hardsplice", "--version"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "hardsplice of this folder\n")


@pytest.mark.parametrize("left", ["PYTHON_JIT", "PYTHONPERFSUPPORT"])
def test_python_s_variables_change_nothing_and_are_command_s(
    program: Program, identity: Identity, left: str
) -> None:
    """COMMAND's environment is the caller's, byte for byte, whatever the interpreter adds."""
    argv, base = program.argv(identity)
    environment = {
        os.fsencode(name): os.fsencode(value)
        for name, value in {**VARIABLES, "PYTHONPATH": base.get("PYTHONPATH", "/x")}.items()
        if name != left  # Python itself warns of both, and a warning is an error here
    }
    environment |= {b"PATH": os.fsencode(os.defpath), b"ODD": b"\xff\n\x1b", b"HOME": b"/"}
    words = ["-t", f"127.0.0.1/{free_ports()}:80", "/usr/bin/env", "-0"]
    done = subprocess.run(
        [*argv, *words], env=environment, cwd="/", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    given = dict(entry.split(b"=", 1) for entry in done.stdout.split(b"\0") if entry)
    assert given == environment


def test_nothing_is_added_to_an_empty_environment(program: Program) -> None:
    """In the C locale the interpreter sets LC_CTYPE (PEP 538)."""
    argv, base = program.argv(Identity("me"))
    kept = {name: base[name] for name in ("PYTHONPATH",) if name in base}
    done = subprocess.run(
        [*argv, "-t", "none", "/usr/bin/env"], env=kept, cwd="/", stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == kept


@pytest.mark.parametrize("name", ["sitecustomize", "usercustomize"])
def test_nor_do_customizations_of_the_site(
    program: Program, identity: Identity, user_directory: Path, namespace: Namespace, name: str,
    launch: Launch,
) -> None:  # fmt: skip
    """With a relay that is started anew after lock-down, where hooks would run under a filter."""
    module = user_directory / f"{name}.py"
    module.write_text(HOOK)
    _, base = program.argv(identity)
    path = os.pathsep.join(filter(None, (base.get("PYTHONPATH"), str(user_directory))))
    port = free_ports()
    ports = ("-t", f"127.0.0.1/{port}:80", "-T", f"127.0.0.1/81:{port}")
    arguments = ("-f", *ports, str(namespace.pid))
    try:
        instance = launch(identity, *arguments, environment={"PYTHONPATH": path}).wait_ready()
    finally:
        module.unlink()
    restarts(instance)
    instance.stop()


@pytest.fixture(scope="module")
def hooked() -> Iterator[Program]:
    """hardsplice in an interpreter in which somebody has registered hooks for each fork."""
    launched = Launched(hooks.__file__)
    yield launched
    launched.close()


def restarts(instance: Instance) -> None:
    """Each relay of it that is killed is started again."""
    before = instance.relays()
    for relay in before:
        os.kill(relay, signal.SIGKILL)
    eventually(
        lambda: len(instance.relays()) == len(before) and not set(before) & set(instance.relays()),
        "the relays are started again",
    )
    assert instance.process.poll() is None, instance.messages()


def test_nor_do_hooks_of_modules_that_happen_to_be_there(
    hooked: Program, identity: Identity, namespace: Namespace
) -> None:
    port = free_ports()
    instance = Instance(
        hooked, identity,
        ["-f", "-t", f"127.0.0.1/{port}:80", "-T", f"127.0.0.1/81:{port}", str(namespace.pid)],
    )  # fmt: skip
    try:
        instance.wait_ready()
        restarts(instance)
        instance.stop()
    finally:
        instance.discard()


def test_number_parent_and_descriptors_of_the_process_stay(
    program: Program, identity: Identity, user_directory: Path
) -> None:
    """As a service manager has them; each of them once more in an interpreter of its own."""
    pid_file = user_directory / "pid"
    ready, told = os.pipe()
    argv, environment = program.argv(identity)
    process = subprocess.Popen(
        [*argv, "-f", "-P", str(pid_file), "--ready-fd", str(told), "-t", "none", "cat"],
        env=environment, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[told],
    )  # fmt: skip
    os.close(told)
    with open(ready, "rb") as file:
        assert file.readline() == b"\n"
    assert int(pid_file.read_text()) == process.pid
    words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
    assert {b"-I", b"-S"} <= set(words)
    out, _ = process.communicate(b"through", timeout=PATIENCE)
    pid_file.unlink()
    assert (process.returncode, out) == (0, b"through")


def test_words_that_are_no_text_arrive(program: Program, identity: Identity) -> None:
    argv, environment = program.argv(identity)
    done = subprocess.run(
        [*argv, "-t", "none", "printf", b"<%s>", b"\xff\n'\"", ""],
        env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.stdout == b"<\xff\n'\"><>"


def test_packages_are_found_wherever_the_interpreter_found_them(
    program: Program, identity: Identity, strange: Path
) -> None:
    """Behind others, too, that have modules of the same names as Python's own."""
    for name in ("prctl", "pyseccomp"):
        (strange / f"{name}.py").unlink()
    _, base = program.argv(identity)
    path = os.pathsep.join((str(strange), base["PYTHONPATH"]))
    words = ("-q", "-t", "none", "echo", "ran")
    done = run(program, identity, *words, environment={"PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
