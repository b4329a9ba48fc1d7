# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine that boots serves and is asked in these tests."""

from __future__ import annotations

from tests.support.nspawn import PACKAGED, Machine

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
EXAMPLES = PACKAGED / "examples"


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
