# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports that unmodified engines publish with our programs, told nothing but where these are:
rootless Podman's rootlessport in bridge networks, and Docker's docker-proxy. Those of newer
releases of Debian run in trees.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.netns import Identity
from tests.support.product import Program, free_ports
from tests.support.published import NOTHING, Engine, engine

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]

ENGINES = ("podman", "podman@trixie", "podman@sid", "docker", "docker@trixie", "docker@sid")
SOME = ("podman", "podman@sid", "docker", "docker@sid")
IN_USE = (
    r"hardsplice: cannot listen on (0\.0\.0\.0 )?(UDP )?port {} on the host: Address already in",
    r"failed to bind host port .*:{}:.* address already in use",  # Docker's own, from 28 on
)
ADDRESS = "192.0.2.7"  # of the name that the container knows


@pytest.fixture(params=ENGINES)
def one(request: pytest.FixtureRequest, user: Identity, program: Program) -> Iterator[Engine]:
    with engine(request.param, user, program) as made:
        yield made


def test_names_pages_and_datagrams(one: Engine) -> None:
    """TCP and UDP, a port that both have, ranges, an address's own port, both families; one server
    has them all; and what is left of them.
    """
    port = free_ports(10)
    waiting = 23 if one.is_docker else 1  # Docker has one for each port and address
    done = one.run(f"""
        serve web -p {port}:8080 -p {port}:53/udp -p {port + 1}:53 -p {port + 1}:53/udp \
            -p {port + 2}-{port + 5}:9000-9003/udp \
            -p 127.0.0.1:{port + 6}:9004/udp -p '[::1]:{port + 6}:9005/udp' \
            -p {port + 7}-{port + 8}:8079-8080 -p 127.0.0.1:{port + 9}:8080
        for host in 127.0.0.1 ::1; do
            case $host in *:*) at=[$host];; *) at=$host;; esac
            get $at:{port}; get $at:{port + 8}
            name @$host -p {port}; name @$host -p {port + 1}; name @$host -p {port + 1} +tcp
            datagrams ports $host {port + 2}-{port + 6}
            datagrams sizes $host {port + 2}
            datagrams clients $host {port + 2}
        done
        datagrams ports 127.0.0.2 {port + 2}
        get 127.0.0.1:{port + 9}
        curl -gfs http://[::1]:{port + 9}/ || echo refused
        for name in hs-host hs-relay-in hs-udp-in {one.stub}; do
            ps -e -o comm= | grep -cx $name
        done
        remove web
        left {port} {port + 9}
    """)
    for_all = ["hello", "hello", *[ADDRESS] * 3]
    known = ["9000", "9001", "9002", "9003"]
    assert done.stdout.split() == [
        *for_all, *known, "9004", "whole", "50", *for_all, *known, "9005", "whole", "50", "9000",
        "hello", "refused", "1", "1", "1", str(waiting), *NOTHING,
    ], done.stderr  # fmt: skip


@pytest.mark.parametrize("one", SOME, indirect=True)
def test_networks_of_ipv6(one: Engine) -> None:
    """Whichever family a client uses, it reaches a container that has the other one, or both."""
    port = free_ports(4)
    # Docker's networks always have IPv4.
    alone = "" if one.is_docker else "--subnet fd00:89:8::/64"
    done = one.run(
        f"""
        engine network create --ipv6 --subnet fd00:89:9::/64 --subnet 10.89.9.0/24 both >/dev/null
        engine network create --ipv6 {alone or "--subnet fd00:89:8::/64"} alone >/dev/null
        network=both serve both -p {port}:8080 -p {port}:9000/udp
        network=alone serve alone -p {port + 1}:8080 -p {port + 1}:9001/udp
        for at in {port} {port + 1}; do
            get 127.0.0.1:$at; get [::1]:$at
            datagrams ports 127.0.0.1 $at; datagrams ports ::1 $at
        done
        remove both alone
        left {port} {port + 3}
        """,
        "--experimental",
    )
    assert done.stdout.split() == [
        *["hello", "hello", "9000", "9000"], *["hello", "hello", "9001", "9001"], *NOTHING,
    ], done.stderr  # fmt: skip


def test_a_container_and_its_whole_life(one: Engine) -> None:
    """It is restarted, stopped, started; its ports come back when ours is killed, or then at the
    latest when what waits is.
    """
    port = free_ports(2)
    done = one.run(f"""
        works() {{ get 127.0.0.1:{port}; datagrams ports 127.0.0.1 {port}; }}
        serve web -p {port}:8080 -p {port}:9000/udp; works
        pkill -KILL -x {one.stub}; engine restart -t 0 web >/dev/null; works
        engine stop -t 0 web >/dev/null; left {port} {port + 1}
        engine start web >/dev/null; works
        pkill -KILL -x hs-host; sleep 0.1; works
        engine restart -t 0 web >/dev/null; works
        {"pkill -KILL dockerd" if one.is_docker else "pkill -KILL conmon"}
        left {port} {port + 1}
    """)
    works = ["hello", "9000"]
    assert done.stdout.split() == [
        *works, *works, *NOTHING, *works, *works, *works, *NOTHING,
    ], done.stderr  # fmt: skip


