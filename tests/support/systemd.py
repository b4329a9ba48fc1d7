# SPDX-License-Identifier: GPL-2.0-or-later
"""A real systemd as PID 1 of namespaces of its own, where it reaches nothing of this machine.

systemd_root.sh makes its root and proves that before anything starts. Outside it is an ordinary
user without any right; what it gets from root is a cgroup of its own. It shares the network with
the tests, so that they can connect to what it runs.
"""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Protocol

import pytest

from hardsplice.kernel import mounts
from tests.support import procfs
from tests.support.netns import Identity
from tests.support.stream import PATIENCE, Violation, eventually

_SYSTEMD = Path("/usr/lib/systemd/systemd")
_SCRIPT = Path(__file__).with_name("systemd_root.sh")
_TARGET = "[Unit]\nDefaultDependencies=no\nWants={}\n"


def reason_to_skip() -> str:
    """Why there can be none here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root, for a cgroup of its own"
    if not _SYSTEMD.exists():
        return "systemd is not installed"
    return "" if _cgroup2() else "there is no cgroup2 hierarchy"


def _cgroup2() -> Path | None:
    found = (Path(one.path) for one in mounts.here().values() if one.kind == "cgroup2")
    return next(found, None)


class Units(Protocol):
    """A systemd with units, of which ``run`` asks in there."""

    def run(self, *words: str) -> tuple[int, str]:
        """A command in there: its status, and what it says."""

    def said(self) -> str:
        """What it has written to its console."""

    def control(self, *words: str) -> str:
        """systemctl, which must succeed."""
        status, said = self.run("systemctl", *words)
        if status != 0:
            raise Violation(f"systemctl {' '.join(words)}: {said}; {self.said()}")
        return said

    def property(self, unit: str, name: str) -> str:
        return self.control("show", "--value", f"--property={name}", unit)

    def is_ready(self, unit: str) -> bool:
        return self.property(unit, "ActiveState") == "active"


class Systemd(Units):
    """One that runs units; ``units`` are their texts by name, and ``wants`` those to start."""

    def __init__(self, user: Identity, program: Path, units: dict[str, str], wants: str) -> None:
        assert user.uid is not None
        self._folder = Path(tempfile.mkdtemp(prefix="hardsplice-tests-"))
        self._said = bytearray()
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self._folder)
            self._folder.chmod(0o755)
            (self._folder / "units").mkdir()
            (self._folder / "root").mkdir()
            os.chown(self._folder / "root", user.uid, user.uid)
            for name, text in {**units, "tests.target": _TARGET.format(wants)}.items():
                (self._folder / "units" / name).write_text(text)
            self._cgroup = self._own_cgroup(user.uid)
            undo.callback(self._remove_cgroup)
            self._process = self._start(user, program)
            undo.callback(self._end)
            self._undo = undo.pop_all()
        try:
            eventually(self._is_up, lambda: f"systemd does not run: {self.said()}")
        except BaseException:
            self.close()
            raise

    def _own_cgroup(self, uid: int) -> Path:
        base = _cgroup2()
        assert base is not None
        cgroup = base / f"hardsplice-tests-{os.getpid()}"
        cgroup.mkdir()
        for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(cgroup / name, uid, uid)
        return cgroup

    def _remove_cgroup(self) -> None:
        eventually(
            lambda: "populated 0" in (self._cgroup / "cgroup.events").read_text(),
            "processes remain in the cgroup",
        )
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            os.rmdir(folder)

    def _start(self, user: Identity, program: Path) -> subprocess.Popen[bytes]:
        screen, terminal = pty.openpty()
        assert user.uid is not None
        os.fchown(terminal, user.uid, user.uid)
        namespaces = ["-U", "-r", "-m", "-p", "-f", "-C", "-i", "-u", "--kill-child=KILL"]
        # As a text: the checkout may be out of this user's reach.
        script = ["bash", "-c", _SCRIPT.read_text(), _SCRIPT.name]
        words = ["unshare", *namespaces, *script, str(self._folder), str(program)]
        process = subprocess.Popen(
            ["sh", "-c", 'echo $$ >"$0"/cgroup.procs; exec "$@"', str(self._cgroup),
             *user.wrap(words)],
            stdin=terminal, stdout=terminal, stderr=terminal, cwd="/", start_new_session=True,
        )  # fmt: skip
        os.close(terminal)
        threading.Thread(target=self._read, args=(screen,), daemon=True).start()
        return process

    def _read(self, screen: int) -> None:
        with contextlib.suppress(OSError):  # EIO: the terminal's last user has ended
            while data := os.read(screen, 4096):
                self._said += data
        os.close(screen)

    def said(self) -> str:
        """What it has written to its console."""
        return self._said.decode(errors="replace")

    @property
    def pid(self) -> int:
        """PID 1, by its number here."""
        pids = procfs.tree(self._process.pid)[1:]
        return pids[0] if pids else 0

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise Violation(f"systemd has ended: {self.said()}")
        return self.pid != 0 and self.run("systemctl", "is-active", "tests.target")[1] == "active"

    def run(self, *words: str) -> tuple[int, str]:
        """A command in there: its status, and what it says."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), "-U", "-m", "-p", "-C", "--", *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        return done.returncode, (done.stdout + done.stderr).strip()

    def processes(self, unit: str) -> list[int]:
        """Processes of a service, by their numbers here: the main one first."""
        inside = int(self.property(unit, "MainPID"))
        for pid, status in procfs.each(procfs.status, procfs.tree(self.pid)).items():
            if int(status["NSpid"].split()[-1]) == inside:
                return procfs.tree(pid)
        return []

    def _end(self) -> None:
        self._process.kill()  # and --kill-child ends PID 1, and with it all in there
        self._process.wait(PATIENCE)

    def close(self) -> None:
        """End it, and all that it runs."""
        self._undo.close()


def skip_unless_possible() -> None:
    """Skip a test where there can be none, and say why."""
    if reason := reason_to_skip():
        pytest.skip(reason)
