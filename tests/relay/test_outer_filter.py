# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports that change, under somebody else's filter that forbids the call by which a relay asks for
its listeners, as containers and services have one: it is said, and no client is left to wait.
"""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardsplice.ctl.client import Client, RefusedError
from hardsplice.kernel import unotify
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Launched, Program, free_ports
from tests.support.stream import eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

LAUNCHER = """import sys
from hardsplice.sandbox import libseccomp
seccomp = libseccomp.load()
rules = seccomp.SyscallFilter(seccomp.ALLOW)
rules.set_attr(seccomp.Attr.CTL_NNP, True)
rules.add_rule(seccomp.ERRNO({code}), "pidfd_getfd")
rules.load()
from hardsplice.kernel import unotify
if __name__ == "__main__":
    if sys.argv[1:] == ["ask"]:
        print(unotify.obstacle())
        sys.exit()
    from hardsplice.app.start import main
    sys.exit(main(sys.argv[1:]))
"""


def test_without_such_a_filter_nothing_is_in_the_way() -> None:
    assert unotify.obstacle() is None


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_under_one_there_is(code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER.format(code=code), "ask"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "forbids pidfd_getfd" in done.stdout


@pytest.fixture
def filtered(tmp_path: Path) -> Iterator[Program]:
    """hardsplice, started under such a filter."""
    path = tmp_path / "filtered.py"
    path.write_text(LAUNCHER.format(code=errno.EPERM))
    program = Launched(str(path))
    yield program
    program.close()


def test_a_port_that_can_not_be_had_is_refused_and_the_others_go_on(
    filtered: Program, identity: Identity, user_directory: Path
) -> None:
    port, path = free_ports(2), user_directory / "control"
    with Namespace(identity) as namespace:
        words = ["-f", "--control", str(path), "-t", f"127.0.0.1/{port}:80", str(namespace.pid)]
        instance = Instance(filtered, identity, words).wait_ready()
        client = Client(str(path))
        with pytest.raises(RefusedError, match="forbids pidfd_getfd") as caught:
            client.add({"proto": "tcp", "parentPort": port + 1, "childPort": 80})
        assert "SystemCallFilter=pidfd_getfd" in str(caught.value.hint)
        assert len(client.get("/v1/ports")) == 1
        client.close()
        instance.stop()


def test_of_auto_it_is_said(filtered: Program, identity: Identity) -> None:
    with Namespace(identity) as namespace, namespace.socket(socket.AF_INET) as server:
        server.bind(("127.0.0.1", 8080))
        server.listen()
        instance = Instance(filtered, identity, ["-f", "-t", "auto", str(namespace.pid)])
        instance.wait_ready()
        eventually(lambda: "forbids pidfd_getfd" in instance.messages(), instance.messages)
        instance.stop()
