# SPDX-License-Identifier: GPL-2.0-or-later
"""What SECURITY.md says of processes and has no command for, seen from outside on running
instances; tests/security_claims.toml says which sentence each test holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import platform
import resource
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import identity_named
from tests.support import procfs
from tests.support.netns import Identity
from tests.support.product import ROOT, Instance, Program, free_ports
from tests.support.stream import PATIENCE

pytestmark = pytest.mark.root  # nobody else may look into processes that aren't dumpable

ROLES = {"hs-host", "hs-namespace", "hs-relay-in", "hs-relay-out", "hs-guard", "hs-init"}
INBOUND, OUTBOUND = {"hs-namespace", "hs-relay-in"}, {"hs-host", "hs-relay-out"}
FIRST_LISTENER = 10  # policy/relay.toml
VALUES, SLOTS, END, SLOT = 0x1C0000, 0x200000, 0x400000, 32
# linux/fcntl.h
F_GET_SEALS = 1034
SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class Live:
    """A running instance with a COMMAND, whose ports may change or not."""

    identity: Identity
    changing: bool
    pids: dict[str, int]
    command: int
    outward: int  # the port on the host that outbound clients get to; inbound ones get to 80

    def namespace(self, name: str, kind: str) -> str:
        return procfs.namespace(self.pids[name], kind)


@pytest.fixture(
    scope="module",
    params=[(who, ports) for who in ("root", "user") for ports in ("fixed", "changing")],
    ids="-".join,
)
def live(request: pytest.FixtureRequest, program: Program) -> Iterator[Live]:
    who, ports = request.param
    identity, outward = identity_named(who), free_ports()
    spec = ["-t", f"127.0.0.1/{free_ports()}:80", "-T", f"127.0.0.1/81:{outward}"]
    spec += ["-t", "auto", "-T", "auto"] if ports == "changing" else []
    given, end = os.pipe()
    told, says = os.pipe()
    instance = Instance(
        program, identity, [*spec, "--", "/bin/sh", "-c", "echo $$; read _"], stdin=given,
        stdout=says,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(instance.discard)
        for fd in (end, told):
            stack.callback(os.close, fd)
        os.close(given)
        os.close(says)
        assert os.read(told, 10).endswith(b"\n"), instance.messages()
        names = procfs.names(instance.pid)
        pids = {name: pid for pid, name in names.items() if name in ROLES}
        (command,) = set(names) - set(pids.values())
        yield Live(identity, ports == "changing", pids, command, outward)


def test_the_roles_are_these(live: Live) -> None:
    assert set(live.pids) == ROLES


# --- where they are -------------------------------------------------------------------------------


def table() -> dict[str, str]:
    """The page's table of processes: where each is."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## The processes")[2]
    rows = [line.strip("| ").split(" | ") for line in text.partition("\n## ")[0].splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 3}


def test_each_process_is_in_the_namespaces_that_the_page_names(live: Live) -> None:
    here = {kind: procfs.namespace(os.getpid(), kind) for kind in ("user", "net", "pid", "mnt")}
    inside = {kind: procfs.namespace(live.command, kind) for kind in ("user", "net", "pid", "mnt")}
    is_root = live.identity.is_root
    found = {name: {kind: live.namespace(name, kind) for kind in here} for name in live.pids}
    where = table()

    assert where["hs-host"] == (
        "the host's; its own mount, IPC, UTS and, for an ordinary user "
        "or root without CAP_SYS_ADMIN, user namespace"
    )
    host = found["hs-host"]
    assert (host["net"], host["pid"]) == (here["net"], here["pid"])
    assert host["mnt"] not in (here["mnt"], inside["mnt"])
    assert (host["user"] == here["user"]) == is_root
    assert host["user"] != inside["user"]

    assert where["hs-namespace"] == (
        "the network namespace that is served; for root with CAP_SYS_ADMIN the host's user "
        "namespace, otherwise that of the network namespace; "
        "its own IPC, UTS and, for root, mount namespace"
    )
    target = found["hs-namespace"]
    assert (target["net"], target["pid"]) == (inside["net"], here["pid"])
    assert target["user"] == (here if is_root else inside)["user"]
    assert (target["mnt"] != here["mnt"]) == is_root
    assert target["mnt"] != inside["mnt"]

    assert where["hs-relay-in, hs-relay-out"] == "the same as hs-namespace; the same as hs-host"
    assert (found["hs-relay-in"], found["hs-relay-out"]) == (target, host)

    assert where["hs-guard (with COMMAND)"] == (
        "the host's network and PID namespace; a user namespace between the host's and COMMAND's"
    )
    guard = found["hs-guard"]
    assert (guard["net"], guard["pid"]) == (here["net"], here["pid"])
    assert guard["user"] not in (here["user"], inside["user"])

    assert where["hs-init (with COMMAND)"] == (
        "COMMAND's user, network and PID namespaces, as their PID 1; "
        "its own mount, IPC and UTS namespace"
    )
    init = found["hs-init"]
    assert {kind: init[kind] for kind in ("user", "net", "pid")} == {
        kind: inside[kind] for kind in ("user", "net", "pid")
    }
    assert procfs.status(live.pids["hs-init"])["NSpid"].split()[-1] == "1"
    assert init["mnt"] not in (here["mnt"], inside["mnt"])


@pytest.mark.parametrize("kind", ["ipc", "uts"])
def test_ipc_and_uts_namespaces_are_nobody_elses(kind: str, live: Live) -> None:
    """A relay has its monitor's."""
    others = {procfs.namespace(pid, kind) for pid in (os.getpid(), live.command)}
    found = [live.namespace(name, kind) for name in ROLES - {"hs-relay-in", "hs-relay-out"}]
    assert len(set(found) | others) == len(found) + len(others)


