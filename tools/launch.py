# SPDX-License-Identifier: GPL-2.0-or-later
"""Running hardsplice as an ordinary user, whoever asks.

An ordinary user runs it as it is. Root hands over to user and group 65534, and that user may be
able to read neither the checkout (below /root, or cloned under umask 077) nor the virtual
environment in it: then a copy of what is needed is staged in a folder that everybody can read.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from hardsplice.telemetry import audit

CHECKOUT = Path(__file__).resolve().parent.parent
NOBODY = 65534
# What hardsplice imports of others': one of the first two, and the last two if they are there.
RUNTIME_MODULES = ("pyseccomp", "seccomp", "prctl", "_prctl")
DROP = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]


@dataclasses.dataclass(frozen=True, slots=True)
class Launcher:
    """How to run a Python that finds hardsplice: `prefix` changes the user, where that is due."""

    prefix: tuple[str, ...]
    python: str
    environment: dict[str, str]
    user: str
    options: tuple[str, ...] = ()  # of hardsplice, without which COMMAND could not run this Python

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs Python with these arguments."""
        return [*self.prefix, self.python, *arguments]

    def works(self) -> bool:
        """Whether this user can run this Python, and finds the program with all that it imports."""
        return _succeeds([*self.prefix, *probe(self.python)], self.environment)


def probe(python: str) -> list[str]:
    """A command that succeeds for whoever can run this Python and finds the program with all that
    it imports.

    It runs itself once more: setpriv(1) still may look into folders that its new user may not.
    """
    code = (
        "import os, sys; assert sys.version_info >= (3, 11); "
        "import hardsplice.app.start, hardsplice.app.stages, hardsplice.sandbox.libseccomp; "
        "hardsplice.sandbox.libseccomp.load(); "
        "os.execv(sys.argv[1], [sys.argv[1], '-c', ''])"
    )
    return [python, "-c", code, python]


def ordinary_user(folder: Path) -> Launcher:
    """The best way to run hardsplice here; `folder`, readable by all, may be used for a copy."""
    environment = {
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    as_found = environment | {"PYTHONPATH": str(CHECKOUT)}
    if os.geteuid() != 0:
        return Launcher((), sys.executable, as_found, f"uid {os.geteuid()}, an ordinary user")
    stay = Launcher((), sys.executable, as_found, "uid 0")

    if not _succeeds([*DROP, "unshare", "--user", "--map-root-user", "--net", "true"], environment):
        reason = "ordinary users may not create user namespaces here"
        return dataclasses.replace(stay, user=f"root: {reason}")
    user = f"uid {NOBODY}, an ordinary user"
    prefix = tuple(DROP)
    in_place = Launcher(prefix, sys.executable, as_found, user)
    if in_place.works():
        return in_place
    program = folder / "program"
    program.mkdir()
    stage(program)
    staged = environment | {"PYTHONPATH": str(program)}
    for python in (sys.executable, os.path.realpath(sys.executable)):
        launcher = Launcher(prefix, python, staged, user)
        if launcher.works():
            return launcher
    return dataclasses.replace(
        stay, user=f"root: others may not run {sys.executable}", options=("--runas", "0")
    )


def stage(target: Path) -> None:
    """Copy the program, its policies and what it imports to where everybody can read them."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("hardsplice", "policy"):
        shutil.copytree(CHECKOUT / name, target / name, ignore=ignore)
    specs = {module: importlib.util.find_spec(module) for module in RUNTIME_MODULES}
    found = {module: spec.origin for module, spec in specs.items() if spec and spec.origin}
    if not found.keys() & {"pyseccomp", "seccomp"}:
        raise SystemExit("demo: cannot find module pyseccomp: run `make demo`")
    for origin in found.values():
        shutil.copy(origin, target)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _succeeds(command: list[str], environment: dict[str, str]) -> bool:
    try:
        done = subprocess.run(command, env=environment, cwd="/", capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def snapshot(root: int) -> list[audit.Process]:
    """The process `root` and all its descendants, as root sees them where sudo needs no answer.

    Raises FileNotFoundError or ProcessLookupError where `root` is gone.
    """
    if os.geteuid() != 0 and shutil.which("sudo"):
        command = ["sudo", "-n", sys.executable, "-m", "hardsplice.telemetry.audit", str(root)]
        seen = subprocess.run(command, capture_output=True, text=True, check=False)
        if seen.returncode == 0:
            return [audit.Process(**fields) for fields in json.loads(seen.stdout)]
    return audit.read_tree(root)
