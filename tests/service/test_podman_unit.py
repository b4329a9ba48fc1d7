# SPDX-License-Identifier: GPL-2.0-or-later
"""A container of Podman's with a unit as Quadlet writes it, and hardsplice beside it."""

from __future__ import annotations

import shutil

import pytest

from tests.service.booted import configure, process, renewed
from tests.support.nspawn import Machine
from tests.support.stream import eventually

pytestmark = pytest.mark.timeout(120)

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
