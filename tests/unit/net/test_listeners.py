# SPDX-License-Identifier: GPL-2.0-or-later
"""Listening sockets as they really come out, and where their connections are to go."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from hardsplice.ipc.channel import close_all
from hardsplice.kernel import datagrams, pinned, socketcalls
from hardsplice.kernel.packet_info import IP_PKTINFO, IPV6_PKTINFO
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.families import IPV4, IPV6
from hardsplice.model.forward import Forward, Source
from hardsplice.model.protocol import Protocol
from hardsplice.net.listeners import (
    Bound,
    Routing,
    cannot_listen,
    chosen,
    has_ended,
    is_listener,
    is_sound,
    make_sound,
    open_listener,
    open_listeners,
    targets,
    usable_families,
    write_bind_address,
)
from hardsplice.sandbox.address_book import LARGE, USUAL, Area, Pointer

pytestmark = pytest.mark.usefixtures("nothing_left_open")

BOTH = (IPV4, IPV6)
SLOTS = {IPV4: 5, IPV6: 9}  # of targets
IN_4 = Pointer(USUAL, 5, IPV4, socketcalls.sockaddr(IPv4Address("127.0.0.1"), 80))
IN_6 = Pointer(USUAL, 9, IPV6, socketcalls.sockaddr(IPv6Address("::1"), 80))


def forward(
    address: str | None = "127.0.0.1",
    port: int = 0,
    target: str | None = None,
    *,
    interface: str | None = None,
    required: bool = True,
) -> Forward:
    listen = ip_address(address) if address else None
    return Forward(
        Direction.INBOUND,
        listen,
        interface,
        port,
        ip_address(target) if target else None,
        80,
        required,
    )


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on, over either family."""
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port


def opened(one: Forward, families: tuple[int, ...] = BOTH) -> socket.socket:
    write_bind_address(one, families)
    return socket.socket(fileno=open_listener(one, families))


