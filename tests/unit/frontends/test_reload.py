# SPDX-License-Identifier: GPL-2.0-or-later
"""A container's new address: all ports lead there."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from hardsplice.frontends import mapping, packets, reload
from hardsplice.frontends.reload import Reload, move, read_address
from hardsplice.ipc.loop import Loop
from hardsplice.kernel import socketcalls
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import Address

OLD, NEW = ip_address("10.89.0.2"), ip_address("10.89.1.7")


class Ports:
    """A registry in which some ports can't be removed or added; ``there`` are a container's."""

    def __init__(self, *ports: int, stays: int = 0, lost: int = 0) -> None:
        asked = [mapping.inbound(Protocol.TCP, None, one, OLD, 80) for one in ports]
        self.there = {one.id: one for one in mapping.numbered(asked)}
        self.bound = {*ports}
        self.stays, self.lost = stays, lost

    def remove(self, port_id: int, *, reset_flows: bool, done: Callable[..., None]) -> None:
        assert not reset_flows
        if self.there[port_id].port == self.stays:
            done(HardspliceError("remove", f"port {port_id}", "it stays"))
            return
        assert port_id in self.there
        self.bound.discard(self.there[port_id].port)
        done(None)

    def add(self, asked: Forward, done: Callable[..., None]) -> None:
        assert asked.id == 0
        assert asked.port not in self.bound
        if asked.port == self.lost:
            done(HardspliceError("listen on", asked.where, "it is lost"))
            return
        self.bound.add(asked.port)
        done(asked._replace(id=100 + asked.port))


def moved(ports: Any) -> HardspliceError | None:
    answers: list[HardspliceError | None] = []
    move(ports, ports.there, NEW, answers.append)
    (answer,) = answers
    return answer


def test_every_port_leads_to_the_new_address() -> None:
    ports = Ports(80, 443, 8080)
    assert moved(ports) is None
    assert {(one.port, one.target) for one in ports.there.values()} == {
        (80, NEW),
        (443, NEW),
        (8080, NEW),
    }


def test_what_leads_there_already_stays_as_it_is() -> None:
    ports = Ports(80)
    moved(ports)
    before = {**ports.there}
    assert moved(ports) is None
    assert ports.there == before


@pytest.mark.parametrize(("case", "said"), [({"stays": 443}, "it stays"), ({"lost": 443}, "lost")])
def test_the_first_failure_is_told_and_the_rest_is_moved(case: dict[str, int], said: str) -> None:
    ports = Ports(80, 443, 8080, **case)
    assert said in str(moved(ports))
    assert {one.port for one in ports.there.values() if one.target == NEW} == {80, 8080}


def test_an_address_is_a_json_string() -> None:
    assert read_address(b'"10.89.1.7"\n') == NEW
    assert str(read_address(b'"fd00::2"')) == "fd00::2"
    for wrong in (b"", b"10.89.1.7", b"7", b'"web"', b"[" * 5000, b"\xff"):
        with pytest.raises(HardspliceError, match="new address"):
            read_address(wrong)


class Container:
    """One without ports; and who asks at its socket."""

    def __init__(self, path: Path) -> None:
        self.path, self.loop = str(path), Loop()
        self.ports: dict[int, Forward] = {}
        self.target: Address = OLD
        self.listener = packets.listen(self.path, 64)
        users, registry = frozenset({os.geteuid()}), Ports()
        self.reload = Reload(self.listener.fileno(), users, self.loop, registry, self)  # type: ignore[arg-type]

    def begin_move(self) -> bool:
        return True

    def end_move(self, target: Address) -> None:
        self.target = target

    def client(self) -> socket.socket:
        client = packets.connect(self.path)
        client.setblocking(False)
        return client

    def turn(self) -> None:
        for _ in range(4):
            self.loop.after(0, lambda: None)
            self.loop._pass()


def test_those_that_say_nothing_keep_nobody_from_it(tmp_path: Path) -> None:
    container = Container(tmp_path / "socket")
    silent = []
    for _ in range(reload.CLIENTS + 1):
        silent.append(container.client())
        container.turn()
    assert silent[0].recv(9) == b""
    with container.client() as late:
        late.send(b'"10.89.1.7"\n')
        container.turn()
        assert late.recv(9) == b"OK"
    assert container.target == NEW
    with pytest.raises(BlockingIOError):
        silent[-1].recv(9)
    container.reload.close()
    for one in (*silent, container.listener):
        one.close()


def test_a_want_of_descriptors_is_over_some_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = Container(tmp_path / "socket")
    monkeypatch.setattr(reload, "AGAIN_SECONDS", 0.0)
    with container.listener, container.client() as client:
        with monkeypatch.context() as now:
            now.setattr(socketcalls, "accept4", lambda _: -errno.EMFILE)
            container.turn()
        client.send(b'"10.89.1.7"\n')
        container.turn()
        assert client.recv(9) == b"OK"
        container.reload.close()
