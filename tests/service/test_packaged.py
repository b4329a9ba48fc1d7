# SPDX-License-Identifier: GPL-2.0-or-later
"""The packaged units on a machine that boots, with their own settings: start, traffic, reload,
restart and stop.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hardsplice.values import WORKERS_MAX
from tests.support.nspawn import PACKAGED, Machine, reason_to_skip
from tests.support.product import Program
from tests.support.stream import eventually

pytestmark = pytest.mark.timeout(120)

SERVER = """import os, socket, threading
def serve(one):
    with one:
        while data := one.recv(4096):
            one.sendall(data)
listener = socket.create_server(("127.0.0.1", 8000), backlog=1024)
if "NOTIFY_SOCKET" in os.environ:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(os.environ["NOTIFY_SOCKET"])
        manager.send(b"READY=1")
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
CLIENT = """import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10) as client:
    client.sendall(b"ping")
    print(client.recv(4, socket.MSG_WAITALL).decode())
"""
# A server in a namespace with a name.
ECHO = """[Unit]
PartOf=netns@%i.service
After=netns@%i.service
[Service]
Type=notify
ExecStart=nsenter --net=/run/netns/%i python3 /etc/server.py
[Install]
WantedBy=netns@%i.service
"""
# A server in a namespace that systemd makes for it, as an ordinary user.
WEB = """[Service]
Type=notify
DynamicUser=yes
PrivateNetwork=yes
ExecStart=python3 /etc/server.py
Restart=always
"""
# What stands in for a container: the service's main process is not the one in the namespace.
BOX = """[Service]
Type=notify
NotifyAccess=all
Restart=always
ExecStart=unshare --net --fork sh -c 'echo $$$$ >/run/box.pid; ip link set lo up; \
    exec python3 /etc/server.py'
"""
POST = "ExecStartPost=sh -c 'hardsplice -t 127.0.0.1/8084:8000 $(cat /run/pod.pid)'\n"
# Podman without images from elsewhere, without what a container of ours may not do.
PODMAN_TAKES = ("podman", "runc", "conmon", "busybox")
PODMAN_FILES = {
    "/etc/containers/policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
    "/etc/containers/containers.conf": '[containers]\nkeyring=false\n[engine]\nruntime="runc"\n',
    "/etc/containers/storage.conf": '[storage]\ndriver="vfs"\nrunroot="/run/containers/storage"\n'
    'graphroot="/var/lib/containers/storage"\n',
    "/etc/systemd/system/crate.service": """[Unit]
RequiresMountsFor=/run/containers
[Service]
Environment=PODMAN_SYSTEMD_UNIT=%n
KillMode=mixed
Delegate=yes
Type=notify
NotifyAccess=all
Restart=always
ExecStartPre=-rm -f %t/%N.cid
ExecStart=podman run --name=systemd-%N --cidfile=%t/%N.cid --pidfile=%t/%N.pid --replace --rm \
    --log-driver=passthrough --cgroups=split --sdnotify=conmon -d --ulimit=host --pids-limit=-1 \
    --network=none localhost/box:1 /busybox httpd -f -p 127.0.0.1:8000 -h /
ExecStartPost=sh -c 'hardsplice -t 127.0.0.1/8087:8000 "$(cat %t/%N.pid)"'
ExecStop=podman rm -f -t 0 -i --cidfile=%t/%N.cid
ExecStopPost=-podman rm -f -t 0 -i --cidfile=%t/%N.cid
""",
}
PODMAN_IMAGE = """set -e
mkdir -p /var/tmp /tmp/box
cp "$(command -v busybox)" /tmp/box/busybox
echo hello >/tmp/box/index.html
tar -C /tmp/box -c . | podman import -q - box:1
"""
GET = """import sys, urllib.request
where = f"http://127.0.0.1:{sys.argv[1]}/index.html"
print(urllib.request.urlopen(where, timeout=10).read().decode())
"""
EXAMPLES = PACKAGED / "examples"
SERVICES = sorted(path.name for path in PACKAGED.glob("*.service"))


@pytest.fixture(scope="module")
def machine(program: Program) -> Iterator[Machine]:
    """One that is up, with servers and namespaces to make."""
    if reason := reason_to_skip(program.stage()):
        pytest.skip(reason)
    units = {
        "netns@.service": (EXAMPLES / "netns@.service").read_text(),
        "echo@.service": ECHO,
        "web.service": WEB,
        "box.service": BOX,
        "pod.service": BOX.replace("box", "pod") + POST,
    }
    machine = Machine(
        program.stage(),
        {"server.py": SERVER, **{f"systemd/system/{name}": text for name, text in units.items()}},
    )
    yield machine
    machine.close()


