# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports of unmodified engines whose containers are paused, and of two users at the same time."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import Podman
from tests.support.netns import Identity
from tests.support.product import Program, free_ports
from tests.support.published import NOTHING, engine

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]

CGROUP = "/hardsplice-tests"
FORGET = """
at=$(mktemp -d)
mount -t cgroup2 none $at
[ ! -d $at$0 ] || find $at$0 -depth -type d -exec rmdir {} +
umount $at
rmdir $at
"""


@contextlib.contextmanager
def delegated() -> Iterator[None]:
    """A cgroup of the user's, as service managers give one; podman.sh makes it."""
    try:
        yield
    finally:
        words = ["unshare", "--mount", "sh", "-c", FORGET, CGROUP]
        subprocess.run(words, check=True)


@pytest.mark.parametrize("name", ["podman", "podman@sid", "docker", "docker@sid"])
def test_who_connects_to_a_paused_container_is_served_later(
    name: str, user: Identity, program: Program
) -> None:
    """So is who was connected already."""
    port = free_ports(2)
    with engine(name, user, program) as one, delegated():
        options = ""
        if isinstance(one.runner, Podman):
            one.runner.before = ["env", f"DELEGATED={CGROUP}"]
            options = f"--cgroup-parent {CGROUP}"
        said = one.runner.folder / "served" / "said"
        said.mkdir(mode=0o777)
        said.chmod(0o777)
        done = one.run(f"""
            serve web {options} -p {port}:8080 -p {port}:9000/udp
            get 127.0.0.1:{port}; datagrams ports 127.0.0.1 {port}
            mkfifo {said}/ask
            busybox nc 127.0.0.1 {port} <{said}/ask >{said}/before & before=$!
            exec 6>{said}/ask
            for _ in $(seq 100); do
                ss -Htn state established "dport = :{port}" | grep -q . && break; sleep 0.1
            done
            engine pause web >/dev/null || echo not paused
            printf 'GET /index.html HTTP/1.0\r\n\r\n' >&6
            curl -gfs -m 60 http://127.0.0.1:{port}/index.html >{said}/while & while=$!
            datagrams ports 127.0.0.1 {port} >{said}/datagrams & datagrams=$!
            sleep 1
            kill -0 $before && kill -0 $while && kill -0 $datagrams && cat {said}/[bdw]*
            engine unpause web >/dev/null
            wait $before $while $datagrams
            tail -n 1 {said}/before; cat {said}/while {said}/datagrams
            remove web
            left {port} {port + 1}
        """)
    expected = ["hello", "9000", "hello", "hello", "9000", *NOTHING]
    assert done.stdout.split() == expected, done.stderr


def test_two_users_have_ports_at_the_same_time(user: Identity, program: Program) -> None:
    """Each has a server and sockets of their own, in one /run, and neither is in the other's way;
    a port that one of them has, the other is refused.
    """
    assert user.uid is not None
    another = Identity("another", user.uid - 20_000)
    port = free_ports(4)
    with (
        tempfile.TemporaryDirectory() as run,
        engine("podman", user, program) as one,
        engine("podman", another, program) as other,
    ):
        Path(run).chmod(0o755)
        for each in (one, other):
            assert isinstance(each.runner, Podman)
            each.runner.before = ["env", f"SHARED_RUN={run}"]
        assert isinstance(one.runner, Podman)
        begun = f"serve web -p {port}:8080 -p {port}:9000/udp"
        works = f"get 127.0.0.1:{port}; datagrams ports 127.0.0.1 {port}"
        with one.runner.running(f"{one.functions}{begun}; echo $({works})") as (_, said):
            assert said == ["hello", "9000"]
            before = {*sockets(run, user)}
            assert before
            in_use = f"port {port} on the host: Address already in use"
            done = other.run(f"""
                works() {{ get 127.0.0.1:$1; datagrams ports 127.0.0.1 $1; }}
                serve web -p {port + 1}:8080 -p {port + 1}:9000/udp; works {port + 1}
                find $XDG_RUNTIME_DIR -name '*.sock' -path '*/hardsplice/*' | wc -l
                find $XDG_RUNTIME_DIR ! -user {another.uid} ! -user root
                serve second -p {port}:8080 2>&1 | grep -c '{in_use}'
                serve third -p {port}:9000/udp 2>&1 | grep -c '{in_use}'
                works {port}
                remove web second third 2>/dev/null
                ss -Htulpn "sport >= :{port + 1} and sport <= :{port + 3}"
                for _ in $(seq 50); do ours >/dev/null || break; sleep 0.1; done
                ours
                works {port}
            """)
            assert done.stdout.split() == [
                "hello", "9000", "1", "1", "1", "hello", "9000", "hello", "9000",
            ], done.stderr  # fmt: skip
            assert {*sockets(run, user)} == before
            assert not {*sockets(run, another)}


def sockets(run: str, owner: Identity) -> Iterator[Path]:
    """Of a user's servers and containers."""
    for path in Path(run, "user", str(owner.uid)).rglob("*"):
        if path.is_socket() and path.parent.name in ("hardsplice", "rp"):
            assert path.stat().st_uid == owner.uid
            yield path
