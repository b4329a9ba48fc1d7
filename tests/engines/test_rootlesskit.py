# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice as the port driver of a namespace that RootlessKit makes for a user: its own clients
ask at its own API, from in there and from outside; and rootless Docker does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import IMAGE, Podman, need, programs_of_the_machine
from tests.support.frontends import datagram_server, datagrams
from tests.support.netns import Identity
from tests.support.product import Program, free_ports
from tests.support.trees import Tree

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]

# What runs in RootlessKit's user namespace: servers, and for a while rootless Docker's proxies for
# two ports, each of which starts Docker's own.
INSIDE = """
ip link set lo up
mkdir $HOME/www; echo hello > $HOME/www/index.html
busybox httpd -f -p 127.0.0.1:8080 -h $HOME/www & servers=$!
{server} & servers="$servers $!"
echo $$ > $HOME/inside.tmp; mv $HOME/inside.tmp $HOME/inside
wait_for $HOME/served
export ROOTLESSKIT_STATE_DIR=$HOME/state
proxy() {{
    rootlesskit-docker-proxy -proto $1 -host-ip 127.0.0.1 -host-port {port} \
        -container-ip 127.0.0.1 -container-port $2 3>$HOME/status-$1 & proxies="$! ${{proxies-}}"
}}
proxy tcp 8080; proxy udp 9000
wait_for $HOME/asked
cat $HOME/status-tcp $HOME/status-udp
kill -INT $proxies; wait $proxies
rootlessctl --socket $HOME/state/api.sock list-ports | tail -n +2
rootlessctl --socket $HOME/state/api.sock info | grep -E 'Port Driver|protocols'
kill $servers
"""
WAIT = """
wait_for() {{ for _ in $(seq 200); do [ -e $1 ] && break; sleep 0.05; done; }}
get() {{
    for _ in $(seq 50); do
        busybox wget -q -O - http://$1/index.html 2>/dev/null && break; sleep 0.1
    done
}}
"""
# RootlessKit runs INSIDE in a network namespace, which hardsplice serves from outside.
START = """
mkdir $HOME/state
cat > $HOME/script <<'END'
{inside}
END
rootlesskit --net=host --copy-up=/etc --copy-up=/run --state-dir $HOME/kit \
    unshare --net sh $HOME/script &
wait_for $HOME/inside
env PYTHONPATH={stage} /usr/bin/python3 -m hardsplice --control $HOME/state/api.sock \
    --control-from-namespace $(cat $HOME/inside)
touch $HOME/served
ports() {{ rootlessctl --socket $HOME/state/api.sock list-ports | tail -n +2; }}
"""
PROXY_ASKS = """
get 127.0.0.1:{port}
datagrams ports 127.0.0.1 {port}; datagrams clients 127.0.0.1 {port}
ports | sort -k 2
touch $HOME/asked
wait
"""


@pytest.fixture
def user_folder(user: Identity) -> Iterator[Path]:
    """A folder that the user can reach."""
    with tempfile.TemporaryDirectory(prefix="hardsplice-tests-") as made:
        path = Path(made)
        path.chmod(0o755)
        yield path


def test_rootless_dockers_proxy_in_rootlesskits_namespace(
    user: Identity, user_folder: Path, program: Program
) -> None:
    """It adds ports, TCP's and UDP's, which lead to Docker's proxy, and removes them at its end."""
    need("rootlesskit", "rootlessctl", "rootlesskit-docker-proxy", "docker-proxy", "ip")
    port = free_ports()
    inside = (WAIT + INSIDE).format(server=datagram_server("9000", user_folder), port=port)
    scripts = (WAIT + START + PROXY_ASKS).format(inside=inside, stage=program.stage(), port=port)
    done = Podman(user, user_folder).run(datagrams(user_folder) + scripts)
    said = [" ".join(line.split()) for line in done.stdout.splitlines()]
    numbers = {" ".join(line.split()[1:]) for line in said[3:5]}
    assert (said[:3], numbers, said[5:7]) == (
        ["hello", "9000", "50"],
        {f"{protocol} 127.0.0.1 {port} 127.0.0.1 {port}" for protocol in ("tcp4", "udp4")},
        ["0", "0"],
    ), done.stderr
    driver, protocols = said[7:]
    assert driver == "- Port Driver: hardsplice"
    assert "tcp tcp4 tcp6 udp udp4 udp6" in protocols


