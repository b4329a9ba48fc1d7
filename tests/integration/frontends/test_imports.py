# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs of engines load, since an engine waits for them: the time that a module takes, each
container takes longer to start.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Nothing of hardsplice needs them at a start; policies are read from a table that is made of them.
NEVER = {
    *("argparse", "dataclasses", "logging", "pathlib", "random", "shutil", "subprocess"),
    *("threading", "tomllib", "typing"),
}


def loaded(*modules: str) -> set[str]:
    """All that an interpreter has loaded once it has these."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def needless(found: set[str]) -> set[str]:
    """What is loaded of NEVER, but for what Python's own ctypes loads: from 3.14 on, threading."""
    return found & NEVER - loaded("ctypes")


@pytest.mark.parametrize("program", ["rootlessport", "docker_proxy"])
def test_a_port_beside_another_loads_nothing_of_a_server(program: str) -> None:
    found = loaded(f"hardsplice.frontends.{program}")
    assert not needless(found)
    assert not found & {"prctl", "seccomp", "pyseccomp"}
    rooms = {name.split(".")[1] for name in found if name.startswith("hardsplice.")}
    assert rooms == {"frontends", "ipc", "kernel", "model", "net", "sandbox"}
    assert not {name for name in found if name.startswith("hardsplice.sandbox.")} - {
        "hardsplice.sandbox.address_book"
    }


def test_a_server_loads_nothing_of_a_command_and_of_its_line() -> None:
    found = loaded(
        "hardsplice.frontends.serving", "hardsplice.frontends.server", "hardsplice.app.stages"
    )
    assert not needless(found)
    assert not {name for name in found if name.startswith(("hardsplice.cli", "hardsplice.control"))}
    strangers = {"command_line", "option_table", "containers", "modes"}
    assert not found & {f"hardsplice.app.{name}" for name in strangers}
    others = {"container", "guard", "id_maps", "init", "recipe"}
    assert not found & {f"hardsplice.command.{name}" for name in others}
    assert not found & {"seccomp", "pyseccomp"}, "another process compiles its filters"
    assert not {name for name in found if name.startswith("hardsplice.sandbox.policy")}


def test_what_starts_a_server_is_forked_before_it_loads_what_that_needs() -> None:
    """Each page that a process has had when it forks is copied once it is written."""
    found = loaded("hardsplice.frontends.rootlessport", "hardsplice.frontends.serving")
    rooms = {name.split(".")[1] for name in found if name.startswith("hardsplice.")}
    assert not rooms & {"monitor", "relay", "telemetry"}
