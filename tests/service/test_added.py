# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports that are added at run time: a service manager's store has their listeners over a restart,
and they come back as what they were.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from hardsplice.ctl import show
from hardsplice.ctl.client import Client
from hardsplice.ctl.commands import description
from hardsplice.model.direction import Direction
from hardsplice.model.ports import parse
from tests.service.conftest import Serve, gone, passes, still_served
from tests.support.manager import Manager
from tests.support.netns import Identity, Namespace
from tests.support.product import family, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

EPHEMERAL = (32768, 60999)


def added(manager: Manager, path: Path, *specs: tuple[Direction, int, int]) -> list[int]:
    """Add ports, and wait until each is kept; their ids."""
    with contextlib.closing(Client(str(path))) as client:
        found = []
        for direction, port, target in specs:
            (forward,) = parse([f"127.0.0.1/{port}:{target}"], direction, ephemeral=EPHEMERAL)
            found.append(int(client.add(description(forward))["id"]))
            manager.until(lambda message: message.get("FDSTORE") == "1")
    return found


def sources(path: Path) -> dict[str, str]:
    """Where each port comes from, by its listening end."""
    with contextlib.closing(Client(str(path))) as client:
        listed = client.get("/v1/ports?direction=all")
    return {show.ends(port)[0]: port["source"] for port in listed}


@pytest.mark.parametrize(
    ("how", "drain"),
    [(signal.SIGTERM, ()), (signal.SIGTERM, ("--drain", "60")), (signal.SIGKILL, ())],
)
def test_ports_that_were_added_are_there_again_after_a_restart(
    serve: Serve,
    namespace: Namespace,
    inside: socket.socket,
    user_directory: Path,
    how: int,
    drain: tuple[str, ...],
) -> None:
    """In both directions, and no client is refused meanwhile."""
    port, path = free_ports(3), user_directory / "control"
    options = ["-f", "-t", f"127.0.0.1/{port}:80", "--control", str(path), *drain]
    options.append(str(namespace.pid))
    manager = serve(Manager(), *options).until_ready()
    added(manager, path, (Direction.INBOUND, port + 1, 80), (Direction.OUTBOUND, 8081, port + 2))
    for _ in range(2):
        started = family(manager.main)
        os.kill(manager.main, how)
        manager.wait()
        gone(started)
        with (
            socket.create_connection(("127.0.0.1", port + 1), timeout=PATIENCE) as early,
            socket.create_server(("127.0.0.1", port + 2)) as outside,
            namespace.socket(socket.AF_INET) as outward,
        ):
            outside.settimeout(PATIENCE)
            outward.settimeout(PATIENCE)
            outward.connect(("127.0.0.1", 8081))
            serve(manager, *options).until_ready()
            for client, listener in ((early, inside), (outward, outside)):
                still_served(client, listener)
        assert sources(path) == {
            f"127.0.0.1:{port}": "option",
            f"127.0.0.1:{port + 1}": "control",
            "127.0.0.1:8081": "control",
        }
        assert len(manager.store) == 3
    manager.stop()


def test_what_an_earlier_version_had_kept_comes_back_and_is_kept_by_its_new_name(
    serve: Serve, namespace: Namespace, inside: socket.socket, user_directory: Path
) -> None:
    """Names had no protocol: they were all TCP's."""
    port, path = free_ports(3), user_directory / "control"
    options = ["-f", "-t", f"127.0.0.1/{port}:80", "--control", str(path), str(namespace.pid)]
    manager = serve(Manager(), *options).until_ready()
    added(manager, path, (Direction.INBOUND, port + 1, 80), (Direction.OUTBOUND, 8081, port + 2))
    manager.stop()
    names = [name for name, _ in manager.store]
    manager.store = [(name.replace("/tcp/", "/"), fd) for name, fd in manager.store]
    assert not {name for name, _ in manager.store} & {*names}
    kept = {os.fstat(fd).st_ino for _, fd in manager.store}
    with socket.create_connection(("127.0.0.1", port + 1), timeout=PATIENCE) as early:
        serve(manager, *options).until_ready()
        still_served(early, inside)
    assert sources(path) == {
        f"127.0.0.1:{port}": "option",
        f"127.0.0.1:{port + 1}": "control",
        "127.0.0.1:8081": "control",
    }
    assert sorted(name for name, _ in manager.store) == sorted(names)
    assert {os.fstat(fd).st_ino for _, fd in manager.store} == kept, "the same listeners"
    manager.stop()


def test_a_port_that_was_removed_does_not_come_back(
    serve: Serve, namespace: Namespace, inside: socket.socket, user_directory: Path
) -> None:
    port, path = free_ports(2), user_directory / "control"
    options = ["-f", "--control", str(path), str(namespace.pid)]
    manager = serve(Manager(), *options).until_ready()
    ids = added(manager, path, (Direction.INBOUND, port, 80), (Direction.INBOUND, port + 1, 80))
    with contextlib.closing(Client(str(path))) as client:
        client.remove(ids[0], reset_flows=False)
    manager.until(lambda message: message.get("FDSTOREREMOVE") == "1")
    manager.stop()
    serve(manager, *options).until_ready()
    assert sources(path) == {f"127.0.0.1:{port + 1}": "control"}
    passes(port + 1, inside)
    manager.stop()


