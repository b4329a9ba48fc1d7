# SPDX-License-Identifier: GPL-2.0-or-later
"""What connections see of hardsplice's end: a reset where they were not over, never a clean end.
And --drain, which gives them time to be over first.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.support import procfs
from tests.support.manager import Manager
from tests.support.netns import Identity, Namespace
from tests.support.paths import Ends, Lane
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import (
    PATIENCE,
    Stream,
    Violation,
    eventually,
    expect,
    expect_end,
    fill,
    finish,
    notices_reset,
    reset,
    send,
)

Launch = Callable[..., Instance]
Open = Callable[..., tuple[Instance, list[Lane]]]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture
def opened(namespace: Namespace, identity: Identity, launch: Launch) -> Iterator[Open]:
    """An instance with these options, and a lane in each direction."""
    with contextlib.ExitStack() as stack:

        def made(*options: str) -> tuple[Instance, list[Lane]]:
            inward, outward = free_ports(), free_ports()
            instance = launch(
                identity, "-f", *options,
                "-t", f"127.0.0.1/{inward}:3000", "-T", f"127.0.0.1/3001:{outward}",
                str(namespace.pid),
            ).wait_ready()  # fmt: skip
            four = socket.AF_INET
            lanes = [
                Lane(Ends(four, inward, 3000, server_side=namespace.socket), list),
                Lane(Ends(four, 3001, outward, client_side=namespace.socket), list),
            ]
            for lane in lanes:
                stack.callback(lane.close)
                lane.listen()
            return instance, lanes

        yield made


def sees_a_reset(sock: socket.socket) -> None:
    """What comes first is what was sent; what ends it is no clean end."""
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(1 << 16):
            pass
        raise Violation("a clean end of what was cut off")


def by_one_signal(instance: Instance) -> None:
    instance.process.send_signal(signal.SIGTERM)


def by_a_signal_to_all(instance: Instance) -> None:
    """As a service manager does that ends the whole control group."""
    for pid in instance.processes():
        with contextlib.suppress(ProcessLookupError):  # the first one ends the others
            os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("told", [by_one_signal, by_a_signal_to_all])
def test_who_is_cut_off_sees_a_reset(opened: Open, told: Callable[[Instance], None]) -> None:
    instance, lanes = opened()
    cut, finished = [], []
    for lane in lanes:
        client, server = lane.pair()
        stream = Stream()
        send(server, stream, 1000)  # a part of a download
        expect(client, stream, 500)
        busy, slow = lane.pair()
        fill(slow, Stream(), still=0.05)  # nobody takes it
        half, waiting = lane.pair()
        finish(half)  # its answer is still to come
        assert waiting.recv(1) == b""
        cut += [client, server, busy, slow, half]
        finished.append(waiting)
    told(instance)
    assert instance.wait() == 0
    for end in cut:
        sees_a_reset(end)
    for end in finished:  # it has had its end of file, and can't write any more
        notices_reset(end, within=0)
    assert "that were reset: 6" in instance.messages()


def test_what_was_over_stays_so(opened: Open) -> None:
    """Also where the receiver has not taken it yet."""
    instance, lanes = opened()
    pairs, stream = [lane.pair() for lane in lanes], Stream()
    for client, server in pairs:
        send(server, stream, 100_000)
        server.close()
        finish(client)
    eventually(lambda: not any(lane_flows(instance)), "the flows are over")
    by_one_signal(instance)
    assert instance.wait() == 0
    for client, _ in pairs:
        expect_end(client, stream, 100_000)


def lane_flows(instance: Instance) -> list[int]:
    """Connected sockets in the relays, where root may count them; else a moment must do."""
    if os.geteuid() != 0:
        time.sleep(0.5)
        return []
    held = (procfs.descriptors(pid).values() for pid in instance.relays())
    # Sockets of both pools, the listener and the channel are always there.
    return [number for one in held if (number := sum("socket:" in name for name in one) - 130) > 0]


def test_giving_up_is_no_clean_end_either(opened: Open) -> None:
    """The namespace monitor is gone, so the outbound relays are told to end."""
    instance, (_, outbound) = opened()
    client, server = outbound.pair()
    stream = Stream()
    send(server, stream, 1000)
    expect(client, stream, 500)
    family = instance.processes()
    (target,) = (
        pid
        for pid in family
        if procfs.stat(pid)[1] == str(instance.pid) and pid not in instance.relays()
    )
    os.kill(target, signal.SIGKILL)
    assert instance.wait() == 1
    sees_a_reset(client)
    sees_a_reset(server)


@pytest.mark.parametrize("which", ["inbound", "outbound"])
def test_a_large_transfer_through_a_relay_that_is_killed_ends_with_a_reset(
    opened: Open, which: str
) -> None:
    """Whichever way it goes: the receiver has been slower than the sender, once."""
    instance, lanes = opened()
    lane = lanes[which == "outbound"]
    down, up = lane.pair(), lane.pair()
    for receiver, sender in (down, up[::-1]):
        stream = Stream()
        held = fill(sender, stream, still=0.05)
        expect(receiver, stream, held)  # it is as fast as the sender from now on
        send(sender, stream, 1000, start=held)
        expect(receiver, stream, 1000, start=held)
    relays = instance.relays()
    for relay in relays:
        os.kill(relay, signal.SIGKILL)
    sees_a_reset(down[0])
    sees_a_reset(up[1])
    eventually(lambda: instance.messages().count("started again") == len(relays), "they are back")
    instance.stop()


def test_a_large_transfer_that_is_over_ends_as_it_should(opened: Open) -> None:
    instance, lanes = opened()
    for lane in lanes:
        client, server = lane.pair()
        stream = Stream()
        held = fill(server, stream, still=0.05)
        server.close()
        expect_end(client, stream, held)
        client.close()
    instance.stop()


# --- --drain ---


def test_drain_refuses_who_comes_and_waits_for_who_is_there(opened: Open) -> None:
    instance, lanes = opened("--drain", "60")
    pairs, stream = [lane.pair() for lane in lanes], Stream()
    instance.process.send_signal(signal.SIGTERM)
    for lane in lanes:
        eventually(partial(is_refused, lane), "clients are refused")
    for client, server in pairs:
        send(client, stream, 50_000)
        expect(server, stream, 50_000)
    assert instance.process.poll() is None
    for client, server in pairs:
        send(server, stream, 50_000)
        server.close()
        finish(client)
        expect_end(client, stream, 50_000)
    assert instance.wait(5) == 0
    # Who looked whether clients are refused may have come before they were.
    said = re.search(r"finished meanwhile: (\d+), that were reset: 0", instance.messages())
    assert said is not None
    assert int(said[1]) >= len(pairs)


def served(port: int) -> socket.socket | None:
    """A connection to which the server has begun to answer; until it listens it is a reset."""
    with contextlib.suppress(ConnectionResetError), contextlib.ExitStack() as stack:
        client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        stack.callback(client.close)
        if client.recv(1, socket.MSG_PEEK):
            stack.pop_all()
            return client
    return None


def is_refused(lane: Lane) -> bool:
    try:
        reset(lane.client())
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


def test_drain_with_nobody_there_ends_at_once(opened: Open) -> None:
    instance, _ = opened("--drain", "60")
    instance.process.send_signal(signal.SIGTERM)
    assert instance.wait(5) == 0


def test_drain_has_an_end(opened: Open) -> None:
    instance, lanes = opened("--drain", "1")
    pairs = [lane.pair() for lane in lanes]
    instance.process.send_signal(signal.SIGTERM)
    assert instance.wait(10) == 0
    for client, server in pairs:
        sees_a_reset(client)
        sees_a_reset(server)
    assert "finished meanwhile: 0, that were reset: 2" in instance.messages()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_wait(opened: Open, number: int) -> None:
    instance, lanes = opened("--drain", "600")
    client, _ = lanes[0].pair()
    instance.process.send_signal(signal.SIGTERM)
    eventually(lambda: "to come to their end" in instance.messages(), "it drains")
    instance.process.send_signal(number)
    assert instance.wait(5) == 0
    sees_a_reset(client)


def test_a_relay_that_dies_while_it_drains_is_not_waited_for(opened: Open) -> None:
    instance, lanes = opened("--drain", "600")
    for lane in lanes:
        lane.pair()
    instance.process.send_signal(signal.SIGTERM)
    eventually(lambda: is_refused(lanes[0]), "it drains")
    for relay in instance.relays():
        os.kill(relay, signal.SIGKILL)
    assert instance.wait(10) == 0
    for direction in ("inbound", "outbound"):
        text = f"{direction}: a relay ended before its connections did: killed by SIGKILL"
        assert text in instance.messages()


def test_ports_that_change_drain_too(opened: Open, user_directory: object) -> None:
    instance, lanes = opened("--drain", "60", "--control", f"{user_directory}/control")
    pairs = [lane.pair() for lane in lanes]
    instance.process.send_signal(signal.SIGTERM)
    for lane in lanes:
        eventually(partial(is_refused, lane), "clients are refused")
    for client, server in pairs:
        client.close()
        server.close()
    assert instance.wait(5) == 0


def test_command_s_connections_drain_after_it(
    program: Program, identity: Identity, launch: Launch
) -> None:
    """COMMAND ends with its answer under way to a slow reader; its status is kept."""
    port = free_ports()
    server = (
        "import socket;"
        "s = socket.create_server(('127.0.0.1', 80)); c = s.accept()[0];"
        "c.sendall(bytes(3 << 20)); c.close(); raise SystemExit(7)"
    )
    instance = launch(
        identity, "--drain", "60", "-t", f"127.0.0.1/{port}:80", "--",
        "/usr/bin/python3", "-I", "-c", server,
    ).wait_ready()  # fmt: skip

    with eventually(lambda: served(port), "the server answers") as client:
        eventually(lambda: "to come to their end" in instance.messages(), "COMMAND has ended")
        received = 0
        while data := client.recv(1 << 16):
            received += len(data)
        assert received == 3 << 20
    assert instance.wait(5) == 7


_DAEMON = """
import os, socket, sys, time
if os.fork():
    time.sleep(float(sys.argv[1]))
    raise SystemExit(7)
