# SPDX-License-Identifier: GPL-2.0-or-later
"""Who hears that a start has failed, and that it is ready."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hardsplice.app.command_line import parse_args
from hardsplice.app.progress import Progress
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.messages import LAUNCHER, Kind
from hardsplice.model.errors import HardspliceError, error_of
from hardsplice.model.roles import HOST

FAILURE = HardspliceError("listen on", "port 80", "no", "try again")
IN_FRONT = parse_args(["-t", "80", "--", "true"])
BEHIND = parse_args(["-t", "80", "1"])


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.pair(LAUNCHER, HOST.name)
    yield ours, theirs
    ours.close()


def test_a_failure_is_told_to_the_process_that_waits(
    channels: tuple[Channel, Channel], capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = channels
    assert Progress(BEHIND, theirs, 0.0).fail(FAILURE) == FAILURE.status
    record = ours.receive()
    assert record is not None
    assert record.kind == Kind.FATAL
    assert error_of(record.text).lines() == FAILURE.lines()
    assert capfd.readouterr().err == ""
    theirs.close()


def test_one_that_only_shows_the_audit_is_not_told_of_it(
    channels: tuple[Channel, Channel], capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = channels
    Progress(IN_FRONT, theirs, 0.0).fail(FAILURE)
    theirs.close()
    assert ours.receive() is None
    assert capfd.readouterr().err == (
        "hardsplice: cannot listen on port 80: no\nhardsplice: try again\n"
    )


def test_once_all_is_ready_a_failure_goes_to_the_log(
    channels: tuple[Channel, Channel], capfd: pytest.CaptureFixture[str]
) -> None:
    """The process that waited is told what lock-down had to do without, each thing once."""
    ours, theirs = channels
    progress = Progress(BEHIND, theirs, 0.0)
    progress.ready(["this", "this", "that"], ["a seal"], [], has_ready_fd=False)
    record = ours.receive()
    assert record is not None
    assert record.kind == Kind.READY
    assert record.text.decode().split("\n")[1:] == ["this", "that", "a seal"]
    assert capfd.readouterr().err == (
        "hardsplice: not in force: this\nhardsplice: not in force: that\n"
    )
    progress.fail(ZeroDivisionError("by zero"))
    assert capfd.readouterr().err.startswith("hardsplice: cannot go on serving: ")


def test_a_start_in_the_background_ends_where_nobody_waits_any_more(
    channels: tuple[Channel, Channel],
) -> None:
    ours, theirs = channels
    ours.close()
    with pytest.raises(HardspliceError, match="cannot go into the background: "):
        Progress(BEHIND, theirs, 0.0).ready([], [], [], has_ready_fd=False)
    theirs.close()


def test_one_in_front_goes_on_where_nobody_shows_its_audit(
    channels: tuple[Channel, Channel],
) -> None:
    ours, theirs = channels
    ours.close()
    Progress(IN_FRONT, theirs, 0.0).ready([], [], [], has_ready_fd=False)