def configure(machine: Machine, name: str, *lines: str) -> None:
    """What /etc/hardsplice/NAME.conf says."""
    machine.write(f"/etc/hardsplice/{name}.conf", "\n".join([*lines, ""]))


def passes(machine: Machine, port: int) -> None:
    assert machine.run("python3", "-c", CLIENT, str(port)) == (0, "ping")


def process(machine: Machine, unit: str) -> str:
    """Its main process, by its number in there."""
    pid = machine.property(unit, "MainPID")
    assert pid != "0", machine.journal(unit)
    return pid


def renewed(machine: Machine, before: set[str], *units: str) -> bool:
    """Whether all of them are up, each as another process than ``before``."""
    for unit in units:
        said = machine.control("show", "--property=ActiveState,MainPID", unit)  # at one moment
        now = dict(line.split("=", 1) for line in said.splitlines())
        if now["ActiveState"] != "active" or now["MainPID"] in {"0", *before}:
            return False
    return True


@pytest.fixture
def named(machine: Machine) -> Iterator[str]:
    """hardsplice@blue.service, not started yet, with a server in its namespace."""
    machine.control("start", "netns@blue", "echo@blue")
    configure(machine, "blue", "OPTIONS=-t 127.0.0.1/8080:8000")
    yield "hardsplice@blue.service"
    machine.control("stop", "hardsplice@blue", "netns@blue")


@pytest.fixture
def of_service(machine: Machine) -> Iterator[str]:
    """hardsplice-service@web.service, not started yet, with its server."""
    configure(machine, "web", "OPTIONS=-t 127.0.0.1/8081:8000")
    machine.control("start", "web")
    yield "hardsplice-service@web.service"
    machine.control("stop", "hardsplice-service@web", "web")


@pytest.mark.parametrize("kind", ["named", "of_service"])
def test_start_traffic_reload_restart_and_stop(
    machine: Machine, kind: str, request: pytest.FixtureRequest
) -> None:
    unit: str = request.getfixturevalue(kind)
    port = {"named": 8080, "of_service": 8081}[kind]
    machine.control("start", unit)
    passes(machine, port)
    before = process(machine, unit)
    machine.control("reload", unit)
    eventually(lambda: machine.is_ready(unit), lambda: machine.journal(unit))
    assert process(machine, unit) == before
    passes(machine, port)
    machine.control("restart", unit)
    assert process(machine, unit) != before
    passes(machine, port)
    assert "not in force" not in machine.journal(unit), "the unit leaves the sandbox whole"
    machine.control("stop", unit)
    assert machine.property(unit, "Result") == "success"
    assert machine.run("python3", "-c", CLIENT, str(port))[0] != 0


def test_a_reload_takes_neither_a_right_nor_the_same_user(machine: Machine, named: str) -> None:
    configure(machine, "blue", "OPTIONS=-t 127.0.0.1/8080:8000 --runas nobody")
    machine.control("start", named)
    machine.control("reload", named)
    eventually(lambda: machine.is_ready(named), lambda: machine.journal(named))
    passes(machine, 8080)
    for name in SERVICES:
        text = (PACKAGED / name).read_text()
        assert "CAP_KILL" not in text
        assert "/bin/kill" not in text


def test_each_instance_is_a_user_of_its_own(machine: Machine, named: str) -> None:
    """Some of the kernel's limits are counted by user: one instance must not starve another."""
    machine.control("start", "netns@green", "echo@green")
    configure(machine, "green", "OPTIONS=-t 127.0.0.1/8082:8000")
    machine.control("start", named, "hardsplice@green")
    ids = {
        re.findall(r"^Uid:\t(\d+)", machine.run("cat", f"/proc/{process(machine, unit)}/status")[1],
                   re.MULTILINE)[0]
        for unit in (named, "hardsplice@green.service")
    }  # fmt: skip
    machine.control("stop", "hardsplice@green", "netns@green")
    assert len(ids) == 2, "each another one"
    assert not ids & {"0", "65534"}


# --- what is served comes and goes ----------------------------------------------------------------


def test_a_service_that_comes_back_is_served_again(machine: Machine, of_service: str) -> None:
    machine.control("enable", of_service)
    machine.control("restart", "web")
    eventually(lambda: machine.is_ready(of_service), lambda: machine.journal(of_service))
    for words in (("restart", "web"), ("kill", "--signal=KILL", "web")):
        passes(machine, 8081)
        before = {process(machine, unit) for unit in (of_service, "web")}
        machine.control(*words)
        eventually(lambda: renewed(machine, before, of_service, "web"), "the old ones are there")  # noqa: B023
        passes(machine, 8081)
    machine.control("stop", "web")
    eventually(
        lambda: machine.property(of_service, "ActiveState") == "inactive", "it outlives its service"
    )
    machine.control("disable", of_service)


