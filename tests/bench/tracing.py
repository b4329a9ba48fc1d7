# SPDX-License-Identifier: GPL-2.0-or-later
"""Every system call of an instance, counted by strace(1)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.usage import parse_summary
from tests.support import procfs
from tests.support.netns import Identity
from tests.support.product import Instance, Program


class Traced(Program):
    """The same hardsplice, under strace from its first call on."""

    def __init__(self, program: Program, summary: Path) -> None:
        super().__init__()
        self._program = program
        self._summary = summary

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        words, environment = self._program.argv(identity)
        before = len(identity.wrap([]))
        strace = ["strace", "-f", "-c", "-o", str(self._summary), "--"]
        return [*words[:before], *strace, *words[before:]], environment


def calls_of(instance: Instance, summary: Path) -> Mapping[str, int]:
    """End a traced instance; how often it has made each call."""
    (child,) = procfs.children(instance.pid)
    os.kill(child, signal.SIGTERM)
    assert instance.wait() == 0, instance.messages()
    return parse_summary(summary.read_text())


def skip_without_strace(identity: Identity) -> None:
    """Skip where strace can't do its work."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    probe = identity.wrap(["strace", "-f", "-c", "-o", "/dev/null", "true"])
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{identity.name} may not trace here: {done.stderr.strip()}")
