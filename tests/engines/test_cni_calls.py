# SPDX-License-Identifier: GPL-2.0-or-later
"""The CNI plugin called by hand, for what no engine here asks for: CHECK, GC, STATUS, and calls
that come twice, too late, at once or not to their end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import procfs
from tests.support.frontends import executable
from tests.support.netns import Identity, Namespace, clean_environment, mounted
from tests.support.product import Program, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Plugin:
    """Our plugin, as an engine of this identity calls it for a container in a namespace."""

    def __init__(
        self, identity: Identity, namespace: Namespace, folder: Path, program: Program
    ) -> None:
        self.identity = identity
        self.namespace = namespace
        self.folder = folder
        self.path = executable(folder / "plugin", program.stage(), "cni")
        self.port = free_ports()
        self.network = f"hs-test-{os.getpid()}"
        #: Where what is known of instances is: root's is below /run, whatever is set.
        run = "/run" if identity.is_root else str(folder)
        self.state = Path(run, "hardsplice/cni", self.network)

    def start(
        self, command: str, container: str = "c1", *, version: str = "1.1.0", ports: int = 1,
        netns: str | None = None, **more: Any,
    ) -> subprocess.Popen[str]:  # fmt: skip
        """Begin a call."""
        netns = self.namespace.net_path if netns is None else netns
        interfaces = [{"name": "eth0", "sandbox": netns}]
        given = {
            "cniVersion": version, "name": self.network, "type": "hardsplice",
            "runtimeConfig": {"portMappings": [
                {"hostPort": self.port + n, "containerPort": 80, "hostIP": "127.0.0.1"}
                for n in range(ports)
            ]},
            "prevResult": {
                "cniVersion": version, "interfaces": interfaces, "dns": {},
                "ips": [{"interface": 0, "address": "127.0.0.1/8"}],
            },
        }  # fmt: skip
        variables = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0",
            "CNI_NETNS": netns, "CNI_PATH": "/usr/lib/cni", "XDG_RUNTIME_DIR": str(self.folder),
        }  # fmt: skip
        process = subprocess.Popen(
            self.identity.wrap([str(self.path)]), env=clean_environment(variables), cwd="/",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(given | more))
        process.stdin.flush()
        return process

    def call(self, command: str, container: str = "c1", **more: Any) -> tuple[int, Any]:
        """The status of a call, and what it prints; nothing else is said."""
        return self.end(self.start(command, container, **more))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, Any]:
        said, errors = process.communicate(timeout=PATIENCE)
        assert errors == ""
        return process.returncode, json.loads(said) if said else None

    def left(self) -> list[str]:
        """What is known of instances."""
        return sorted(os.listdir(self.state)) if self.state.exists() else []

    def pid(self, container: str = "c1") -> int:
        """The instance of a container."""
        return int((self.state / f"{container}@eth0.pid").read_text())


@pytest.fixture
def plugin(identity: Identity, namespace: Namespace, user_directory: Path, program: Program) -> Any:
    plugin = Plugin(identity, namespace, user_directory, program)
    yield plugin
    for name in plugin.left():
        if name.endswith(".pid"):
            plugin.call("DEL", name.partition("@")[0])
    assert plugin.left() == []
    if plugin.state.exists():
        plugin.state.rmdir()


def _valid(*containers: str) -> dict[str, Any]:
    """What GC is to leave."""
    attachments = [{"containerID": name, "ifname": "eth0"} for name in containers]
    return {"cni.dev/valid-attachments": attachments}


def is_listening(plugin: Plugin) -> bool:
    """Whether somebody listens on our port."""
    wanted = f"0100007F:{plugin.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return any(line.split()[1] == wanted and line.split()[3] == "0A" for line in lines)


def test_an_instance_outlives_the_call_and_ends_with_del(plugin: Plugin) -> None:
    status, said = plugin.call("ADD")
    assert (status, said["ips"], said["dns"]) == (
        0,
        [{"interface": 0, "address": "127.0.0.1/8"}],
        {},
    )
    assert is_listening(plugin)
    assert plugin.call("CHECK") == (0, None)
    assert plugin.call("DEL", netns="") == (0, None)
    assert not is_listening(plugin)
    assert plugin.left() == []
    assert plugin.call("DEL", netns="", prevResult=None) == (0, None), "again, for nothing"


def test_the_instance_is_as_confined_as_any(plugin: Plugin) -> None:
    plugin.call("ADD")
    processes = {plugin.pid(), *procfs.descendants(plugin.pid())}
    assert len(processes) == 3
    for status in procfs.each(procfs.status, processes).values():
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        assert int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0


@pytest.mark.root  # a namespace has a name by a mount
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4])
def test_an_instance_ends_with_its_namespace_s_name_however_soon_that_goes(
    plugin: Plugin, delay: float
) -> None:
    """At each moment of the start, or right after it."""
    with mounted(plugin.namespace, Path(f"/run/netns/{plugin.network}")) as path:
        call = plugin.start("ADD", netns=str(path))
        assert call.stdin is not None
        call.stdin.close()
        call.stdin = None
        time.sleep(delay)
    status, said = plugin.end(call)
    assert status == 0 or said["msg"].startswith("hardsplice: cannot ")
    eventually(lambda: not is_listening(plugin), "the instance outlives the name")


def test_check_notices_other_ports_and_an_instance_that_is_gone(plugin: Plugin) -> None:
    assert plugin.call("CHECK")[1]["code"] == 101
    plugin.call("ADD")
    status, said = plugin.call("CHECK", ports=2)
    assert (status, said["code"], said["cniVersion"]) == (1, 101, "1.1.0")
    os.kill(plugin.pid(), signal.SIGKILL)
    eventually(lambda: not is_listening(plugin), "the instance goes on")
    assert plugin.call("CHECK")[1]["code"] == 101
    assert plugin.call("DEL") == (0, None)


def test_add_replaces_what_an_earlier_one_began(plugin: Plugin) -> None:
    plugin.call("ADD")
    first = plugin.pid()
    assert plugin.call("ADD", ports=2)[0] == 0
    assert plugin.pid() != first
    assert plugin.call("CHECK", ports=2)[0] == 0


def test_a_failed_add_leaves_nothing(plugin: Plugin) -> None:
    plugin.call("ADD")
    status, said = plugin.call("ADD", "c2")
    assert (status, said["code"]) == (1, 100)
    assert "Address already in use" in said["msg"]
    assert plugin.left() == ["c1@eth0.json", "c1@eth0.lock", "c1@eth0.pid"]


def test_gc_ends_what_is_not_named(plugin: Plugin) -> None:
    plugin.call("ADD")
    plugin.port += 1
    plugin.call("ADD", "c2")
    assert plugin.call("GC", **_valid("c2")) == (0, None)
    assert {name.partition("@")[0] for name in plugin.left()} == {"c2"}
    assert plugin.call("CHECK", "c2")[0] == 0
    assert plugin.call("GC", **_valid()) == (0, None)
    assert plugin.left() == []


def test_gc_that_does_not_say_what_is_valid_ends_nothing(plugin: Plugin) -> None:
    plugin.call("ADD")
    assert plugin.call("GC")[1]["code"] == 7
    assert plugin.call("CHECK")[0] == 0


def test_status_and_version(plugin: Plugin) -> None:
    assert plugin.call("STATUS") == (0, None)
    versions = ["0.4.0", "1.0.0", "1.1.0"]
    for version in versions:
        answer = {"cniVersion": version, "supportedVersions": versions}
        assert plugin.call("VERSION", version=version) == (0, answer)


def test_status_where_nothing_could_be_started(plugin: Plugin) -> None:
    if plugin.identity.is_root:
        pytest.skip("root may write anywhere")
    plugin.folder.chmod(0o500)
    status, said = plugin.call("STATUS")
    plugin.folder.chmod(0o755)
    assert (status, said["code"]) == (1, 50)


def test_calls_at_once(plugin: Plugin) -> None:
    """Whatever comes first, the others wait, and the last one holds."""
    calls = [plugin.start("ADD") for _ in range(4)]
    assert [plugin.end(call)[0] for call in calls] == [0] * 4
    assert plugin.call("CHECK")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("seconds", [0.03, 0.1, 0.15, 0.2])
def test_a_call_that_is_killed(plugin: Plugin, number: int, seconds: float) -> None:
    """Whenever that is: nothing runs on unless the instance was ready, and DEL clears it away."""
    call = plugin.start("ADD")
    assert call.stdin is not None
    call.stdin.close()
    try:
        call.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(call.pid, number)
    call.wait(PATIENCE)
    for stream in (call.stdout, call.stderr):
        assert stream is not None
        stream.close()
    assert plugin.call("DEL") == (0, None)
    eventually(lambda: not is_listening(plugin), "somebody still listens")
    assert plugin.left() == []


def test_the_namespaces_end_is_the_instances(plugin: Plugin) -> None:
    plugin.call("ADD")
    pid = plugin.pid()
    plugin.namespace.close()

    def has_ended() -> bool:
        procfs.reap()
        return not os.path.exists(f"/proc/{pid}")

    eventually(has_ended, "it goes on")
    assert plugin.call("DEL", netns="") == (0, None)