def test_a_container_is_served_by_its_pid_file(machine: Machine) -> None:
    machine.control("start", "box")
    configure(machine, "box", "OPTIONS=-t 127.0.0.1/8083:8000", "PIDFILE=/run/box.pid")
    machine.control("start", "hardsplice-service@box")
    passes(machine, 8083)
    machine.control("stop", "box")
    assert machine.property("hardsplice-service@box", "ActiveState") == "inactive"


def test_beside_a_container_that_ends_hardsplice_is_not_its_service(machine: Machine) -> None:
    """In the background, from ExecStartPost= of a unit with NotifyAccess=all, as Quadlet writes
    them: were it taken for the main process, Restart= would wait for its end.
    """
    machine.control("start", "pod")
    passes(machine, 8084)
    before = process(machine, "pod")
    assert "unshare" in machine.run("cat", f"/proc/{before}/cmdline")[1]
    assert machine.property("pod", "StatusText") == ""
    machine.run("kill", "-KILL", before)
    eventually(lambda: renewed(machine, {before}, "pod"), lambda: machine.journal("pod"))
    assert machine.property("pod", "NRestarts") == "1"
    passes(machine, 8084)
    machine.control("stop", "pod")


def test_a_container_of_podman_as_quadlet_writes_its_unit(machine: Machine) -> None:
    """Its main process is conmon. The container's end is noticed, and it is started again."""
    lacking = [name for name in PODMAN_TAKES if shutil.which(name) is None]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    for path, text in PODMAN_FILES.items():
        machine.write(path, text)
    status, said = machine.run("sh", "-c", PODMAN_IMAGE)
    assert status == 0, said
    machine.control("daemon-reload")
    machine.control("start", "crate")
    main = process(machine, "crate")
    assert machine.run("cat", f"/proc/{main}/comm")[1] == "conmon"
    assert machine.property("crate", "StatusText") == ""
    configure(machine, "crate", "OPTIONS=-t 127.0.0.1/8088:8000", "PIDFILE=/run/crate.pid")
    machine.control("start", "hardsplice-service@crate")
    for port in (8087, 8088):  # from ExecStartPost=, and by the unit of its own
        assert machine.run("python3", "-c", GET, str(port)) == (0, "hello")
    machine.run("sh", "-c", "kill -KILL $(cat /run/crate.pid)")
    eventually(lambda: renewed(machine, {main}, "crate"), lambda: machine.journal("crate"))
    assert machine.property("crate", "NRestarts") == "1"
    assert machine.run("python3", "-c", GET, "8087") == (0, "hello")
    machine.control("stop", "crate")
    assert machine.property("hardsplice-service@crate", "ActiveState") == "inactive"


def test_a_namespace_that_is_made_anew_is_served_anew(machine: Machine, named: str) -> None:
    """By the example."""
    drop_in = "hardsplice@.service.d/netns.conf"
    machine.write(f"/run/systemd/system/{drop_in}", (EXAMPLES / drop_in).read_text())
    machine.control("daemon-reload")
    machine.control("enable", named, "echo@blue")
    machine.control("start", named)
    for _ in range(2):
        before = process(machine, named)
        machine.control("restart", "netns@blue")
        eventually(
            lambda: machine.is_ready(named) and process(machine, named) != before,  # noqa: B023
            lambda: machine.journal(named),
        )
        passes(machine, 8080)
    machine.control("stop", "netns@blue")
    assert machine.property(named, "ActiveState") == "inactive"
    machine.control("start", "netns@blue")
    eventually(lambda: machine.is_ready(named), lambda: machine.journal(named))
    machine.control("disable", named, "echo@blue")
    machine.run("rm", f"/run/systemd/system/{drop_in}")
    machine.control("daemon-reload")


# --- what else there is to have -----------------------------------------------------------------


def test_ports_that_were_added_are_kept_over_a_restart(machine: Machine, named: str) -> None:
    path = "/run/hardsplice/blue.sock"
    configure(machine, "blue", f"OPTIONS=-t 127.0.0.1/8080:8000 --control {path}")
    machine.control("start", named)
    ctl = ("hardsplicectl", "--socket", path)
    status, said = machine.run(*ctl, "ports", "add", "127.0.0.1/8085:8000")
    assert status == 0, said
    eventually(lambda: machine.property(named, "NFileDescriptorStore") == "2", "it was not kept")
    for words in (("restart", named), ("kill", "--signal=KILL", named)):
        before = process(machine, named)
        machine.control(*words)
        eventually(lambda: renewed(machine, {before}, named), "it does not come back")  # noqa: B023
        passes(machine, 8080)
        passes(machine, 8085)
    listed = json.loads(machine.run(*ctl, "--json", "ports")[1])
    (number,) = [port["id"] for port in listed if port["source"] == "control"]
    assert machine.run(*ctl, "ports", "remove", str(number))[0] == 0
    eventually(lambda: machine.property(named, "NFileDescriptorStore") == "1", "it is kept on")
    machine.control("restart", named)
    assert machine.run("python3", "-c", CLIENT, "8085")[0] != 0