def test_each_root_is_an_empty_read_only_tmpfs(live: Live) -> None:
    for name, pid in live.pids.items():
        root = f"/proc/{pid}/root/"
        kind = subprocess.run(
            ["stat", "-f", "-c", "%T", root], capture_output=True, text=True, check=True,
            timeout=PATIENCE,
        ).stdout  # fmt: skip
        assert (kind, os.listdir(root)) == ("tmpfs\n", []), name
        assert os.statvfs(root).f_flag & os.ST_RDONLY, name
        with pytest.raises(OSError, match="Read-only file system"):
            os.mkdir(f"{root}/new")


def test_descriptors_are_as_many_as_the_hard_limit_says(live: Live) -> None:
    hard = str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for name, pid in live.pids.items():
        (line,) = (
            line
            for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
            if line.startswith("Max open files")
        )
        assert line.split()[3:5] == [hard, hard], name


# --- numbers of descriptors -----------------------------------------------------------------------


def test_every_number_below_the_first_flows_is_taken(live: Live) -> None:
    """By /dev/null, where nothing has its place there."""
    listeners = 1 + (min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 4)
                     if live.changing else 0)  # fmt: skip
    for name, pid in live.pids.items():
        first = FIRST_LISTENER + (0 if name in ("hs-init", "hs-guard") else listeners)
        found = procfs.descriptors(pid)
        assert set(range(first)) - found.keys() == set(), name
        places = [found[fd] for fd in range(FIRST_LISTENER, first)]
        assert {what.partition(":")[0] for what in places} <= {"socket", "/dev/null"}, name


# --- the address book -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Mapped:
    first: int
    end: int
    rights: str
    inode: int


def books(pid: int) -> list[Mapped]:
    """Where a process has an address book mapped."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "/memfd:targets" in line:
            edges, rights, _, _, inode, *_ = line.split()
            first, end = (int(edge, 16) for edge in edges.split("-"))
            found.append(Mapped(first, end, rights, int(inode)))
    return found


@contextlib.contextmanager
def opened(pid: int, book: Mapped) -> Iterator[int]:
    """The file behind it, as nobody but root can open it, for reading and writing."""
    fd = os.open(f"/proc/{pid}/map_files/{book.first:x}-{book.end:x}", os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def targets(fd: int) -> set[tuple[str, int]]:
    """Address and port of each slot that is used."""
    found = set()
    slots = os.pread(fd, os.fstat(fd).st_size, SLOTS - VALUES)
    for at in range(0, len(slots), SLOT):
        family, port = (
            struct.unpack_from("=H", slots, at)[0],
            *struct.unpack_from("!H", slots, at + 2),
        )
        if family == socket.AF_INET:
            found.add((str(ipaddress.IPv4Address(slots[at + 4 : at + 8])), port))
        elif family == socket.AF_INET6:
            found.add((str(ipaddress.IPv6Address(slots[at + 8 : at + 24])), port))
        else:
            assert family == 0xFFFF, "one that does not exist, and above all not AF_UNSPEC"
    return found


def test_the_book_is_sealed_and_not_even_root_can_write_it(live: Live) -> None:
    last = FUTURE_WRITE if live.changing else WRITE
    for pid in (live.pids[name] for name in INBOUND | OUTBOUND):
        for book in books(pid):
            with opened(pid, book) as fd:
                assert fcntl.fcntl(fd, F_GET_SEALS) == SEAL | SHRINK | GROW | last
                for change in (
                    lambda fd=fd: os.pwrite(fd, b"x", SLOTS - VALUES),
                    lambda fd=fd: os.ftruncate(fd, 0),
                    lambda fd=fd: os.ftruncate(fd, 1 << 24),
                    lambda fd=fd: os.posix_fallocate(fd, 0, 1 << 24),
                ):
                    with pytest.raises(PermissionError):
                        change()


def test_each_direction_has_a_book_of_its_own(live: Live) -> None:
    """In the host monitor both are to be seen where it writes them."""
    inward = {("127.0.0.1", 80), ("::1", 80)}
    outward = {("127.0.0.1", live.outward), ("::1", live.outward)}
    for name in INBOUND | OUTBOUND:
        pid = live.pids[name]
        for book in books(pid):
            with opened(pid, book) as fd:
                seen = targets(fd)
            expected = inward if name in INBOUND else outward
            if book.rights == "rw-s":
                assert (name, live.changing) == ("hs-host", True)
            else:
                assert expected <= seen, name
                assert not seen & (outward if name in INBOUND else inward), name
    inodes = {name: {book.inode for book in books(live.pids[name])} for name in INBOUND | OUTBOUND}
    assert inodes["hs-namespace"] == inodes["hs-relay-in"] != inodes["hs-relay-out"]
    assert inodes["hs-relay-out"] <= inodes["hs-host"]
    assert (inodes["hs-host"] != inodes["hs-relay-out"]) == live.changing


def release() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


def test_the_book_s_mappings_are_sealed_too(live: Live) -> None:
    """mseal(2), of the views that the filters know; proc(5) shows it as "sl" from Linux 6.16 on."""
    if release() < (6, 16):
        pytest.skip("this kernel does not show which mappings are sealed")
    for name in INBOUND | OUTBOUND:
        text = Path(f"/proc/{live.pids[name]}/smaps").read_text()
        for part in text.split("/memfd:targets")[1:]:
            flags = part.partition("VmFlags:")[2].partition("\n")[0].split()
            assert ("sl" in flags) == ("wr" not in flags), name