DOCKERD = """
ip link set lo up
rm -f /run/docker /run/containerd /run/xtables.lock
echo $$ > $HOME/inside.tmp; mv $HOME/inside.tmp $HOME/inside
wait_for $HOME/served
export ROOTLESSKIT_STATE_DIR=$HOME/state
exec dockerd --rootless --storage-driver vfs --data-root $HOME/docker --exec-root /run/docker \
    --pidfile $HOME/docker.pid --host unix://$HOME/docker.sock --iptables=false --ip6tables=false \
    {proxy} >$HOME/log 2>&1
"""
DOCKER_RUNS = """
trap 'tail $HOME/log >&2' EXIT
export DOCKER_HOST=unix://$HOME/docker.sock
wait_for $HOME/docker.sock
tar -C {folder}/image -c . | docker import - {image} >/dev/null
serve() {{
    docker run --detach --name $1 --publish $2:8080 {image} sh -c \
        'echo hello >/index.html; exec httpd -f -p 8080 -h /' >/dev/null
}}
serve web {port}; get 127.0.0.1:{port}; get [::1]:{port}; ports
docker restart --time 0 web >/dev/null; get 127.0.0.1:{port}
docker run --detach --name echo --publish {port}:9000/udp --volume {folder}:{folder}:ro {volumes} \
    {image} {server} >/dev/null
for host in 127.0.0.1 ::1; do datagrams ports $host {port}; datagrams clients $host {port}; done
docker restart --time 0 echo >/dev/null; datagrams ports ::1 {port}
docker kill echo >/dev/null; docker rm echo >/dev/null
busybox httpd -f -p {taken} & elsewhere=$!
serve another {taken} 2>$HOME/errors; cat $HOME/errors >&2
kill $elsewhere
docker rm --force web another >/dev/null; ports
kill $(cat $HOME/docker.pid)
wait
"""


@pytest.mark.parametrize("suite", ["", "trixie", "sid"])
def test_rootless_docker(suite: str, user: Identity, user_folder: Path, program: Program) -> None:
    """Its daemon adds and removes ports as containers start and end: of releases 20.10 and 26 by
    the proxy of RootlessKit 1 and 2, and of release 28 by itself.
    """
    tree = Tree(suite, user_folder) if suite else None
    if tree is None:
        need("rootlesskit", "rootlesskit-docker-proxy", "ip", "dockerd", "docker", "containerd")
    proxy = (
        "" if suite == "sid" else '--userland-proxy-path="$(command -v rootlesskit-docker-proxy)"'
    )
    port = free_ports(2)
    script = (WAIT + START + DOCKER_RUNS).format(
        inside=(WAIT + DOCKERD).format(proxy=proxy), folder=user_folder, port=port, taken=port + 1,
        image=IMAGE, stage=tree.stage() if tree else program.stage(),
        server=datagram_server("9000", user_folder), volumes=programs_of_the_machine(),
    )  # fmt: skip
    done = Podman(user, user_folder, tree=tree).run(datagrams(user_folder) + script)
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == [
        "hello", "hello",
        f"1 tcp4 0.0.0.0 {port} 127.0.0.1 {port}", f"2 tcp6 :: {port} ::1 {port}",
        "hello", "9000", "50", "9000", "50", "9000",
    ], done.stderr  # fmt: skip
    text = f"cannot listen on 0.0.0.0 port {port + 1} on the host: Address already in use"
    assert text in done.stderr
