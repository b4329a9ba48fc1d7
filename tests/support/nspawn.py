# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that boots: systemd as root in a container. ``Machine`` has the units of the packages
installed as packages install them, each with its own settings.

nspawn_root.sh makes its root. support/systemd.py runs a systemd without root's rights, where some
of those settings can't take effect.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hardsplice.kernel import mounts
from tests.support import procfs
from tests.support.product import ROOT
from tests.support.stream import PATIENCE, Violation, eventually
from tests.support.systemd import Units

PACKAGED = ROOT / "packaging" / "systemd"
_SCRIPT = Path(__file__).with_name("nspawn_root.sh")
# One where packages put it, one where pip does.
_COMMANDS = {"bin/hardsplicectl": "hardsplice.ctl", "local/bin/hardsplice": "hardsplice"}
_COMMAND = '#!/bin/sh\nPYTHONPATH=/program exec /usr/bin/python3 -m {} "$@"\n'
_CALLS = "bpf landlock_create_ruleset landlock_add_rule landlock_restrict_self pidfd_getfd"
# What boots it, but for its root. Its network is its own.
_BOOT = (
    "env", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "systemd-nspawn", "--quiet", "--register=no",
    "--keep-unit", "--link-journal=no", "--console=pipe", "--private-network", "--boot",
    f"--system-call-filter={_CALLS}",
)  # fmt: skip
_TARGET = ("--", "--unit=multi-user.target", "--show-status=0")


def reason_to_skip(program: Path) -> str:
    """Why there can be none here, for a staged program; empty where there can."""
    if os.geteuid() != 0:
        return "needs root, to boot a container"
    if shutil.which("systemd-nspawn") is None:
        return "systemd-nspawn is not installed"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", "import hardsplice.app.stages as s; s.libseccomp.load()"],
        env={"PYTHONPATH": str(program)}, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        return f"/usr/bin/python3 lacks what hardsplice needs: {done.stderr.splitlines()[-1]}"
    done = subprocess.run(
        ["unshare", "--mount", "true"], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else f"no mount namespace: {done.stderr.strip()}"


def _hierarchies() -> list[Path]:
    """Where the cgroup hierarchies are mounted that systemd sorts its processes in."""
    own = ("cgroup", "systemd")  # of cgroup v1, by its name
    return [
        Path(one.path)
        for one in mounts.here().values()
        if one.kind == "cgroup2" or (one.kind, Path(one.path).name) == own
    ]


class Container(Units):
    """One that is up, booted by what ``_command`` says, which may use ``_folder``."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="hardsplice-tests-"))
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        with contextlib.ExitStack() as undo:
            undo.callback(self._messages.close)
            undo.callback(shutil.rmtree, self._folder)
            command = self._command()
            self._cgroups = [one / self._folder.name for one in _hierarchies()]
            for cgroup in self._cgroups:
                cgroup.mkdir()
                undo.callback(_remove_cgroup, cgroup)
            self._process = self._boot(command)
            undo.callback(self._end)
            self._undo = undo.pop_all()
        try:
            eventually(self._is_up, lambda: f"it does not boot: {self.said()}")
        except BaseException:
            self.close()
            raise

    def _command(self) -> list[str]:
        """The words that boot it, in a mount and a PID namespace of its own."""
        raise NotImplementedError

    def _boot(self, command: list[str]) -> subprocess.Popen[bytes]:
        join = 'while [ "$1" != -- ]; do echo $$ >"$1"/cgroup.procs; shift; done; '
        # Whoever is killed, be it these tests, all of it ends.
        words = [
            "setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=private",
            "--pid", "--fork", "--mount-proc", "--kill-child=KILL", *command,
        ]  # fmt: skip
        return subprocess.Popen(
            ["sh", "-c", f'{join} shift; exec "$@"', "sh", *map(str, self._cgroups), "--", *words],
            stdin=subprocess.DEVNULL, stdout=self._messages, stderr=self._messages, cwd="/",
            start_new_session=True,
        )  # fmt: skip

    def said(self) -> str:
        """What was said while it booted, or since."""
        return os.pread(self._messages.fileno(), 1 << 20, 0).decode(errors="replace")

    @property
    def pid(self) -> int:
        """PID 1, by its number here; 0 while there is none."""
        for pid, status in procfs.each(procfs.status, procfs.tree(self._process.pid)[1:]).items():
            if status["NSpid"].split()[2:] == ["1"]:
                return pid
        return 0

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise Violation(f"systemd-nspawn has ended: {self.said()}")
        if self.pid == 0:
            return False
        return self.run("systemctl", "is-active", "multi-user.target")[1] == "active"

    def run(self, *words: str, given: str = "", within: float = PATIENCE) -> tuple[int, str]:
        """A command in there, which ends within as many seconds: its status, and what it says."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid",
             "--cgroup", "--", "env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin", *words],
            input=given, capture_output=True, text=True, timeout=within, check=False, cwd="/",
            start_new_session=True,
        )  # fmt: skip
        return done.returncode, (done.stdout + done.stderr).strip()

    def write(self, path: str, text: str) -> None:
        """Have a file in there."""
        for words, given in ((("mkdir", "-p", os.path.dirname(path)), ""), (("tee", path), text)):
            status, said = self.run(*words, given=given)
            assert status == 0, said

    def journal(self, unit: str) -> str:
        """What a service has said, and what was said of it."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")[1]

    def _end(self) -> None:
        self._process.kill()  # and --kill-child ends nspawn, and with it all in there
        self._process.wait(PATIENCE)

    def close(self) -> None:
        """End it, and all that runs in it."""
        self._undo.close()


class Machine(Container):
    """One of this machine's programs; ``etc`` are files by their paths below /etc."""

    def __init__(self, program: Path, etc: Mapping[str, str]) -> None:
        self._program = program
        self._etc = etc
        super().__init__()

    def _command(self) -> list[str]:
        self._folder.chmod(0o755)
        (self._folder / "root").mkdir()
        self._install(self._etc)
        begin = ["bash", str(_SCRIPT), str(self._folder), str(self._program)]
        return [*begin, *_BOOT, f"--directory={self._folder}/root", *_TARGET]

    def _install(self, etc: Mapping[str, str]) -> None:
        """The commands and units, where packages have them."""
        usr = self._folder / "usr"
        for name, module in _COMMANDS.items():
            path = usr / name
            path.parent.mkdir(parents=True)
            path.write_text(_COMMAND.format(module))
            path.chmod(0o755)
        units = usr / "lib/systemd/system"
        units.mkdir(parents=True)
        for unit in PACKAGED.glob("*.*"):
            shutil.copy(unit, units)
        (self._folder / "etc").mkdir()
        for name, text in etc.items():
            path = self._folder / "etc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for path in self._folder.rglob("*"):
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))


class Tree(Container):
    """One whose root is a folder with all that it needs, which keeps what it writes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        super().__init__()

    def _command(self) -> list[str]:
        return [*_BOOT, "--resolv-conf=off", f"--directory={self._root}", *_TARGET]


def _remove_cgroup(cgroup: Path) -> None:
    def remove() -> bool:
        try:
            for folder, _, _ in os.walk(cgroup, topdown=False):
                os.rmdir(folder)
        except OSError:
            return False
        return True

    eventually(remove, "processes remain in the container's cgroup")
