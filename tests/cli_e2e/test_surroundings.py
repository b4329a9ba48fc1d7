# SPDX-License-Identifier: GPL-2.0-or-later
"""Started where a file system lacks what every program counts on: that is said, and what helps."""

from __future__ import annotations

import pytest

from tests.cli_e2e.test_rights import said
from tests.support.engines import need
from tests.support.netns import Identity
from tests.support.product import Program

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]

OTHERS = ("unshare", "--pid", "--fork", "--kill-child")


def after(script: str) -> tuple[str, ...]:
    """Words before a command that change what is mounted, for it alone."""
    return ("unshare", "--mount", "sh", "-ec", f'{script}; exec "$@"', "sh")


@pytest.mark.parametrize("words", [["true"], ["1"], ["--netns", "/proc/1/ns/net"]])
def test_a_proc_of_another_pid_namespace(
    words: list[str], program: Program, identity: Identity
) -> None:
    """A number in there is another process's."""
    line, hint = said(program, identity, *words, before=OTHERS)
    assert line == "cannot use /proc: it shows another PID namespace than this one"
    assert "--mount-proc" in hint


@pytest.mark.parametrize("words", [["true"], ["1"], ["--netns", "/etc"]])
def test_no_proc(words: list[str], program: Program, identity: Identity) -> None:
    before = after("mount -t tmpfs none /proc")
    line, hint = said(program, identity, *words, before=before)
    assert line == "cannot use /proc: /proc/self: No such file or directory"
    assert "--proc /proc" in hint


def test_a_proc_that_is_read_only(program: Program, identity: Identity) -> None:
    before = after("mount --bind /proc /proc; mount -o remount,bind,ro /proc")
    line, hint = said(program, identity, "true", before=before)
    assert line == "cannot create namespaces: Read-only file system"
    assert "/proc is read-only" in hint


def test_no_devices(program: Program, identity: Identity) -> None:
    line, hint = said(program, identity, "true", before=after("mount -t tmpfs none /dev"))
    assert line == "cannot open /dev/null: No such file or directory"
    assert "--dev /dev" in hint


@pytest.mark.parametrize(
    ("has", "lacks"), [("--dev /dev", "--proc /proc"), ("--proc /proc", "--dev /dev")]
)
def test_what_is_said_in_bubblewrap_helps(
    has: str, lacks: str, program: Program, user: Identity
) -> None:
    need("bwrap")
    within = ("bwrap", "--ro-bind", "/", "/", *has.split())
    _, hint = said(program, user, "true", within=within)
    assert hint.endswith(lacks)