def reaches(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


# --- plans ---


@pytest.mark.parametrize(
    ("listen", "families", "of_ipv4", "of_ipv6"),
    [
        (None, BOTH, (IN_4, IN_6), (IN_6, IN_4)),
        (None, (IPV4,), (IN_4,), (IN_4,)),
        (None, (IPV6,), (IN_6,), (IN_6,)),
        ("0.0.0.0", BOTH, (IN_4, IN_6), (IN_4, IN_6)),
        ("::1", BOTH, (IN_6, IN_4), (IN_6, IN_4)),
        ("::1", (IPV4,), (IN_4,), (IN_4,)),
        ("127.0.0.1", (IPV6,), (IN_6,), (IN_6,)),
    ],
)
def test_the_loopback_of_the_clients_family_is_tried_first(
    listen: str | None,
    families: tuple[int, ...],
    of_ipv4: tuple[Pointer, ...],
    of_ipv6: tuple[Pointer, ...],
) -> None:
    assert routes(forward(listen), families) == (of_ipv4, of_ipv6)


def routes(
    one: Forward, families: tuple[int, ...], slots: dict[int, int] = SLOTS, place: Area = USUAL
) -> tuple[tuple[Pointer, ...], tuple[Pointer, ...]]:
    return Routing(place, families).routes(one, slots)


@pytest.mark.parametrize("listen", [None, "127.0.0.1", "::1"])
@pytest.mark.parametrize("target", ["10.0.0.5", "fd00::5"])
@pytest.mark.parametrize("place", [USUAL, LARGE])
def test_a_target_address_is_the_only_one(listen: str | None, target: str, place: Area) -> None:
    address = ip_address(target)
    family = IPV4 if address.version == 4 else IPV6
    only = (Pointer(place, 7, family, socketcalls.sockaddr(address, 80)),)
    assert only[0].where.value == place.address + 7 * 32
    assert routes(forward(listen, target=target), BOTH, {family: 7}, place) == (only, only)


def test_a_target_without_a_slot_is_none() -> None:
    """As the namespace monitor may be told of one, by whom it is not: then there is no plan."""
    assert routes(forward(None), BOTH, {IPV4: 5}) == ((IN_4,), (IN_4,))
    assert routes(forward(None), BOTH, {}) == ((), ())


def test_where_the_family_does_not_matter_the_plans_are_one_object() -> None:
    """The engine asks for the client's family only where they are two."""
    for one in (forward("127.0.0.1"), forward("::1"), forward(None, target="10.0.0.5")):
        first, second = routes(one, BOTH)
        assert first is second
    first, second = routes(forward(None), BOTH)
    assert first is not second


def test_a_listener_has_its_plans() -> None:
    one = forward(None)
    made = Routing(USUAL, BOTH).listener(Bound(one._replace(id=3), 12), SLOTS)
    assert (made.fd, made.port_id) == (12, 3)
    assert (made.route_ipv4, made.route_ipv6) == routes(one, BOTH)


@pytest.mark.parametrize(("target", "families"), [("::1", (IPV4,)), ("10.0.0.5", (IPV6,))])
def test_a_target_of_a_family_that_is_not_there_is_a_failure(
    target: str, families: tuple[int, ...]
) -> None:
    with pytest.raises(HardspliceError, match=r"there is no IPv[46]"):
        Routing(USUAL, families).listener(Bound(forward(None, target=target), 12), SLOTS)


@pytest.mark.parametrize("listen", [None, "127.0.0.1", "::1"])
def test_the_targets_are_those_of_any_plan(listen: str | None) -> None:
    for target in (None, "10.0.0.5", "fd00::5"):
        one = forward(listen, target=target)
        found = {pointer.sockaddr for plan in routes(one, BOTH) for pointer in plan}
        assert set(targets(one, BOTH).values()) == found


# --- listeners ---


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", None])
def test_options_are_set_where_connections_inherit_them(address: str | None) -> None:
    with opened(forward(address)) as listener:
        assert not os.get_blocking(listener.fileno())
        assert not listener.get_inheritable()
        client = socket.create_connection(
            ("127.0.0.1" if address is None else address, listener.getsockname()[1]), timeout=5
        )
        listener.setblocking(True)
        with client, listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_without_an_address_one_socket_serves_both_families(free_port: int) -> None:
    with opened(forward(None, free_port)):
        assert reaches("127.0.0.1", free_port)
        assert reaches("::1", free_port)


@pytest.mark.parametrize(
    ("address", "families", "of_ipv4", "of_ipv6"),
    [
        (None, (IPV4,), True, False),
        (None, (IPV6,), False, True),
        ("0.0.0.0", BOTH, True, False),
        ("::", BOTH, False, True),
        ("127.0.0.1", BOTH, True, False),
        ("::1", BOTH, False, True),
    ],
)
def test_one_family_is_one_family(
    address: str | None, families: tuple[int, ...], of_ipv4: bool, of_ipv6: bool, free_port: int
) -> None:
    with opened(forward(address, free_port), families):
        assert reaches("127.0.0.1", free_port) == of_ipv4
        assert reaches("::1", free_port) == of_ipv6


def test_the_backlog_is_the_systems_largest() -> None:
    """A burst that finds a short one waits for SYN to be sent again, a second later."""
    with opened(forward()) as listener:
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        # A listener's tcpi_sacked (linux/tcp.h) is its backlog: tcp_get_info().
        assert struct.unpack_from("=I", info, 8 + 5 * 4)[0] == most


def test_an_interface_is_listened_on_alone(free_port: int) -> None:
    with opened(forward("127.0.0.1", free_port, interface="lo")) as listener:
        name = listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
        assert name.rstrip(b"\0") == b"lo"
        assert reaches("127.0.0.1", free_port)


def test_where_it_listens_is_what_was_written_down() -> None:
    """And not what it was asked for: that is the host monitor's word, in memory of its own."""
    written, asked = forward("127.0.0.1"), forward("127.0.0.2", 9)
    write_bind_address(written, BOTH)
    with socket.socket(fileno=open_listener(asked, BOTH)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_nowhere_is_where_nothing_listens() -> None:
    write_bind_address(forward("127.0.0.1"), BOTH)
    pinned.clear_bind_address()
    with pytest.raises(OSError, match="Cannot assign"):
        open_listener(forward("127.0.0.1"), BOTH)


# --- looking at listeners ---


def _set(level: int, name: int, value: int | bytes) -> Callable[[socket.socket], None]:
    return lambda one: one.setsockopt(level, name, value)


SPOILT = {
    "cut off": _set(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
    "waits": _set(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60)),
    "urgent": _set(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
    "dead clients": _set(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0),
    "delayed": _set(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0),
}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", None])
def test_a_listener_as_it_was_made_is_sound(address: str | None) -> None:
    with opened(forward(address)) as listener:
        assert is_sound(listener.fileno(), Protocol.TCP)


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_whatever_a_relay_could_want_to_do_to_a_listener_is_noticed(
    spoil: Callable[[socket.socket], None],
) -> None:
    with opened(forward()) as listener:
        spoil(listener)
        assert not is_sound(listener.fileno(), Protocol.TCP)


def test_what_was_never_a_listener_is_not_sound() -> None:
    with open(os.devnull) as null, socket.socket() as idle:
        assert not is_sound(null.fileno(), Protocol.TCP)
        assert not is_listener(idle.fileno(), forward())
    assert not is_sound(-1, Protocol.TCP)


def test_a_listener_that_was_ended_is_none() -> None:
    with opened(forward()) as listener:
        assert not has_ended(listener.fileno(), Protocol.TCP)
        socketcalls.retire(listener.fileno())
        assert has_ended(listener.fileno(), Protocol.TCP)
        assert not is_sound(listener.fileno(), Protocol.TCP)
        assert not is_listener(listener.fileno(), forward())


@pytest.mark.parametrize("spoil", SPOILT)
def test_what_somebody_else_kept_is_made_sound(spoil: str) -> None:
    with opened(forward()) as listener:
        SPOILT[spoil](listener)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1)
        listener.setblocking(True)
        make_sound(listener)
        assert is_sound(listener.fileno(), Protocol.TCP)
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 0
        assert not os.get_blocking(listener.fileno())


def test_a_listener_is_known_by_its_port() -> None:
    with opened(forward()) as listener, socket.socket() as idle:
        asked = forward()._replace(port=listener.getsockname()[1])
        assert is_listener(listener.fileno(), asked)
        assert is_listener(listener.fileno(), asked._replace(port=0))
        assert not is_listener(listener.fileno(), asked._replace(port=asked.port % 65535 + 1))
        assert not is_listener(listener.fileno(), asked._replace(protocol=Protocol.UDP))
        assert not is_listener(idle.fileno(), asked)
        assert not is_listener(-1, asked)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", None])
def test_of_udp_a_listener_is_bound_and_has_no_peer(address: str | None) -> None:
    asked = forward(address)._replace(protocol=Protocol.UDP)
    with opened(asked) as listener:
        assert listener.type == socket.SOCK_DGRAM
        fd = listener.fileno()
        assert is_listener(fd, chosen(asked, fd))
        assert not is_listener(fd, asked._replace(protocol=Protocol.TCP))
        assert is_sound(fd, Protocol.UDP)
        listener.connect(listener.getsockname())
        assert not is_listener(fd, chosen(asked, fd))
        assert not is_sound(fd, Protocol.UDP)


def test_of_udp_an_option_that_was_changed_is_noticed() -> None:
    with opened(forward("127.0.0.1")._replace(protocol=Protocol.UDP)) as listener:
        listener.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 0)
        assert not is_sound(listener.fileno(), Protocol.UDP)
        make_sound(listener)
        assert is_sound(listener.fileno(), Protocol.UDP)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_of_udp_whatever_option_a_socket_had_only_the_address_asked_comes_with_a_datagram(
    address: str,
) -> None:
    """Each option that this kernel lets anybody set to 1, known to hardsplice or not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    addressed = {(socket.IPPROTO_IP, IP_PKTINFO), (socket.IPPROTO_IPV6, IPV6_PKTINFO)}
    levels = (socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_UDP)
    number = 0
    for level, name in itertools.product(levels, range(120)):
        with socket.socket(family, socket.SOCK_DGRAM) as made:
            made.bind((address, 0))
            try:
                made.setsockopt(level, name, 1)
            except OSError:
                continue
            make_sound(made)
            made.settimeout(5)
            with socket.socket(family, socket.SOCK_DGRAM) as client:
                client.sendto(b"question", made.getsockname())
                data, control, _, _ = made.recvmsg(100, 4096)
            assert data == b"question", (level, name)
            assert len(control) == 1, (level, name)
            assert control[0][:2] in addressed, (level, name)
            number += 1
    assert number > 20


def test_of_udp_only_an_old_kernel_need_not_join_datagrams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a listener that is opened, and of one that is made like those."""
    asked = forward("127.0.0.1")._replace(protocol=Protocol.UDP)
    monkeypatch.setattr(datagrams, "take_joined", lambda _: -errno.ENOPROTOOPT)
    with opened(asked) as listener:
        make_sound(listener)
        monkeypatch.setattr(datagrams, "take_joined", lambda _: -errno.EPERM)
        with pytest.raises(PermissionError):
            make_sound(listener)
    with pytest.raises(PermissionError), opened(asked):
        pass


IP_OPTIONS = (6, 7, 8, 11, 12, 13, 18, 20, 23, 25)  # linux/in.h
IPV6_OPTIONS = (2, 4, 5, 8, 11, 25, 49, 51, 53, 56, 58, 60, 66, 74, 77)  # linux/in6.h
TIMESTAMPS = {29: 1, 35: 1, 37: 0x58}  # asm-generic/socket.h
CORK, SEGMENT = 1, 103  # linux/udp.h


@pytest.mark.parametrize(
    ("address", "asked"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), (None, "::ffff:127.0.0.1"), (None, "::1")],
)
def test_of_udp_whatever_somebody_else_had_set_relays_read_and_send_as_on_one_of_ours(
    address: str | None, asked: str
) -> None:
    with opened(forward(address)._replace(protocol=Protocol.UDP)) as listener:
        settings = [(socket.IPPROTO_IP, name, 1) for name in IP_OPTIONS]
        settings += [(socket.IPPROTO_IPV6, name, 1) for name in IPV6_OPTIONS]
        settings += [(socket.SOL_SOCKET, name, value) for name, value in TIMESTAMPS.items()]
        settings += [(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)]
        settings += [(socket.IPPROTO_UDP, CORK, 1), (socket.IPPROTO_UDP, SEGMENT, 4)]
        for one in settings:
            with contextlib.suppress(OSError):
                listener.setsockopt(*one)
        make_sound(listener)
        listener.settimeout(1)
        with socket.socket(listener.family, socket.SOCK_DGRAM) as client:
            client.settimeout(1)
            client.sendto(b"question", (asked, listener.getsockname()[1]))
            _, control, flags, peer = listener.recvmsg(100, 1000)
            assert flags == 0
            four = listener.family == socket.AF_INET
            pktinfo = (socket.IPPROTO_IP, IP_PKTINFO) if four else (socket.IPPROTO_IPV6, 50)
            assert [(level, kind) for level, kind, _ in control] == [pktinfo]
            listener.sendto(b"all of the answer", peer)
            assert client.recv(100) == b"all of the answer"
        assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)