@pytest.mark.parametrize("one", SOME, indirect=True)
def test_ports_that_the_engine_chooses_and_containers_that_end(one: Engine) -> None:
    """A failed start leaves its port free; what ends by itself is started again by its policy."""
    port = free_ports(2)
    done = one.run(f"""
        works() {{ get 127.0.0.1:{port}; datagrams ports 127.0.0.1 {port}; }}
        engine run --rm --network $network -p {port}:8080 -p {port}:9000/udp $image none 2>/dev/null
        serve web --restart always -p {port}:8080 -p {port}:9000/udp -p 8080 -p 9001/udp; works
        get 127.0.0.1:$(engine port web 8080/tcp | grep -v {port} | sed -n 's/.*://p;q')
        datagrams ports 127.0.0.1 $(engine port web 9001/udp | sed -n 's/.*://p;q')
        pid=$(engine inspect -f '{{{{.State.Pid}}}}' web)
        kill -KILL $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done
        works
        engine rm --force web >/dev/null
        left {port} {port + 1}
    """)
    assert done.stdout.split() == [
        "hello", "9000", "hello", "9001", "hello", "9000", *NOTHING,
    ], done.stderr  # fmt: skip


@pytest.mark.parametrize("one", ["podman", "podman@sid"], indirect=True)
def test_networks_that_change(one: Engine) -> None:
    """A container is disconnected and connected, while another one keeps the networks there."""
    port = free_ports(2)
    done = one.run(f"""
        works() {{ get 127.0.0.1:{port}; datagrams ports ::1 {port}; }}
        engine network create one >/dev/null; engine network create two >/dev/null
        network=one; serve quiet; serve web -p {port}:8080 -p {port}:9000/udp; works
        engine network disconnect one web
        curl -gfs -m 2 http://127.0.0.1:{port}/index.html || echo gone
        engine network connect one web; works
        engine network connect two web; works
        engine network disconnect one web; works
        engine network reload web >/dev/null; works
        remove web quiet
        left {port} {port + 1}
    """)
    works = ["hello", "9000"]
    assert done.stdout.split() == [*works, "gone", *works * 4, *NOTHING], done.stderr


@pytest.mark.parametrize("one", ["podman", "podman@sid"], indirect=True)
def test_pods_and_users_of_their_own(one: Engine) -> None:
    """A pod's ports are those of whichever container is in it; --userns is no obstacle."""
    port = free_ports(3)
    done = one.run(f"""
        works() {{ get 127.0.0.1:$1; datagrams ports 127.0.0.1 $1; }}
        engine pod create --name pod --network bridge -p {port}:8080 -p {port}:9000/udp >/dev/null
        where="--pod pod" serve inside; works {port}
        serve user --userns keep-id --user 0:0 -p {port + 1}:8080 -p {port + 1}:9000/udp
        works {port + 1}
        engine pod restart pod >/dev/null; works {port}
        engine pod rm --force --time 0 pod >/dev/null; remove user
        left {port} {port + 2}
    """)
    assert done.stdout.split() == [*["hello", "9000"] * 3, *NOTHING], done.stderr


@pytest.mark.parametrize("one", ["podman", "podman@sid"], indirect=True)
def test_a_container_with_a_network_of_its_own(one: Engine) -> None:
    """Podman's slirp4netns has rootlessport for its ports, too."""
    port = free_ports(2)
    done = one.run(f"""
        network=slirp4netns:port_handler=rootlesskit
        serve web -p {port}:8080 -p {port}-{port + 1}:9000-9001/udp
        get 127.0.0.1:{port}; get [::1]:{port}
        datagrams ports 127.0.0.1 {port}-{port + 1}; datagrams ports ::1 {port}-{port + 1}
        engine restart -t 0 web >/dev/null; get 127.0.0.1:{port}
        datagrams ports 127.0.0.1 {port}
        remove web
        left {port} {port + 1}
    """)
    assert done.stdout.split() == [
        "hello", "hello", "9000", "9001", "9000", "9001", "hello", "9000", *NOTHING,
    ], done.stderr  # fmt: skip


@pytest.mark.parametrize("one", ["docker", "docker@sid"], indirect=True)
def test_containers_that_outlive_docker(one: Engine) -> None:
    """With live-restore: their ports are gone with the daemon, and come back with it."""
    port = free_ports(2)
    done = one.run(
        f"""
        works() {{ get 127.0.0.1:{port}; datagrams ports 127.0.0.1 {port}; }}
        serve web -p {port}:8080 -p {port}:9000/udp; works
        pkill -KILL dockerd; left {port} {port + 1}
        daemon; works
        remove web
        left {port} {port + 1}
        """,
        "--live-restore",
    )
    works = ["hello", "9000"]
    assert done.stdout.split() == [*works, *NOTHING, *works, *NOTHING], done.stderr