with socket.create_server(("127.0.0.1", 80)) as listener:
    while True:
        one = listener.accept()[0]
        one.sendall(b"begun")
        if os.fork() == 0:
            one.sendall(one.recv(1))
            os._exit(0)
        one.close()
"""


@pytest.mark.parametrize("how", ["in time", "late", "at once"])
def test_what_command_leaves_behind_drains_too(
    program: Program, identity: Identity, launch: Launch, how: str
) -> None:
    """COMMAND ends, and has left a daemon that serves: that lives as long as its connections may.
    Ended before that, they are reset: the kernel would end them as if they were complete.
    """
    port = free_ports()
    drain = {"in time": ("--drain", "60"), "late": ("--drain", "1"), "at once": ()}[how]
    instance = launch(
        identity, *drain, "-t", f"127.0.0.1/{port}:80", "--",
        "/usr/bin/python3", "-I", "-c", _DAEMON, "2" if how == "at once" else "600",
    ).wait_ready()  # fmt: skip

    with eventually(lambda: served(port), "the daemon answers") as client:
        assert client.recv(5, socket.MSG_WAITALL) == b"begun"
        if how != "at once":
            instance.process.send_signal(signal.SIGTERM)
        if how == "in time":
            eventually(lambda: "to come to their end" in instance.messages(), "COMMAND has ended")
            client.sendall(b"x")
            assert client.recv(2) == b"x"
            assert client.recv(2) == b""
        else:
            sees_a_reset(client)
    assert instance.wait(10) == (7 if how == "at once" else 128 + signal.SIGTERM)


@pytest.mark.parametrize("keeps", [0, 8])
def test_under_a_service_manager(
    namespace: Namespace, identity: Identity, program: Program, keeps: int
) -> None:
    """It is told how long that may take. Where it has the listener, too, nobody is refused."""
    port = free_ports()
    argv, environment = program.argv(identity)
    spec = ["-f", "--drain", "200", "-t", f"127.0.0.1/{port}:3000", str(namespace.pid)]
    with contextlib.closing(Manager(keeps=keeps, watchdog=0.4)) as manager:
        manager.start([*argv, *spec], environment)
        manager.until_ready()
        lane = Lane(Ends(socket.AF_INET, port, 3000, server_side=namespace.socket), list)
        with contextlib.closing(lane):
            lane.listen()
            client, server = lane.pair()
            os.kill(manager.main, signal.SIGTERM)
            manager.until(lambda message: message.get("STOPPING") == "1")
            said = manager.heard[-1]
            assert int(said["EXTEND_TIMEOUT_USEC"]) >= 200_000_000
            manager.until(lambda message: "WATCHDOG" in message)
            manager.until(lambda message: "WATCHDOG" in message)
            if keeps:
                lane.client()
            else:
                eventually(lambda: is_refused(lane), "clients are refused")
            client.close()
            server.close()
            assert manager.wait() == 0


# --- --idle-timeout ---


def test_what_is_idle_for_too_long_is_reset_and_what_is_not_goes_on(opened: Open) -> None:
    instance, lanes = opened("--idle-timeout", "2")
    active = [lane.pair() for lane in lanes]
    began = time.monotonic()
    idle = [lane.pair() for lane in lanes]
    stream, position = Stream(), 0
    while time.monotonic() < began + 4:
        for client, server in active:
            send(client, stream, 10, start=position)
            expect(server, stream, 10, start=position)
        position += 10
        time.sleep(0.2)
    for client, server in idle:
        notices_reset(client, within=0)
        notices_reset(server, within=0)
    instance.stop()


@pytest.mark.parametrize("size", [3 << 20, 24 << 20], ids=["all in the kernel", "blocked"])
def test_a_slow_reader_of_what_the_kernel_has_already_is_not_idle(opened: Open, size: int) -> None:
    """The server is done with what it says; nothing happens here for longer than the time."""
    instance, lanes = opened("--idle-timeout", "2", "--log-flows")
    client, server = lanes[0].pair()

    def send_all() -> None:
        with contextlib.suppress(OSError):  # the client leaves before it has it all
            server.sendall(bytes(size))

    sending = threading.Thread(target=send_all)
    sending.start()
    began = time.monotonic()
    while time.monotonic() < began + 6:
        assert client.recv(100_000)
        time.sleep(0.25)
    assert "nothing had moved" not in instance.messages()
    client.close()
    sending.join(PATIENCE)
    server.close()


def test_an_idle_relay_with_an_idle_timeout_sleeps(opened: Open) -> None:
    instance, _ = opened("--idle-timeout", "1")
    procfs.assert_quiet(instance.processes(), 2.0)
