# SPDX-License-Identifier: GPL-2.0-or-later
"""What a runtime's state means to the hook."""

from __future__ import annotations

import json

import pytest

from hardsplice.app.command_line import parse_args
from hardsplice.app.options import Mode
from hardsplice.frontends import oci_hook
from hardsplice.frontends.oci_hook import State, arguments, read_state
from hardsplice.model.errors import HardspliceError

ANNOTATIONS = {
    "org.hardsplice.tcp": "8080:80", "io.podman.annotations.autoremove": "FALSE",
}  # fmt: skip
RUNC: dict[str, object] = {
    "ociVersion": "1.0.2-dev", "id": "web", "pid": 7, "status": "creating", "bundle": "/b",
    "annotations": ANNOTATIONS,
}  # fmt: skip

CHANGES: tuple[dict[str, object], ...] = (
    {"id": ""}, {"id": "../web"}, {"id": ".pid"}, {"id": "a/b"}, {"id": "x" * 201},
    {"id": 7}, {"status": None}, {"pid": "7"}, {"pid": -1}, {"pid": True},
    {"annotations": []}, {"annotations": {"org.hardsplice.tcp": 80}},
)  # fmt: skip


def state(**annotations: str) -> State:
    named = {f"org.hardsplice.{name}": value for name, value in annotations.items()}
    return State("web", "created", 7, named)


def test_a_state_as_runc_writes_it() -> None:
    assert read_state(json.dumps(RUNC).encode()) == State("web", "creating", 7, ANNOTATIONS)


def test_a_state_after_the_end() -> None:
    text = b'{"ociVersion": "1.0", "id": "web", "status": "stopped", "bundle": "/b"}'
    assert read_state(text) == State("web", "stopped", 0, {})


@pytest.mark.parametrize(
    "wrong",
    [
        b"", b"\xff", b"[]", b"[" * 100_000, b"{}",
        *(
            json.dumps(RUNC | change).encode()
            for change in CHANGES
        ),
    ],
)  # fmt: skip
def test_what_is_no_state(wrong: bytes) -> None:
    with pytest.raises(HardspliceError, match="cannot read the container's state"):
        read_state(wrong)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (state(), []),
        (state(tcp=""), []),
        (state(tcp="none"), []),
        (state(tcp="8080:80"), ["-t", "8080:80", "7"]),
        (state(tcp="80,90-91 [::1]/53"), ["-t", "80,90-91", "-t", "[::1]/53", "7"]),
        (state(udp="53", tcp="53"), ["-u", "53", "-t", "53", "7"]),
        (state(tcp="auto"), ["-t", "auto", "7"]),
    ],
)  # fmt: skip
def test_annotations_are_options(asked: State, words: list[str]) -> None:
    assert arguments(asked) == words


def test_the_command_line_is_of_the_containers_process() -> None:
    options = parse_args(arguments(state(tcp="127.0.0.1/8080:80")), ephemeral=lambda: (1, 2))
    assert (options.mode, options.pid, options.foreground) == (Mode.PID, 7, False)
    assert [one.port for one in options.inbound] == [8080]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (state(tpc="80"), "annotation 'org.hardsplice.tpc': there are org.hardsplice.tcp"),
        (state(tcp="eighty"), "cannot parse annotation org.hardsplice.tcp='eighty'"),
        (state(tcp="70000"), "write a number from 1 to 65535"),
        (state(tcp="inherit:80"), "no service manager"),
        (state(tcp="8080:80\n70000"), "org.hardsplice.tcp='70000'"),
        (state(tcp="80")._replace(pid=0), "it has no process"),
    ],
)
def test_wrong_annotations_are_errors_that_name_them(asked: State, says: str) -> None:
    with pytest.raises(HardspliceError, match="cannot") as caught:
        arguments(asked)
    assert says in str(caught.value)


def test_other_stages_are_refused() -> None:
    with pytest.raises(HardspliceError, match="the container is running"):
        oci_hook.run(state()._replace(status="running"))


@pytest.mark.parametrize("value", ["--control /x", "-P/x", "80 --", "-f", "\x00", "--runas=0"])
def test_an_annotation_is_no_option(value: str) -> None:
    with pytest.raises(HardspliceError, match="cannot parse annotation"):
        arguments(state(tcp=value))
