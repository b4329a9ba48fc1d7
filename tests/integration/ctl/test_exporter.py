# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl exporter as a process of its own."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.product import free_ports
from tests.support.stream import PATIENCE, eventually
from tests.unit.ctl.fake_server import serving


def is_reached(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_as_its_own_process_it_serves_until_it_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch):
        serves_until_it_is_ended(tmp_path / "control")


def serves_until_it_is_ended(control: Path) -> None:
    port = free_ports()
    words = ["--socket", str(control), "exporter", "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen([sys.executable, "-m", "hardsplice.ctl", *words])
    try:
        eventually(lambda: is_reached(port), "it does not listen")
        for method, path, status in (
            ("GET", "/metrics", 200), ("HEAD", "/metrics", 200), ("GET", "/v1/ports", 404),
            ("POST", "/metrics", 405),
        ):  # fmt: skip
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            client.request(method, path, b"{}" if method == "POST" else None)
            answer = client.getresponse()
            text = answer.read()
            assert answer.status == status
            assert (b"hardsplice_accepted_total{" in text) == ((method, status) == ("GET", 200))
            client.close()
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM
