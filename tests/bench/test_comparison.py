# SPDX-License-Identifier: GPL-2.0-or-later
"""Each cell of README.md's comparison is what its forwarder does here, or what the benchmark found.

Rows about what a forwarder does are tried, with each that is installed, at the job that the
benchmark has (bench/peers.py). Rows about how much are in bench/results/reference.json.
"""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.forwarder import Forwarder
from bench.load import Kit
from bench.peers import KINDS
from bench.usage import counted_calls
from tests.support import procfs
from tests.support.netns import ordinary_user
from tests.support.release import is_debian_12
from tests.support.stream import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULT = json.loads((ROOT / "bench" / "results" / "reference.json").read_text(encoding="utf-8"))
# As the head of the table has them, and as the benchmark has.
COLUMNS = {
    "hardsplice": "hardsplice",
    "pasta": "pasta",
    "RootlessKit": "rootlesskit",
    "rootlessport": "rootlessport",
    "docker-proxy": "docker-proxy",
    "socket-proxyd": "systemd-socket-proxyd",
    "HAProxy": "haproxy",
}
UNKNOWN = "–"  # noqa: RUF001 - what the table has where nothing was measured
HEADER = struct.Struct("=cBHII")


def table() -> tuple[list[str], dict[str, list[str]]]:
    """The head, and the cells of each row by its first."""
    text = README.partition("## Comparison\n")[2].partition("\n## ")[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return lines[0][1:], {line[0]: line[1:] for line in lines[2:]}


HEAD, ROWS = table()


class Witnesses(Kit):
    """The benchmark's kit with another server: one that says what has reached it (witness.py)."""

    def _compile(self, protocol: str) -> None:
        shutil.copy(Path(__file__).with_name("witness.py"), self.programs[protocol])

    @property
    def server_begins(self) -> tuple[str, ...]:
        return (f"/usr/bin/python3 -I {self.programs['tcp']}",)

    def server(
        self, shared: Path, port: int = 80, *options: str, protocol: str = "tcp"
    ) -> list[str]:
        del protocol  # connections only
        return [*self.server_begins[0].split(), *options, str(port), str(shared)]


@pytest.fixture(scope="module")
def kit() -> Iterator[Kit]:
    with Witnesses() as made:
        yield made


class Client:
    """A connection through a forwarder, and what the server says of it."""

    numbers = itertools.count(1)

    def __init__(self, forwarder: Forwarder) -> None:
        self._seen_in = forwarder.bed.shared
        self._number = next(self.numbers)
        self.socket = socket.create_connection(("127.0.0.1", forwarder.port), PATIENCE)
        self.socket.sendall(HEADER.pack(b"C", 0, 0, 0, self._number))

    def send(self, data: bytes, flags: int = 0) -> None:
        """Send, and leave it time to arrive before anything else does."""
        self.socket.send(data, flags)
        time.sleep(0.1)

    def seen(self) -> list[str]:
        """How it ended for the server, how many bytes came, whether one was urgent; nothing if it
        hasn't ended in a second, since a forwarder may forget a connection.
        """
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            for line in self._seen_in.read_bytes().decode().splitlines():
                number, *said = line.strip("\0").split()
                if number == str(self._number):
                    return said
            time.sleep(0.01)
        return []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def half_close(forwarder: Forwarder) -> bool:
    """The client has sent all that it has, and reads the answer."""
    with Client(forwarder) as client:
        client.socket.sendall(b"question")
        client.socket.shutdown(socket.SHUT_WR)
        try:
            return client.socket.recv(100).startswith(b"fin 8 ")
        except ConnectionResetError:
            return False


def reset(forwarder: Forwarder) -> bool:
    """The client resets, and the server learns that this was no regular end."""
    with Client(forwarder) as client:
        client.send(b"part")
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return client.seen()[:1] == ["reset"]


def urgent(forwarder: Forwarder) -> bool:
    """A byte is urgent for the server, too, and what follows it arrives."""
    with Client(forwarder) as client:
        client.send(b"before")
        client.send(b"!", socket.MSG_OOB)
        client.send(b"after")
        client.socket.shutdown(socket.SHUT_WR)
        return client.seen() == ["fin", "11", "True"]


def moving(forwarder: Forwarder) -> list[int]:
    """The processes that have a TCP connection, while there is one."""
    found = []
    for pid in forwarder.processes():
        links = [str(link) for link in procfs.descriptors(pid).values()]
        if any(link.startswith("socket:") for link in links):
            found.append(pid)
    return found


def filtered(forwarder: Forwarder) -> bool:
    """Each process that may hold connections has a seccomp filter that it was not started with."""
    ours = int(procfs.status("self")["Seccomp_filters"])
    filters = [int(procfs.status(pid)["Seccomp_filters"]) - ours for pid in moving(forwarder)]
    assert filters
    return all(filters)


def files(forwarder: Forwarder) -> bool:
    """The root directory of each such process has nothing in it."""
    roots = [list(Path(f"/proc/{pid}/root").iterdir()) for pid in moving(forwarder)]
    assert roots
    return any(roots)


def reads_payload(forwarder: Forwarder) -> bool:
    """Round trips cost calls that read what is sent; a notification now and then costs few."""
    trips = 100

    def work() -> None:
        with socket.create_connection(("127.0.0.1", forwarder.port), PATIENCE) as client:
            client.sendall(HEADER.pack(b"E", 0, 0, 0, 0))
            for _ in range(trips):
                client.sendall(b"payload")
                assert client.recv(7, socket.MSG_WAITALL) == b"payload"

    made = counted_calls(forwarder.processes, work)
    return (
        sum(made.get(name, 0) for name in ("read", "readv", "recv", "recvfrom", "recvmsg")) > trips
    )


TRIED: dict[str, Callable[[Forwarder], bool]] = {
    "passes a half-close on": half_close,
    "passes a reset on": reset,
    "passes urgent data on": urgent,
    "confines itself by a seccomp filter": filtered,
    "sees files while it forwards": files,
    "reads payload into the process": reads_payload,
}


def rows(name: str, kind: str) -> Any:
    """What the benchmark has of a forwarder in a row."""
    (row,) = (row for row in RESULT["rows"] if row["name"] == name)
    return row["peers"][kind]


def median(name: str, what: str) -> Callable[[str], float]:
    return lambda kind: float(rows(name, kind)["median"][what])


def calls(kind: str) -> float:
    return float(sum(rows("connect-1", kind)["calls"].values()))


# The numbers are given as the form says.
MEASURED: dict[str, tuple[Callable[[str], Any], str]] = {
    "GiB/s, 64 connections": (median("bulk-64-up", "rate"), "{:.2f}"),
    "round trips/s, 32 connections": (median("ping-pong-1b-32", "rate"), "{:,.0f}"),
    "new connections/s, 32 at once": (median("connect-32", "rate"), "{:,.0f}"),
    "system calls a connection": (calls, "{:.3g}"),
    "descriptors an idle connection": (median("idle-1000", "descriptors_each"), "{:.0f}"),
    "MiB with 1,000 idle connections": (median("idle-1000", "pss_mib"), "{:.0f}"),
    "ms from start to first answer": (median("start", "ready_ms"), "{:.0f}"),
}


def cells(row: str) -> list[str]:
    """A row of numbers as the table should have it."""
    find, form = MEASURED[row]
    return [
        form.format(find(COLUMNS[column])) if COLUMNS[column] in RESULT["peers"] else UNKNOWN
        for column in HEAD
    ]


def test_each_row_is_tried_or_measured() -> None:
    assert list(ROWS) == [*TRIED, *MEASURED]
    assert list(COLUMNS) == HEAD
    assert all(len(row) == len(HEAD) for row in ROWS.values())
    assert not any(UNKNOWN in ROWS[row] for row in TRIED)


@pytest.mark.parametrize("row", MEASURED)
def test_a_row_of_numbers_is_what_the_benchmark_found(row: str) -> None:
    assert ROWS[row] == cells(row)


@pytest.mark.root
@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_is_what_the_forwarder_does(kit: Kit, column: str) -> None:
    if column != "hardsplice" and not is_debian_12():
        pytest.skip("the page is about the forwarders of Debian 12")
    peer, user = KINDS[COLUMNS[column]](), ordinary_user()
    if reason := peer.obstacle(user):
        pytest.skip(reason)
    rows = {row: does for row, does in TRIED.items() if does != reads_payload or can_trace()}
    with Forwarder(kit, peer, user) as forwarder:
        found = {row: "yes" if does(forwarder) else "no" for row, does in rows.items()}
    assert found == {row: ROWS[row][HEAD.index(column)] for row in rows}


def can_trace() -> bool:
    words = ["strace", "-f", "-c", "-o", "/dev/null", "true"]
    return shutil.which("strace") is not None and subprocess.run(words, check=False).returncode == 0