def test_of_udp_and_tcp_both_have_one_number() -> None:
    with opened(forward("127.0.0.1")) as one:
        port = one.getsockname()[1]
        with opened(forward("127.0.0.1")._replace(protocol=Protocol.UDP, port=port)) as other:
            assert other.getsockname() == one.getsockname()
            failure = cannot_listen(
                forward()._replace(protocol=Protocol.UDP, port=port), OSError(errno.EADDRINUSE, "")
            )
            assert "ss -lunp" in (failure.hint or "")


# --- errors ---


def fails(forwards: list[Forward]) -> HardspliceError:
    with pytest.raises(HardspliceError) as caught:
        open_listeners(forwards, BOTH)
    return caught.value


def test_all_are_opened_in_order() -> None:
    wanted = [forward(), forward("::1"), forward(None)]
    made = open_listeners(wanted, BOTH)
    assert [one.forward._replace(port=0) for one in made] == wanted
    assert [one.forward.port for one in made] == [socketcalls.local_port(one.fd) for one in made]
    close_all([one.fd for one in made])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", None])
def test_a_port_in_use_opens_none_of_all(address: str | None, free_port: int) -> None:
    with opened(forward(address, free_port)):
        failure = fails([forward(), forward("::1"), forward(address, free_port)])
        assert failure.reason == os.strerror(errno.EADDRINUSE)
        assert f"port {free_port} on the host" in str(failure)
        assert failure.hint is not None
        assert f"sport = :{free_port}" in failure.hint


