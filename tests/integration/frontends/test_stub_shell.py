# SPDX-License-Identifier: GPL-2.0-or-later
"""The shell that waits for the end of ports, with a connection that a test holds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from hardsplice.frontends import stub


def test_one_that_is_told_to_end_as_its_server_ends_removes_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.touch()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told, tell = os.pipe()
    with ours, theirs, open(told, "rb") as ready:
        places = f"8<&{theirs.fileno()} 9>&{tell} {theirs.fileno()}>&- {tell}>&-"
        given = ["8", "9", "1", str(path), str(path.stat().st_ino), "", "false"]
        command = ["bash", "-c", f'exec "$@" {places}', "x", stub.SHELL, "-c", stub.SCRIPT, "x"]
        passed = (theirs.fileno(), tell)
        with subprocess.Popen([*command, *given], pass_fds=passed) as process:
            os.close(tell)
            theirs.close()
            assert ready.read() == b"1"
            ours.shutdown(socket.SHUT_RD)  # what it says can't be sent
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2)  # it waits for the server's end
            ours.close()
            assert process.wait(10) == 0
    assert not path.exists()
