# SPDX-License-Identifier: GPL-2.0-or-later
"""A container in a bridge network of an ordinary user's, with a unit of the user's manager, whose
port our rootlessport publishes.

Quadlet's units have conmon as their main process. Podman leaves it outside of the unit where the
machine has cgroups of version 1 as well, so this one's is `podman run`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.service.test_podman_unit import GET, PODMAN_IMAGE, PODMAN_TAKES
from tests.service.test_scope import AS_USER, MANAGER, scopes
from tests.support.nspawn import Machine
from tests.support.stream import eventually

pytestmark = pytest.mark.timeout(120)

TAKES = (*PODMAN_TAKES, "crun", "newuidmap", "slirp4netns", "iptables-nft", "dbus-daemon")
NETAVARK = "/usr/lib/podman/netavark"
HOME = "/tmp/home"
PROGRAM = """#!/usr/bin/python3 -I
import sys
sys.path.insert(0, "/program")
from hardsplice.frontends import programs
sys.exit(programs.rootlessport())
"""
FILES = {
    "/etc/containers/policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
    "/etc/containers/containers.conf": """[containers]
keyring=false
[engine]
runtime="crun"
cgroup_manager="cgroupfs"
helper_binaries_dir=["/tmp/helpers", "/usr/lib/podman"]
""",
    "/etc/containers/storage.conf": '[storage]\ndriver="vfs"\n',
    "/etc/resolv.conf": "nameserver 127.0.0.1\n",
    "/etc/subuid": "user:100000:65536\n",
    "/etc/subgid": "user:100000:65536\n",
    "/tmp/helpers/rootlessport": PROGRAM,
    "/etc/systemd/system/manager.service": MANAGER,
    "/etc/systemd/user/web.service": f"""[Service]
Environment=PODMAN_SYSTEMD_UNIT=%n HOME={HOME} PATH=/usr/local/bin:/usr/sbin:/usr/bin
Type=exec
KillMode=mixed
Delegate=yes
Restart=always
ExecStart=podman run --name=systemd-%N --replace --rm --sdnotify=ignore --pids-limit=-1 \\
    --ulimit=host --network=bridge --publish 8090:8000 \\
    localhost/box:1 /busybox httpd -f -p 8000 -h /
ExecStop=podman rm -f -t 0 -i systemd-%N
ExecStopPost=-podman rm -f -t 0 -i systemd-%N
""",
}
PREPARE = f"""set -e
echo user:x:1000:1000::{HOME}:/bin/sh >>/etc/passwd
echo user:x:1000: >>/etc/group
install -d -m 700 -o 1000 -g 1000 /run/user/1000 {HOME}
install -d -m 1777 /var/tmp
chmod 755 /tmp/helpers/rootlessport
install -d -m 755 /dev/net /etc/alternatives
chmod 666 /dev/net/tun
ln -sf /usr/sbin/iptables-nft /etc/alternatives/iptables
ln -sf /usr/sbin/ip6tables-nft /etc/alternatives/ip6tables
"""


def test_a_port_of_a_users_container_with_a_unit(machine: Machine) -> None:
    """The server of its ports is in a scope of its own. The port is there again after a restart of
    the unit, when the server was killed, and when the container was; nothing is left at the end.
    """
    search = "/usr/sbin:/usr/bin"
    lacking = [name for name in TAKES if shutil.which(name, path=search) is None]
    lacking += [] if Path(NETAVARK).exists() else [NETAVARK]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}")

    def journal() -> str:
        return machine.run("journalctl", "--no-pager", "--lines=60")[1]

    def as_user(*words: str) -> str:
        status, said = machine.run(*AS_USER, f"HOME={HOME}", *words)
        assert status == 0, f"{said}\n{journal()}"
        return said

    for path, text in FILES.items():
        machine.write(path, text)
    status, said = machine.run("sh", "-c", PREPARE)
    assert status == 0, said
    if machine.run("systemctl", "start", "manager.service")[0] != 0:
        pytest.skip(f"no user's manager: {machine.journal('manager.service')}")
    if machine.run(*AS_USER, "systemctl", "--user", "start", "dbus.socket")[0] != 0:
        pytest.skip("no user's bus: dbus-user-session is not installed")
    as_user("sh", "-c", PODMAN_IMAGE.replace("/tmp/box", f"{HOME}/box"))
    as_user("systemctl", "--user", "start", "web")

    def answers() -> bool:
        return machine.run("python3", "-c", GET, "8090") == (0, "hello")

    eventually(answers, journal)
    (scope,) = scopes(machine)
    group = as_user("systemctl", "--user", "show", "--value", "--property=ControlGroup", scope)
    _, servers = machine.run("pgrep", "-x", "hs-host")
    assert machine.run("cat", f"/proc/{servers}/cgroup")[1].endswith(f"0::{group}")
    for what in (
        ("systemctl", "--user", "restart", "web"),
        ("pkill", "-KILL", "-x", "hs-host"),
        ("podman", "kill", "systemd-web"),  # Restart= has it again
    ):
        as_user(*what)
        eventually(answers, journal)
    as_user("systemctl", "--user", "stop", "web")
    eventually(lambda: not scopes(machine), "the server goes on without a container")
    assert machine.run("pgrep", "^hs-") == (1, "")
    assert machine.run("pgrep", "-x", "rootlessport") == (1, "")
    left = ("find", "/run/user/1000", "-path", "*/hardsplice/*")
    eventually(lambda: machine.run(*left) == (0, ""), lambda: machine.run(*left)[1])
