# SPDX-License-Identifier: GPL-2.0-or-later
"""--control-from-namespace: the control socket asked from the namespace that is served, by what
rootless Docker has for that, and by others.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.relay.test_control import Launch, Site, connect, exchange, sited
from tests.support.netns import Identity, Namespace
from tests.support.product import Program, free_ports, run
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# What Docker's own proxy does for a port, where it is not installed.
PROXY = """#!/usr/bin/python3 -I
import os, socket, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
listener = socket.create_server((words["-host-ip"], int(words["-host-port"])))
with os.fdopen(3, "wb") as status:
    status.write(b"0\\n")
while True:
    client = listener.accept()[0]
    there = socket.create_connection((words["-container-ip"], int(words["-container-port"])))
    for one, other in ((client, there), (there, client)):
        if os.fork() == 0:
            while data := one.recv(65536):
                other.sendall(data)
            os._exit(0)
    client.close(), there.close()
"""
# A request from the namespace: method, path and body; its answer's status and body.
_ASK = """
import socket, sys
end = socket.socket(socket.AF_UNIX)
end.settimeout(10)
end.connect(sys.argv[1])
end.sendall(
    f"{sys.argv[2]} {sys.argv[3]} HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n"
    f"Content-Length: {len(sys.argv[4])}\\r\\n\\r\\n{sys.argv[4]}".encode()
)
while data := end.recv(65536):
    sys.stdout.write(data.decode())
"""

_AT_3 = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execvp(sys.argv[2], sys.argv[2:])"


def within(namespace: Namespace, identity: Identity) -> list[str]:
    """What runs a program in the namespace, as whoever it belongs to."""
    user = [] if identity.is_root else ["-U", "--preserve-credentials"]
    return identity.wrap(["nsenter", "-t", str(namespace.pid), "-n", *user])


def asked(site: Site, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """The status and the value that somebody in the namespace is answered with."""
    text = "" if body is None else json.dumps(body)
    done = subprocess.run(
        [*within(site.namespace, site.identity), "/usr/bin/python3", "-I", "-c", _ASK,
         str(site.path), method, path, text],
        cwd="/", check=True, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    head, _, answer = done.stdout.partition("\n\n")  # as text=True has it
    return int(head.split()[1]), json.loads(answer or "null")


@pytest.fixture
def site(
    program: Program, launch: Launch, identity: Identity, user_directory: Path
) -> Iterator[Site]:
    with sited(program, launch, identity, user_directory, "--control-from-namespace") as made:
        yield made


def test_from_the_namespace_its_own_ports_come_and_go(site: Site) -> None:
    port = free_ports()
    spec = {"proto": "tcp", "parentIP": "127.0.0.1", "parentPort": port, "childPort": 81}
    status, added = asked(site, "POST", "/v1/ports", spec)
    assert (status, added["source"]) == (201, "namespace")
    assert asked(site, "GET", "/v1/ports") == (200, [added])
    with contextlib.ExitStack() as stack:
        exchange(*connect(stack, port, site.listen(stack, 81)))
    assert "namespace" in site.ctl("ports")
    assert asked(site, "DELETE", f"/v1/ports/{added['id']}") == (200, None)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE)


def test_from_the_namespace_nothing_else_is_to_be_had(site: Site) -> None:
    outbound = {"proto": "tcp", "direction": "outbound", "parentPort": 5432, "childPort": 5432}
    assert asked(site, "POST", "/v1/ports", outbound)[0] == 403
    (option,) = site.ask("/v1/ports?direction=all")
    assert asked(site, "DELETE", f"/v1/ports/{option['id']}")[0] == 403
    for path in ("/v1/status", "/v1/flows", "/v1/audit", "/metrics"):
        assert asked(site, "GET", path)[0] == 403
    assert site.ask("/v1/ports?direction=all") == [option]
    assert site.metrics()["denied_total", "what=peer"] == 0, "they are heard"


def test_a_namespace_of_its_own_making_is_a_third_one(
    identity: Identity, program: Program, user_directory: Path
) -> None:
    """COMMAND is heard, and nobody from a namespace that COMMAND made."""
    path = str(user_directory / "control")
    options = ("-q", "--runas", "0") if identity.is_root else ()
    inside = ["/usr/bin/python3", "-I", "-c", _ASK, path, "GET", "/v1/info", ""]
    for more, status in (([], "200"), (["unshare", "-n"], "403")):
        done = run(
            program, identity, *options, "--control", path, "--control-from-namespace", "--",
            *more, *inside,
        )  # fmt: skip
        assert done.stdout.split()[1] == status, done.stderr


def test_rootless_dockers_own_proxy_works_with_it(site: Site, user_directory: Path) -> None:
    """It asks $ROOTLESSKIT_STATE_DIR/api.sock for a port, and has Docker's proxy listen on that."""
    driver = shutil.which("rootlesskit-docker-proxy")
    if driver is None:
        pytest.skip("rootlesskit-docker-proxy is not installed (Debian: rootlesskit)")
    folder = user_directory / "bin"
    folder.mkdir()
    proxy = folder / "docker-proxy"
    if shutil.which("docker-proxy") is None:
        proxy.write_text(PROXY)
        proxy.chmod(0o755)
    os.symlink(site.path, user_directory / "api.sock")
    port = free_ports()
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "ROOTLESSKIT_STATE_DIR": str(user_directory),
    }  # fmt: skip
    told, status = os.pipe()
    with contextlib.ExitStack() as stack:
        server = site.listen(stack, 82)
        driven = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-c", _AT_3, str(status),
             *within(site.namespace, site.identity), driver, "-proto", "tcp",
             "-host-ip", "0.0.0.0", "-host-port", str(port),
             "-container-ip", "127.0.0.1", "-container-port", "82"],
            cwd="/", env=environment, pass_fds=[status],
        )  # fmt: skip
        os.close(status)
        try:
            with os.fdopen(told, "rb") as reader:
                assert reader.readline() == b"0\n"
            exchange(*connect(stack, port, server))
            (added,) = [one for one in site.ask("/v1/ports") if one["source"] == "namespace"]
            assert added["spec"]["parentPort"] == port
        finally:
            driven.send_signal(signal.SIGINT)
            driven.wait(PATIENCE)
    eventually(lambda: len(site.ask("/v1/ports")) == 1, "its port is still there")
