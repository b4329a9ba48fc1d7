# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket of a running hardsplice, locked down as ever: its real clients, whom it hears,
what it tells, and that nothing grows or is lost whatever is sent to it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hardsplice import __version__
from hardsplice.ctl.client import Client, RefusedError
from tests.support import imports, procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Launched, Program, can_bind, free_ports, run
from tests.support.stream import PATIENCE, Stream, eventually, expect, send

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

Launch = Callable[..., Instance]
GROWTH = 2048  # KiB that a process may have more afterwards
FLOWS, CHANGES, CONNECTIONS = 100, 1000, 10_000
_others = itertools.count(58_001)


@dataclass
class Site:
    """A running hardsplice with a control socket."""

    program: Program
    identity: Identity
    instance: Instance
    namespace: Namespace
    path: Path
    port: int  # leads to port 80 of the namespace

    def client(self) -> Client:
        """Somebody who may."""
        return Client(str(self.path))

    def ask(self, path: str) -> Any:
        with contextlib.closing(self.client()) as client:
            return client.get(path)

    def metrics(self) -> dict[tuple[str, str], float]:
        """Each metric's value by its name and its labels but "relay", "protocol" and "namespace",
        summed over TCP's relays.
        """
        with contextlib.closing(self.client()) as client:
            text = client.text("/metrics")
        found: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                assert one.labels.pop("namespace") == str(self.namespace.pid)
                one.labels.pop("relay", None)
                if one.labels.pop("protocol", "tcp") != "tcp":
                    continue
                labels = [f"{key}={val}" for key, val in one.labels.items()]
                key = one.name.removeprefix("hardsplice_"), ",".join(sorted(labels))
                found[key] = found.get(key, 0) + one.value
        return found

    def ctl(self, *words: str, status: int = 0) -> str:
        """What hardsplicectl says, run as the identity."""
        argv, environment = self.program.argv(self.identity)
        if "-m" in argv:
            argv = [*argv[: argv.index("-m") + 1], "hardsplice.ctl"]
        else:  # an installed one lies beside hardsplice
            argv = [*argv[:-1], str(Path(argv[-1]).with_name("hardsplicectl"))]
        done = subprocess.run(
            [*argv, *words], env={**environment, "HARDSPLICE_CONTROL": str(self.path)}, cwd="/",
            check=False, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def rootlessctl(self, *words: str, status: int = 0) -> str:
        """What RootlessKit's own client says."""
        if shutil.which("rootlessctl") is None:
            pytest.skip("rootlessctl is not installed (Debian: rootlesskit)")
        done = subprocess.run(
            self.identity.wrap(["rootlessctl", "--socket", str(self.path), *words]), cwd="/",
            check=False, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def listen(self, stack: contextlib.ExitStack, port: int = 80) -> socket.socket:
        """A server in the namespace."""
        server = stack.enter_context(self.namespace.socket(socket.AF_INET))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen(1024)
        server.settimeout(PATIENCE)
        return server


Pair = tuple[socket.socket, socket.socket]


def connect(stack: contextlib.ExitStack, port: int, server: socket.socket) -> Pair:
    client = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
    accepted = stack.enter_context(server.accept()[0])
    accepted.settimeout(PATIENCE)
    return client, accepted


def exchange(client: socket.socket, server: socket.socket) -> None:
    stream = Stream()
    send(client, stream, 1000)
    expect(server, stream, 1000)
    send(server, stream, 500)
    expect(client, stream, 500)


@contextlib.contextmanager
def sited(
    program: Program, launch: Launch, identity: Identity, folder: Path, *arguments: str
) -> Iterator[Site]:
    with Namespace(identity) as namespace:
        port, path = free_ports(), folder / "control"
        instance = launch(
            identity, "-f", "--control", str(path), "-t", f"127.0.0.1/{port}:80", *arguments,
            str(namespace.pid),
        ).wait_ready()  # fmt: skip
        yield Site(program, identity, instance, namespace, path, port)
        instance.stop()


@pytest.fixture
def site(
    program: Program, launch: Launch, identity: Identity, user_directory: Path
) -> Iterator[Site]:
    with sited(program, launch, identity, user_directory) as made:
        yield made


# --- real clients ---------------------------------------------------------------------------------


def test_rootlessctl_lists_adds_and_removes(site: Site) -> None:
    first = free_ports(2)
    assert "Supported protocols: [tcp tcp4 tcp6 udp udp4 udp6]" in site.rootlessctl("info")
    assert json.loads(site.rootlessctl("info", "--json"))["childPID"] == site.namespace.pid
    spec = f"127.0.0.1:{first}:81/tcp"
    number = site.rootlessctl("add-ports", spec).strip()
    assert number.isdigit()
    conflict = site.rootlessctl("add-ports", spec, status=1)
    assert f"with the id {number}" in conflict
    assert site.rootlessctl("add-ports", f"127.0.0.1:{first + 1}:81/tcp4").strip().isdigit()
    listed = site.rootlessctl("list-ports", "--json").splitlines()
    assert [json.loads(line)["spec"] for line in listed] == [
        {"proto": "tcp", "parentIP": "127.0.0.1", "parentPort": site.port, "childPort": 80},
        {"proto": "tcp", "parentIP": "127.0.0.1", "parentPort": first, "childPort": 81},
        {"proto": "tcp4", "parentIP": "127.0.0.1", "parentPort": first + 1, "childPort": 81},
    ]
    assert str(first) in site.rootlessctl("list-ports")
    with contextlib.ExitStack() as stack:
        exchange(*connect(stack, first, site.listen(stack, 81)))
    assert site.rootlessctl("remove-ports", number).strip() == number
    assert can_bind("127.0.0.1", first)
    assert "no port with that id" in site.rootlessctl("remove-ports", number, status=1)
    assert "udp" not in site.rootlessctl("list-ports")
    assert "Permission denied" in site.rootlessctl("add-ports", "127.0.0.1:1:1/udp", status=1)


def test_hardsplicectl_changes_ports_both_ways(site: Site) -> None:
    first = free_ports(3)
    added = json.loads(site.ctl("--json", "ports", "add", f"127.0.0.1/{first}-{first + 1}:81-82"))
    assert [port["spec"]["childPort"] for port in added] == [81, 82]
    site.ctl("ports", "add", "-T", f"127.0.0.1/8083:{first + 2}")
    listed = site.ctl("ports")
    assert f"127.0.0.1:{first}" in listed
    assert f"loopback:{first + 2}" in listed
    with contextlib.ExitStack() as stack:
        exchange(*connect(stack, first + 1, site.listen(stack, 82)))
        outside = stack.enter_context(socket.create_server(("127.0.0.1", first + 2)))
        inner = stack.enter_context(site.namespace.socket(socket.AF_INET))
        inner.connect(("127.0.0.1", 8083))
        exchange(inner, stack.enter_context(outside.accept()[0]))
    ids = [str(port["id"]) for port in added]
    assert site.ctl("ports", "remove", *ids) == "".join(f"removed {one}\n" for one in ids)
    assert can_bind("127.0.0.1", first)


def test_of_a_range_all_ports_are_added_or_none(site: Site) -> None:
    first = free_ports(3)
    with socket.create_server(("127.0.0.1", first + 2)):
        said = site.ctl("ports", "add", f"127.0.0.1/{first}-{first + 2}", status=1)
        assert f"cannot listen on 127.0.0.1 port {first + 2}" in said
        assert "Address already in use" in said
        assert "ss -ltnp" in said
    assert len(json.loads(site.ctl("ports", "list", "--json"))) == 1
    assert can_bind("127.0.0.1", first)


def test_hardsplicectl_shows_what_happens(site: Site) -> None:
    with contextlib.ExitStack() as stack:
        pair = connect(stack, site.port, site.listen(stack))
        exchange(*pair)
        client = f"127.0.0.1:{pair[0].getsockname()[1]}"
        (flow,) = json.loads(site.ctl("flows", "--json"))["flows"]
        assert (flow["client"], flow["target"]) == (client, "127.0.0.1:80")
        assert (flow["bytesToTarget"], flow["bytesToClient"]) == (1000, 500)
        assert (flow["state"], flow["port"]) == ("established", 1)
        assert client in site.ctl("flows")
        assert client in site.ctl("top", "--interval", "0.1")  # no terminal: one frame
        assert len(json.loads(site.ctl("top", "--interval", "0.1", "--json"))) == 2
    status = site.ctl("status")
    assert f"serves process {site.namespace.pid}" in status
    metrics = json.loads(site.ctl("metrics", "--json"))
    labels = {"namespace": str(site.namespace.pid), "version": __version__}
    assert {"name": "hardsplice_info", "labels": labels, "value": 1.0} in metrics
    assert "hs-relay-in" in site.ctl("audit")
    tree = json.loads(site.ctl("audit", "--json"))["processes"]
    assert {one["comm"] for one in tree} == {
        "hs-host",
        "hs-namespace",
        "hs-relay-in",
        "hs-relay-out",
    }
    assert {one["seccomp"] for one in tree} == {2}


def test_a_port_of_roots_is_not_to_be_had_any_more_and_what_to_do_is_said(site: Site) -> None:
    """Whoever asks, also where root started it; what it says then works."""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 81:
        pytest.skip("ordinary users may bind port 81 here")
    lines = site.ctl("ports", "add", "81", status=1).splitlines()
    assert lines[0].endswith("cannot listen on port 81 on the host: Permission denied")
    assert "start it as root with this port, or, as root, sysctl" in lines[1]
    assert "net.ipv4.ip_unprivileged_port_start=81" in lines[1]
    lines = site.ctl("ports", "add", "-T", "81", status=1).splitlines()
    assert lines[0].endswith("cannot listen on port 81 in the namespace: Permission denied")
    assert "start it with this port, or, as root in there, sysctl" in lines[1]
    inside = [] if site.identity.is_root else ["-U", "--preserve-credentials"]
    way = lines[1].partition("as root in there, ")[2].split(",")[0].split(" ")[:2]
    subprocess.run(
        site.identity.wrap(["nsenter", "-t", str(site.namespace.pid), "-n", *inside, *way]),
        check=True, capture_output=True,
    )  # fmt: skip
    assert " *:81 " in site.ctl("ports", "add", "-T", "81")


def test_curl_speaks_to_it(site: Site) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    url = ["--unix-socket", str(site.path), "http://hardsplice/v1/status"]
    done = subprocess.run(
        site.identity.wrap(["curl", "-sS", "--fail", *url]),
        capture_output=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert json.loads(done.stdout)["pid"] == site.instance.pid


# --- removed ports and their flows ----------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
def test_a_removed_port_refuses_at_once_and_its_flows_go_on_or_are_reset(
    site: Site, reset: bool
) -> None:
    with contextlib.ExitStack() as stack:
        pair = connect(stack, site.port, site.listen(stack))
        exchange(*pair)
        site.ctl("ports", "remove", *(["--reset"] if reset else []), "1")
        with pytest.raises(ConnectionRefusedError):
            connect(stack, site.port, pair[1])
        if reset:
            with pytest.raises(ConnectionResetError):
                pair[0].recv(1)
        else:
            exchange(*pair)


# --- who may --------------------------------------------------------------------------------------

_CONNECT = """
import socket, sys
end = socket.socket(socket.AF_UNIX)
end.settimeout(10)
try:
    end.connect(sys.argv[1])
except OSError as error:
    sys.exit(error.strerror)
what = (sys.argv[2:] or ["GET /v1/audit"])[0].encode()
end.sendall(what + b" HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
print(end.recv(4096).split()[1].decode())
"""


def status_for(site_path: Path, *before: str, what: str = "GET /v1/audit") -> str:
    """The status that somebody is answered with, or what connect(2) says."""
    command = [*before, "/usr/bin/python3", "-I", "-c", _CONNECT, str(site_path), what]
    done = subprocess.run(
        command, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    return (done.stdout + done.stderr).strip()


def setpriv(user: int) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


@pytest.mark.root
def test_nobody_else_is_heard(site: Site) -> None:
    """The mode of the file keeps others out; where somebody changed it, they are told off."""
    assert stat.S_IMODE(site.path.stat().st_mode) == 0o600
    own = setpriv(site.identity.uid or 0)
    other = setpriv(next(_others))
    assert status_for(site.path, *own) == "200"
    assert status_for(site.path, *other) == "Permission denied"
    site.path.chmod(0o666)
    assert status_for(site.path, *other) == "403"
    assert status_for(site.path, *own) == "200"
    assert site.metrics()["denied_total", "what=peer"] == 1
    # Root's id is unknown in the user namespace of an ordinary user's monitor.
    assert status_for(site.path) == ("200" if site.identity.is_root else "403")
    with contextlib.closing(site.client()) as client:  # which knows what to do about it
        assert client.get("/v1/audit")["pid"] == site.instance.pid


@pytest.mark.root
def test_everybody_has_the_metrics_and_nothing_else(
    program: Program, launch: Launch, identity: Identity, user_directory: Path
) -> None:
    path = user_directory / "metrics"
    with sited(program, launch, identity, user_directory, "--metrics", str(path)) as site:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        own, other = setpriv(site.identity.uid or 0), setpriv(next(_others))
        for who in (own, other):
            assert status_for(path, *who, what="GET /metrics") == "200"
            assert status_for(path, *who, what="HEAD /metrics") == "200"
            assert status_for(path, *who, what="POST /metrics\r\nContent-Length: 0\r\n") != "200"
            for what in ("GET /v1/audit", "GET /v1/flows", "GET /v1/ports", "DELETE /v1/ports/1"):
                assert status_for(path, *who, what=what) == "404"
        assert status_for(site.path, *other) == "Permission denied"
        ports = site.ask("/v1/ports")
        assert len(ports) == 1
        said = site.ctl("--socket", str(path), "metrics")
        assert f'hardsplice_info{{namespace="{site.namespace.pid}",' in said
        inside = ["nsenter", f"--target={site.namespace.pid}", "--net", *setpriv(next(_others))]
        assert status_for(path, *inside, what="GET /metrics") == "403", "not the container"


@pytest.mark.root
def test_started_as_root_it_hears_root_whoever_it_runs_as(
    program: Program, launch: Launch, tmp_path: Path
) -> None:
    user = next(_others)
    root = Identity("root")
    with sited(program, launch, root, tmp_path, "--runas", f"{user}:{user}") as site:
        assert procfs.status(site.instance.pid)["Uid"].split()[0] == str(user)
        assert status_for(site.path) == "200"
        tmp_path.chmod(0o755)
        for folder in itertools.islice(tmp_path.parents, 3):
            folder.chmod(folder.stat().st_mode | 0o111)
        site.path.chmod(0o666)
        assert status_for(site.path, *setpriv(user)) == "403"
        assert site.ctl("status")


def test_the_command_is_not_heard_although_it_is_the_same_user(
    identity: Identity, program: Program, user_directory: Path
) -> None:
    """It must not open ports for itself, not even from a namespace of its own making."""
    path = str(user_directory / "control")
    options = ("-q", "--runas", "0") if identity.is_root else ()
    inside = ["/usr/bin/python3", "-I", "-c", _CONNECT, path]
    for more in ([], ["unshare", "-n"]):
        done = run(program, identity, *options, "--control", path, "--", *more, *inside)
        assert done.stdout.strip() == "403", done.stderr


@pytest.mark.root
def test_roots_command_can_not_even_open_the_socket(program: Program, tmp_path: Path) -> None:
    """It is another user, whose the socket isn't, although root in its own namespace."""
    tmp_path.chmod(0o755)
    for folder in itertools.islice(tmp_path.parents, 3):
        folder.chmod(folder.stat().st_mode | 0o111)
    path = str(tmp_path / "control")
    inside = ["/usr/bin/python3", "-I", "-c", _CONNECT, path]
    done = run(program, Identity("root"), "-q", "--control", path, "--", *inside)
    assert (done.returncode, done.stderr.strip()) == (1, "Permission denied")


@pytest.mark.root
def test_where_the_user_is_the_overflow_id_only_the_mode_protects(
    program: Program, launch: Launch, tmp_path: Path
) -> None:
    """Everybody whom a user namespace doesn't know looks like that user."""
    nobody = Identity("nobody", 65534)
    os.chown(tmp_path, 65534, 65534)
    tmp_path.chmod(0o755)
    for folder in itertools.islice(tmp_path.parents, 3):
        folder.chmod(folder.stat().st_mode | 0o111)
    with sited(program, launch, nobody, tmp_path) as site:
        other = setpriv(next(_others))
        assert status_for(site.path, *other) == "Permission denied"
        site.path.chmod(0o666)
        assert status_for(site.path, *other) == "200"


# --- the file -------------------------------------------------------------------------------------


def test_what_an_ended_instance_leaves_is_replaced_and_a_live_one_is_not(
    site: Site, launch: Launch
) -> None:
    again = ["-f", "--control", str(site.path), str(site.namespace.pid)]
    other = launch(site.identity, *again)
    assert other.wait() == 1
    assert "another process listens there" in other.messages()
    assert site.ctl("status")
    site.instance.stop()
    assert site.path.is_socket()
    said = site.ctl("status", status=1)
    assert said.startswith(f"hardsplicectl: cannot reach control socket {site.path}: ")
    assert "--control PATH" in said
    site.instance = launch(site.identity, *again).wait_ready()
    assert site.ctl("status")
    site.instance.stop()


@pytest.mark.parametrize("background", [False, True])
def test_set_up_that_fails_leaves_no_socket(
    identity: Identity, program: Program, user_directory: Path, background: bool
) -> None:
    path = user_directory / "control"
    with Namespace(identity) as namespace, socket.create_server(("127.0.0.1", 0)) as taken:
        spec = ["-t", f"127.0.0.1/{taken.getsockname()[1]}"]
        how = [] if background else ["-f"]
        done = run(program, identity, *how, "--control", str(path), *spec, str(namespace.pid))
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert not path.exists()


# --- what is told ---------------------------------------------------------------------------------


def test_metrics_are_true(site: Site) -> None:
    with contextlib.ExitStack() as stack:
        server = site.listen(stack)
        pairs = [connect(stack, site.port, server) for _ in range(5)]
        for pair in pairs:
            exchange(*pair)
        inbound = "direction=inbound"
        # Bytes are counted once they have been moved, and so may be here before.
        eventually(
            lambda: site.metrics()["bytes_total", f"{inbound},to=client"] == 2500,
            "it was not counted",
        )
        now = site.metrics()
        assert now["flows", f"{inbound},state=established"] == 5
        assert now["accepted_total", inbound] == now["connected_total", inbound] == 5
        assert now["bytes_total", f"{inbound},to=target"] == 5000
        assert now["connect_seconds_count", inbound] == 5
        assert 0 < now["connect_seconds_sum", inbound] < PATIENCE
        assert now["pipes", f"{inbound},state=used"] <= 1  # the one that is always at hand
        assert now["pipes", f"{inbound},state=free"] > 0
        assert now["pool_sockets", f"{inbound},family=ipv4"] > 0
        assert now["ports", f"{inbound},source=option"] == 1
        if os.geteuid() == 0:
            (relay,) = [
                pid for pid in site.instance.relays()
                if procfs.status(pid)["Name"] == "hs-relay-in"
            ]  # fmt: skip
            promised = now["descriptors", inbound] - len(procfs.descriptors(relay))
            assert 0 <= promised <= 32  # sockets that it has asked for
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert now["descriptors_limit", inbound] == limit
        pairs[0][0].close()
        pairs[0][1].close()
        eventually(lambda: site.metrics()["closed_total", inbound] == 1, "it was not counted")


def test_refusals_and_resets_are_counted(site: Site) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ConnectionResetError):
            socket.create_connection(("127.0.0.1", site.port), PATIENCE).close()
        inbound = "direction=inbound"
        eventually(lambda: site.metrics()["refused_total", inbound] == 1, "it was not counted")
        client, server = connect(stack, site.port, site.listen(stack))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        with pytest.raises(ConnectionResetError):
            server.recv(1)
        eventually(lambda: site.metrics()["resets_total", inbound] == 1, "it was not counted")


def test_relays_that_die_are_counted(site: Site) -> None:
    before = site.instance.relays()
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def counted() -> bool:
        now = site.metrics()
        each = [now["relay_restarts_total", f"direction={one}"] for one in ("inbound", "outbound")]
        return each == [1, 1]

    eventually(counted, "they were not counted")
    eventually(lambda: len(site.instance.relays()) == 2, "they were not replaced")
    with contextlib.ExitStack() as stack:
        exchange(*connect(stack, site.port, site.listen(stack)))
    assert site.metrics()["denied_total", "what=call"] == 0


def test_it_goes_with_workers_auto_and_one_family(
    program: Program, launch: Launch, identity: Identity, user_directory: Path
) -> None:
    auto = free_ports()
    more = ["--workers", "2", "-4", "--log-flows", "-t", f"127.0.0.1/auto,{auto}"]
    with sited(program, launch, identity, user_directory, *more) as site:
        with contextlib.ExitStack() as stack:
            server = site.listen(stack, auto)
            eventually(lambda: len(site.ask("/v1/ports")) == 2, "auto has not found it")
            pairs = [connect(stack, auto, server) for _ in range(4)]
            for pair in pairs:
                exchange(*pair)
            assert site.metrics()["flows", "direction=inbound,state=established"] == 4
            assert site.metrics()["ports", "direction=inbound,source=auto"] == 1
        assert "rules out" in site.ctl("ports", "add", "[::1]/8000", status=1)
        (port,) = json.loads(site.ctl("--json", "ports", "add", str(free_ports())))
        assert port["spec"]["parentIP"] == "0.0.0.0"
        assert site.ask("/v1/status")["directions"]["outbound"]["protocols"]["tcp"]["relays"] == 2


# --- many, and hostile ----------------------------------------------------------------------------


def held(site: Site) -> dict[int, tuple[int, int]]:
    """Of each process: descriptors (0 where they are hidden), and KiB of memory."""
    return {
        pid: (
            len(procfs.descriptors(pid)) if os.geteuid() == 0 else 0,
            procfs.resident(pid),
        )
        for pid in site.instance.processes()
    }


def nothing_grew(site: Site, before: dict[int, tuple[int, int]]) -> None:
    def same() -> bool:
        now = held(site)
        return {pid: one[0] for pid, one in now.items()} == {
            pid: one[0] for pid, one in before.items()
        }

    eventually(same, lambda: f"{before} became {held(site)}")
    for pid, (_, memory) in held(site).items():
        assert memory - before[pid][1] < GROWTH, procfs.status(pid)["Name"]


def test_a_thousand_ports_come_and_go_while_a_hundred_flows_run(site: Site) -> None:
    """None is disturbed; descriptors and memory are what they were."""
    port = free_ports()
    spec = {"proto": "tcp", "parentIP": "127.0.0.1", "parentPort": port, "childPort": 80}
    with contextlib.ExitStack() as stack:
        server = site.listen(stack)
        pairs = [connect(stack, site.port, server) for _ in range(FLOWS)]
        client = stack.enter_context(contextlib.closing(site.client()))
        for _ in range(20):  # whatever is made once is made
            client.remove(client.add(spec)["id"], reset_flows=False)
        for pair in pairs:
            exchange(*pair)
        procfs.settle(site.instance.processes())
        before = held(site)
        for number in range(CHANGES):
            added = client.add(spec)
            if number % 10 == 0:
                exchange(*pairs[number // 10 % FLOWS])
            client.remove(added["id"], reset_flows=number % 2 == 0)
        for pair in pairs:
            exchange(*pair)
        assert len(site.ask("/v1/flows")["flows"]) == FLOWS
        nothing_grew(site, before)


def alone(site: Site) -> None:
    """Until nobody else is connected to the control socket."""
    eventually(lambda: site.metrics()["control_connections", ""] == 1, "others are there still")
    procfs.settle(site.instance.processes())


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.settimeout(PATIENCE)
    return client


@pytest.fixture
def as_owner(site: Site) -> Iterator[Site]:
    """The test itself is whoever may connect."""
    if site.identity.uid is not None:
        os.seteuid(site.identity.uid)
    yield site
    os.seteuid(os.getuid())


def test_ten_thousand_connections_and_much_nonsense_leave_nothing(as_owner: Site) -> None:
    site = as_owner
    nonsense = [
        b"", b"hello\n", b"GET /", b"\0" * 5000, b"\x16\x03\x01" * 100,
        b"GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n" * 3,
        b"POST /v1/ports HTTP/1.1\r\nHost: a\r\nContent-Length: 16384\r\n\r\n" + b"[" * 16384,
        b"POST /v1/ports HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
        b"DELETE /v1/ports/1?flows=maybe HTTP/1.1\r\nHost: a\r\n\r\n",
    ]  # fmt: skip

    def burst(number: int) -> None:
        for at in range(number):
            with connected(site.path) as client, contextlib.suppress(OSError):
                client.sendall(nonsense[at % len(nonsense)])

    with contextlib.ExitStack() as stack:
        pair = connect(stack, site.port, site.listen(stack))
        burst(500)
        os.seteuid(os.getuid())
        alone(site)
        before = held(site)
        if site.identity.uid is not None:
            os.seteuid(site.identity.uid)
        burst(CONNECTIONS)
        os.seteuid(os.getuid())
        exchange(*pair)
        assert len(site.ask("/v1/ports")) == 1
        alone(site)
        nothing_grew(site, before)
    procfs.assert_quiet(site.instance.processes())


def test_those_who_sit_there_neither_lock_others_out_nor_wake_anybody(as_owner: Site) -> None:
    site = as_owner
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connected(site.path))
        os.seteuid(os.getuid())
        assert site.ask("/v1/audit")["pid"] == site.instance.pid
        used = procfs.usage(site.instance.processes(), 1.0)
        assert used.ticks <= 2
        assert used.switches <= 4  # a look a second for those that are late


def test_with_few_descriptors_left_it_goes_on(
    program: Program, launch: Launch, identity: Identity, user_directory: Path
) -> None:
    """Places of listeners are so many that a relay has descriptors for connections left."""
    with Namespace(identity) as namespace:
        path = user_directory / "control"
        instance = launch(
            identity, "-f", "--control", str(path), str(namespace.pid), descriptors=150
        ).wait_ready()
        site = Site(program, identity, instance, namespace, path, 0)
        first = free_ports(150)

        def add_all() -> None:
            with contextlib.closing(site.client()) as client:
                for number in range(150):
                    client.add({"proto": "tcp", "parentPort": first + number, "childPort": 80})

        with pytest.raises(RefusedError, match=r"there are places for \d+ listeners"):
            add_all()
        assert len(site.ask("/v1/ports")) > 20
        instance.stop()


# --- nothing comes late ---------------------------------------------------------------------------


def test_whatever_is_asked_nothing_is_imported_after_lock_down(
    identity: Identity, user_directory: Path
) -> None:
    requests = [
        ("GET", "/v1/info", b""), ("GET", "/v1/ports", b""), ("GET", "/v1/status", b""),
        ("GET", "/v1/flows", b""), ("GET", "/v1/audit", b""), ("GET", "/metrics", b""),
        ("GET", "/nowhere", b""), ("PUT", "/metrics", b""), ("GET", "/metrics?a=b", b""),
        ("POST", "/v1/ports", b"{"), ("POST", "/v1/ports", b"\xff"), ("POST", "/v1/ports", b"[]"),
        ("POST", "/v1/ports", b"[" * 16384),
        ("POST", "/v1/ports", b'{"proto":"tcp","parentIP":"\\u00e9","parentPort":1,"childPort":1}'),
        ("POST", "/v1/ports", b'{"proto":"tcp","parentIP":"::1","parentPort":1e9,"childPort":1}'),
        ("POST", "/v1/ports", b'{"proto":"tcp","parentIP":"fe80::1%lo","parentPort":9}'),
        ("DELETE", "/v1/ports/77", b""), ("DELETE", "/v1/ports/1?flows=reset", b""),
    ]  # fmt: skip
    program = Launched(imports.__file__)
    with contextlib.closing(program), Namespace(identity) as namespace:
        path = user_directory / "control"
        arguments = ["-f", "--control", str(path), "-t", f"127.0.0.1/{free_ports()}:80"]
        instance = Instance(program, identity, [*arguments, str(namespace.pid)]).wait_ready()
        try:
            client = Client(str(path))
            with contextlib.closing(client):
                for method, target, body in requests:
                    with contextlib.suppress(RefusedError):
                        client._request(method, target, body)
            instance.process.terminate()
            assert instance.wait() == 0
            assert "imported after lock-down: nothing\n" in instance.messages()
        finally:
            instance.discard()
