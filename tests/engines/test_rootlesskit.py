# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice as the port driver of a namespace that RootlessKit makes for a user: its own clients
ask at its own API, from in there and from outside; and rootless Docker does.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.relay.test_control_inside import PROXY
from tests.support.engines import IMAGE, Podman, need
from tests.support.netns import Identity
from tests.support.product import Program, free_ports

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]

# What runs in RootlessKit's user namespace: a server, and for a while the proxy of rootless Docker.
INSIDE = """
ip link set lo up
mkdir $HOME/www; echo hello > $HOME/www/index.html
busybox httpd -f -p 127.0.0.1:8080 -h $HOME/www &
server=$!
echo $$ > $HOME/inside.tmp; mv $HOME/inside.tmp $HOME/inside
wait_for $HOME/served
export ROOTLESSKIT_STATE_DIR=$HOME/state PATH={folder}:$PATH
rootlesskit-docker-proxy -proto tcp -host-ip 127.0.0.1 -host-port {port} \
    -container-ip 127.0.0.1 -container-port 8080 3>$HOME/status &
proxy=$!
wait_for $HOME/asked
cat $HOME/status
kill -INT $proxy; wait $proxy
rootlessctl --socket $HOME/state/api.sock list-ports | tail -n +2
rootlessctl --socket $HOME/state/api.sock info | grep -E 'Port Driver|protocols'
kill $server
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
ports
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
    """It adds a port, which leads to Docker's proxy, and removes it at its end."""
    need("rootlesskit", "rootlessctl", "rootlesskit-docker-proxy", "ip")
    proxy = user_folder / "docker-proxy"
    proxy.write_text(PROXY)
    proxy.chmod(0o755)
    port = free_ports()
    inside = (WAIT + INSIDE).format(folder=user_folder, port=port)
    script = (WAIT + START + PROXY_ASKS).format(inside=inside, stage=program.stage(), port=port)
    done = Podman(user, user_folder).run(script)
    said = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert said[:3] == ["hello", f"1 tcp4 127.0.0.1 {port} 127.0.0.1 {port}", "0"], done.stderr
    driver, protocols = said[3:]
    assert driver == "- Port Driver: hardsplice"
    assert "tcp tcp4 tcp6" in protocols


DOCKERD = """
ip link set lo up
rm -f /run/docker /run/containerd /run/xtables.lock
echo $$ > $HOME/inside.tmp; mv $HOME/inside.tmp $HOME/inside
wait_for $HOME/served
export ROOTLESSKIT_STATE_DIR=$HOME/state
exec dockerd --rootless --storage-driver vfs --data-root $HOME/docker --exec-root /run/docker \
    --pidfile $HOME/docker.pid --host unix://$HOME/docker.sock --iptables=false \
    --userland-proxy-path="$(command -v rootlesskit-docker-proxy)" >$HOME/log 2>&1
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
serve another {taken} 2>$HOME/errors; cat $HOME/errors >&2
docker rm --force web another >/dev/null; ports
kill $(cat $HOME/docker.pid)
wait
"""


def test_rootless_docker(user: Identity, user_folder: Path, program: Program) -> None:
    """Its daemon adds and removes ports as containers start and end."""
    need("rootlesskit", "rootlesskit-docker-proxy", "ip", "dockerd", "docker", "containerd")
    port = free_ports()
    scripts = WAIT + START + DOCKER_RUNS
    with socket.create_server(("", 0)) as elsewhere:
        taken = elsewhere.getsockname()[1]
        script = scripts.format(
            inside=(WAIT + DOCKERD).format(), folder=user_folder, port=port, taken=taken,
            image=IMAGE, stage=program.stage(),
        )  # fmt: skip
        done = Podman(user, user_folder).run(script)
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == [
        "hello", "hello",
        f"1 tcp4 0.0.0.0 {port} 127.0.0.1 {port}", f"2 tcp6 :: {port} ::1 {port}",
        "hello",
    ], done.stderr  # fmt: skip
    assert (
        f"cannot listen on 0.0.0.0 port {taken} on the host: Address already in use" in done.stderr
    )