@pytest.mark.parametrize("one", ["docker", "docker@sid"], indirect=True)
def test_docker_shows_what_is_not_forwarded(one: Engine) -> None:
    done = one.run(f"serve web -p {free_ports()}:8080/sctp; remove web")
    text = "rror starting userland proxy: hardsplice: cannot forward a port of protocol 'sctp': "
    assert text in done.stderr, done


def test_a_port_in_use_is_the_containers_error(one: Engine) -> None:
    """In our words, where it is we who find out; the port's owner goes on."""
    port = free_ports(2)
    done = one.run(f"""
        busybox httpd -f -p {port} & pages=$!
        datagrams serve {port + 1} & answers=$!
        datagrams ports 127.0.0.1 {port + 1}
        for at in {port}:8080 {port + 1}:9000/udp; do
            echo $(serve web -p $at 2>&1)
            remove web 2>/dev/null
        done
        datagrams ports 127.0.0.1 {port + 1}
        kill $pages; pkill -P $answers; wait $pages $answers 2>/dev/null
        left {port} {port + 1}
    """)
    before, tcp, udp, *after = done.stdout.splitlines()
    assert (before, *after[0].split(), *after[1].split()) == (
        str(port + 1), str(port + 1), *NOTHING,
    ), done  # fmt: skip
    for at, text in ((port, tcp), (port + 1, udp)):
        assert any(re.search(said.format(at), text) for said in IN_USE), text


@pytest.mark.parametrize("one", ["docker@sid"], indirect=True)
def test_docker_that_listens_itself(one: Engine) -> None:
    """From release 28 on it passes listeners, of which a datagram's says where it was sent."""
    port = free_ports(2)
    proxy = f"{one.runner.folder}/helpers/docker-proxy"
    done = one.run(f"""
        ip -6 address add fd00:89:1::7/128 dev lo nodad
        mv {proxy} {proxy}.real
        printf '#!/bin/sh\necho "$@" >>{proxy}.asked\nexec {proxy}.real "$@"\n' >{proxy}
        chmod 755 {proxy}
        serve web -p {port}:8080 -p {port + 1}:9000/udp
        get 127.0.0.1:{port}; get [::1]:{port}
        for host in 127.0.0.1 127.0.0.2 ::1 fd00:89:1::7; do
            datagrams ports $host {port + 1}
            datagrams clients $host {port + 1}
        done
        grep -c -e -use-listen-fd {proxy}.asked
        remove web
        left {port} {port + 1}
    """)
    expected = ["hello"] * 2 + ["9000", "50"] * 4 + ["4"]
    assert done.stdout.split() == [*expected, *NOTHING], done.stderr


@pytest.mark.parametrize("one", ["podman"], indirect=True)
def test_containers_of_all_networks_share_a_server(one: Engine) -> None:
    """Also those of networks that are internal. One with slirp4netns has one of its own."""
    port = free_ports(4)
    done = one.run(f"""
        engine network create other >/dev/null; engine network create --internal inside >/dev/null
        serve one -p '[::]:{port}:8080'; network=other serve two -p {port + 1}:8080
        network=inside serve three -p {port + 2}:8080
        ps -e -o comm= | grep -cx hs-host
        network=slirp4netns serve four -p {port + 3}:8080
        for at in {port} {port + 1} {port + 2} {port + 3}; do get 127.0.0.1:$at; done
        ps -e -o comm= | grep -cx hs-host
        remove one; get 127.0.0.1:{port + 1}
        engine network connect inside two; engine network disconnect other two
        get 127.0.0.1:{port + 1}
        remove two three four
        left {port} {port + 3}
    """)
    expected = ["1", *["hello"] * 4, "2", "hello", "hello", *NOTHING]
    assert done.stdout.split() == expected, done.stderr


@pytest.mark.parametrize("one", ["podman"], indirect=True)
def test_a_network_that_is_made_anew(one: Engine) -> None:
    """Podman makes another namespace for bridges where it had one for the only container."""
    port = free_ports()
    done = one.run(f"""
        serve web -p {port}:8080; get 127.0.0.1:{port}
        engine network reload web >/dev/null
        get 127.0.0.1:{port}
        engine network create other >/dev/null
        engine network disconnect podman web; engine network connect other web
        get 127.0.0.1:{port}
        remove web
        left {port} {port}
    """)
    assert done.stdout.split() == [*["hello"] * 3, *NOTHING], done.stderr


@pytest.mark.parametrize("one", ["podman", "podman@sid", "docker"], indirect=True)
def test_a_hundred_ports(one: Engine) -> None:
    port = free_ports(100)
    done = one.run(f"""
        serve web -p 127.0.0.1:{port}-{port + 49}:8031-8080 \
            -p 127.0.0.1:{port + 50}-{port + 99}:9000-9049/udp
        get 127.0.0.1:{port + 49}
        datagrams ports 127.0.0.1 {port + 50}-{port + 99}
        engine port web | wc -l
        remove web
        left {port} {port + 99}
    """)
    numbers = [str(9000 + at) for at in range(50)]
    assert done.stdout.split() == ["hello", *numbers, "100", *NOTHING], done.stderr
