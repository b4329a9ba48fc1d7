# SPDX-License-Identifier: GPL-2.0-or-later
"""A server of many containers' ports leaves the unit of the one that started it, by the user's own
service manager, as root of a user namespace; and goes on when that unit is stopped.
"""

from __future__ import annotations

import pytest

from tests.support.nspawn import Machine
from tests.support.stream import eventually

pytestmark = pytest.mark.timeout(120)

MANAGER = """[Service]
User=1000
Type=notify
Delegate=yes
Environment=XDG_RUNTIME_DIR=/run/user/1000
ExecStart=/lib/systemd/systemd --user
"""
PROGRAM = """import os, sys, time
sys.path.insert(0, "/program")
from hardsplice.frontends import scope
if os.fork() == 0:
    with scope.leaving_unit():
        pass
time.sleep(100)
"""
AS_USER = (
    "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "env",
    "XDG_RUNTIME_DIR=/run/user/1000",
)  # fmt: skip


def test_it_has_a_scope_of_its_own(machine: Machine) -> None:
    def as_user(*words: str) -> str:
        status, said = machine.run(*AS_USER, *words)
        assert status == 0, said
        return said

    machine.run("sh", "-c", "echo user:x:1000:1000::/tmp:/bin/sh >>/etc/passwd")
    assert machine.run("install", "-d", "-m", "700", "-o", "1000", "/run/user/1000")[0] == 0
    machine.write("/etc/systemd/system/manager.service", MANAGER)
    machine.write("/tmp/program.py", PROGRAM)
    if machine.run("systemctl", "start", "manager.service")[0] != 0:
        pytest.skip(f"no user's manager: {machine.journal('manager.service')}")
    if machine.run(*AS_USER, "systemctl", "--user", "start", "dbus.socket")[0] != 0:
        pytest.skip("no user's bus: dbus-user-session is not installed")
    words = ("unshare", "-Ur", "/usr/bin/python3", "/tmp/program.py")
    as_user("systemd-run", "--user", "--quiet", "--unit=first.service", *words)
    found = eventually(lambda: scopes(machine), "it has no scope")
    as_user("systemctl", "--user", "stop", "first.service")
    assert scopes(machine) == found, "it was ended with the unit that it was started in"
    as_user("systemctl", "--user", "stop", *found)


def scopes(machine: Machine) -> list[str]:
    words = ("systemctl", "--user", "list-units", "--plain", "--no-legend", "hardsplice-*.scope")
    _, said = machine.run(*AS_USER, *words)
    return [line.split()[0] for line in said.splitlines() if " running " in line]