FETCH = """import http.client, sys
client = http.client.HTTPConnection("127.0.0.1", 9820, timeout=10)
client.request(*sys.argv[1:])
answer = client.getresponse()
print(answer.status)
print(answer.read().decode(), end="")
"""


def fetch(machine: Machine, *words: str) -> tuple[int, str]:
    """What the exporter answers: the status, the text."""
    status, said = machine.run("python3", "-c", FETCH, *words)
    assert status == 0, said + machine.journal("hardsplice-exporter")
    number, _, text = said.partition("\n")
    return int(number), text + "\n"


def test_prometheus_has_the_metrics_of_all_instances_and_nobody_has_more(
    machine: Machine, named: str, of_service: str
) -> None:
    for name, port in (("blue", 8080), ("web", 8081)):
        sockets = "--control /run/hardsplice/{0}.sock --metrics /run/hardsplice/{0}.metrics"
        options = f"-t 127.0.0.1/{port}:8000 {sockets.format(name)}"
        configure(machine, name, f"OPTIONS={options}")
    machine.control("start", "hardsplice-exporter.socket", named, of_service)
    passes(machine, 8080)
    status, text = fetch(machine, "GET", "/metrics")
    assert status == 200
    families = {one.name: one for one in text_string_to_metric_families(text)}
    up = {one.labels["socket"]: one.value for one in families["hardsplice_up"].samples}
    assert up == {"/run/hardsplice/blue.metrics": 1, "/run/hardsplice/web.metrics": 1}
    accepted = {
        one.labels["namespace"]: one.value
        for one in families["hardsplice_accepted"].samples
        if one.labels["direction"] == "inbound"
    }
    assert accepted == {"blue": 1, process(machine, "web"): 0}
    assert fetch(machine, "HEAD", "/metrics") == (200, "\n")
    spec = json.dumps({"proto": "tcp", "parentPort": 8086, "childPort": 8000})
    assert fetch(machine, "POST", "/v1/ports", spec)[0] == 404
    assert fetch(machine, "GET", "/v1/flows")[0] == 404
    assert fetch(machine, "DELETE", "/metrics")[0] == 405
    said = machine.run("cat", f"/proc/{process(machine, 'hardsplice-exporter')}/status")[1]
    assert re.search(r"^Uid:\t(?!0\t)", said, re.MULTILINE), "it is not root"
    assert re.search(r"^CapBnd:\t0+$", said, re.MULTILINE), "and can't become it"
    machine.control("stop", of_service)
    eventually(
        lambda: (
            'hardsplice_up{socket="/run/hardsplice/web.metrics"} 0'
            in fetch(machine, "GET", "/metrics")[1]
        ),
        "one that is gone is said to be there",
    )
    machine.control("stop", "hardsplice-exporter.socket", "hardsplice-exporter.service")


# --- the units themselves -------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_understands_each_unit(machine: Machine, name: str) -> None:
    unit = name.replace("@.", "@web.")
    assert machine.run("systemd-analyze", "verify", "--man=no", unit) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_what_systemd_thinks_of_the_exposure(machine: Machine, name: str) -> None:
    """At most 3.5, of which a good part is what set-up needs."""
    said = machine.run("systemd-analyze", "security", "--no-pager", name.replace("@.", "@web."))[1]
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found, said
    assert float(found[1]) <= 3.5, said


@pytest.mark.parametrize("name", [name for name in SERVICES if "@" in name])
def test_there_may_be_as_many_tasks_as_workers_take(name: str) -> None:
    text = (PACKAGED / name).read_text()
    (limit,) = re.findall(r"^TasksMax=(\d+)$", text, re.MULTILINE)
    assert int(limit) >= 2 + 2 * WORKERS_MAX


def test_the_packages_have_every_unit() -> None:
    root = Path(__file__).parents[2] / "packaging"
    units = {path.name for path in PACKAGED.iterdir() if path.is_file()}
    for listed in ("debian/hardsplice.install", "rpm/hardsplice.spec"):
        assert units == set(
            re.findall(r"packaging/systemd/(\S+\.(?:service|socket)) ", (root / listed).read_text())
        )