def test_what_was_added_becomes_an_options_once_one_asks_for_it(
    serve: Serve, namespace: Namespace, inside: socket.socket, user_directory: Path
) -> None:
    port, path = free_ports(), user_directory / "control"
    manager = serve(Manager(), "-f", "--control", str(path), str(namespace.pid)).until_ready()
    added(manager, path, (Direction.INBOUND, port, 81))
    manager.stop()
    options = ["-f", "--control", str(path), "-t", f"127.0.0.1/{port}:80", str(namespace.pid)]
    serve(manager, *options).until_ready()
    assert sources(path) == {f"127.0.0.1:{port}": "option"}
    assert [name for name, _ in manager.store] == [f"hardsplice/inbound/tcp/127.0.0.1/{port}"]
    passes(port, inside)
    manager.stop()
    serve(manager, "-f", str(namespace.pid)).until_ready()
    assert manager.store == [], "without --control there is none to add it"
    manager.stop()


def test_in_a_namespace_that_is_another_one_it_is_bound_anew(
    serve: Serve, identity: Identity, namespace: Namespace, user_directory: Path
) -> None:
    """And one that can't be had is no reason not to start."""
    port, path = free_ports(2), user_directory / "control"
    options = ["-f", "--control", str(path)]
    manager = serve(Manager(), *options, str(namespace.pid)).until_ready()
    added(manager, path, (Direction.OUTBOUND, 8081, port), (Direction.OUTBOUND, 8082, port))
    manager.stop()
    with (
        Namespace(identity) as other,
        other.socket(socket.AF_INET) as taken,
        socket.create_server(("127.0.0.1", port)) as outside,
    ):
        taken.bind(("127.0.0.1", 8082))
        taken.listen()
        outside.settimeout(PATIENCE)
        serve(manager, *options, str(other.pid)).until_ready()
        assert sources(path) == {"127.0.0.1:8081": "control"}
        what = "127.0.0.1 port 8082 in the namespace, which was added before the restart,"
        assert f"{what} could not be had again" in manager.messages()
        with other.socket(socket.AF_INET) as client:
            client.connect(("127.0.0.1", 8081))
            outside.accept()[0].close()
        assert len(manager.store) == 1
        manager.stop()


def test_one_for_which_there_is_no_room_is_said(
    serve: Serve, namespace: Namespace, user_directory: Path
) -> None:
    port, path = free_ports(3), user_directory / "control"
    options = ["-f", "--control", str(path), str(namespace.pid)]
    manager = serve(Manager(keeps=1), *options).until_ready()
    (first,) = added(manager, path, (Direction.INBOUND, port, 80))
    with contextlib.closing(Client(str(path))) as client:
        (forward,) = parse(
            [f"127.0.0.1/{port + 1}:80"], Direction.INBOUND, ephemeral=(32768, 60999)
        )
        client.add(description(forward))
        said = f"does not keep the listener of 127.0.0.1 port {port + 1} on the host"
        eventually(lambda: said in manager.messages(), manager.messages)
        client.remove(first, reset_flows=False)
    added(manager, path, (Direction.INBOUND, port + 2, 80))
    assert [name for name, _ in manager.store] == [
        f"hardsplice/added/inbound/tcp/127.0.0.1/{port + 2}/*/80"
    ]
    manager.stop()


def test_nobody_is_told_where_nothing_is_kept(
    serve: Serve, namespace: Namespace, user_directory: Path
) -> None:
    port, path = free_ports(), user_directory / "control"
    options = ["-f", "--control", str(path), str(namespace.pid)]
    manager = serve(Manager(keeps=0), *options).until_ready()
    with contextlib.closing(Client(str(path))) as client:
        (forward,) = parse([f"127.0.0.1/{port}:80"], Direction.INBOUND, ephemeral=EPHEMERAL)
        client.add(description(forward))
    manager.stop()
    assert manager.store == []
    assert "keep" not in manager.messages()


def test_an_option_that_wants_the_port_on_more_addresses_has_it(
    serve: Serve, namespace: Namespace, inside: socket.socket, user_directory: Path
) -> None:
    port, path = free_ports(), user_directory / "control"
    options = ["-f", "--control", str(path)]
    manager = serve(Manager(), *options, str(namespace.pid)).until_ready()
    added(manager, path, (Direction.INBOUND, port, 81))
    manager.stop()
    serve(manager, *options, "-t", f"{port}:80", str(namespace.pid)).until_ready()
    assert sources(path) == {f"*:{port}": "option"}
    passes(port, inside)
    manager.stop()