def test_a_port_in_use_that_nobody_asked_for_by_number_is_left_out(free_port: int) -> None:
    with opened(forward(None, free_port)):
        wanted = [forward(None, free_port, required=False), forward()]
        (made,) = open_listeners(wanted, BOTH)
        assert made.forward.address is not None
        close_all([made.fd])


def test_one_that_was_added_before_a_restart_is_left_out_whatever_the_reason() -> None:
    wanted = [forward("192.0.2.1")._replace(source=Source.CONTROL), forward()]
    (made,) = open_listeners(wanted, BOTH)
    assert str(made.forward.address) == "127.0.0.1"
    close_all([made.fd])


@pytest.mark.parametrize("required", [True, False])
def test_an_address_that_nobody_has_is_an_error_always(required: bool) -> None:
    failure = fails([forward(), forward("192.0.2.1", required=required)])
    assert failure.reason == os.strerror(errno.EADDRNOTAVAIL)
    assert failure.hint is not None
    assert "ip address" in failure.hint


def test_an_interface_that_is_not_there_is_named() -> None:
    failure = fails([forward(interface="nosuch0")])
    assert "a free port of 127.0.0.1%nosuch0" in str(failure)
    assert failure.hint is not None
    assert "ip link" in failure.hint


def without(call: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one of the calls that make a listener fail."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socketcalls, call, refuse, raising=True)


@pytest.mark.parametrize(
    "call",
    ["set_reuse_address", "set_keepalive", "set_nodelay", "bind_to_device", "bind", "listen"],
)
def test_a_listener_that_fails_half_way_is_closed(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(call, errno.ENOBUFS, monkeypatch)
    assert fails([forward(interface="lo")]).reason == os.strerror(errno.ENOBUFS)


@pytest.mark.parametrize(
    ("code", "port", "words"),
    [
        (errno.EACCES, 80, "net.ipv4.ip_unprivileged_port_start=80"),
        (errno.EMFILE, 8080, "ulimit -n"),
        (errno.ENFILE, 8080, "ulimit -n"),
    ],
)
def test_the_next_step_is_named(
    code: int, port: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("bind", code, monkeypatch)
    hint = fails([forward(port=port)]).hint
    assert hint is not None
    assert words in hint


@pytest.mark.parametrize(
    ("one", "name"),
    [
        (forward(None, 80), "port 80"),
        (forward("127.0.0.1", 80), "127.0.0.1 port 80"),
        (forward("::1", 80, interface="eth0"), "::1%eth0 port 80"),
        (forward(None, 80, interface="eth0"), "%eth0 port 80"),
    ],
)
def test_a_listener_has_a_name(one: Forward, name: str) -> None:
    assert one.name == name


# --- families ---


def test_only_families_that_are_wanted_and_there_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_families((4,)) == (IPV4,)
    assert set(usable_families((4, 6))) >= {IPV4}
    real = socket.socket
    codes = [errno.EAFNOSUPPORT, errno.EAFNOSUPPORT, errno.EMFILE]

    def without_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(codes.pop(0), "no")
        return real(family, kind)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    assert usable_families((4, 6)) == (IPV4,)
    assert usable_families((6,)) == ()
    with pytest.raises(OSError, match="no"):
        usable_families((4, 6))
