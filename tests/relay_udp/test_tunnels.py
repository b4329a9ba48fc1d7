# SPDX-License-Identifier: GPL-2.0-or-later
"""Tunnels of real programs, whose packets are datagrams that hardsplice forwards."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import identity_named
from tests.relay_udp.test_programs import await_line, program_named, said
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program
from tests.support.stream import (
    MIB,
    PATIENCE,
    Stream,
    eventually,
    expect,
    send_and_finish,
    together,
)

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]


class Within(Identity):
    """Root, in a network namespace: what is started so takes that for the host's."""

    def wrap(self, argv: list[str]) -> list[str]:
        return ["nsenter", f"--net={self.name}", *argv]


def need_devices() -> None:
    """Skip where there are none of tunnels."""
    if not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("/dev/net/tun can't be opened")


def assert_carries(host: Namespace, inner: Namespace, address: str) -> None:
    """TCP through a tunnel to an address carries its bytes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(inner.socket(socket.AF_INET))
        listener.bind((address, 80))
        listener.listen()
        listener.settimeout(PATIENCE)
        client = stack.enter_context(host.socket(socket.AF_INET))
        client.settimeout(PATIENCE)
        client.connect((address, 80))
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(PATIENCE)
        stream = Stream()
        together(
            lambda: send_and_finish(client, stream, 3 * MIB),
            lambda: expect(server, stream, 3 * MIB),
        )


def test_wireguard(program: Program, tmp_path: Path) -> None:
    """In user space. The packets of its tunnel are hardsplice's datagrams."""
    go, wg = program_named("wireguard-go"), program_named("wg")
    need_devices()
    root = identity_named("root")
    with contextlib.ExitStack() as stack:
        host, inner = (stack.enter_context(Namespace(root)) for _ in range(2))
        ends = {"a": host, "b": inner}
        keys = {name: said([wg, "genkey"]).strip() for name in ends}
        public = {}
        for name, key in keys.items():
            (tmp_path / name).write_text(key)
            public[name] = subprocess.run(
                [wg, "pubkey"], input=key, capture_output=True, text=True, check=True
            ).stdout.strip()
        for number, (name, namespace) in enumerate(ends.items(), 1):
            enter = ["nsenter", f"--net={namespace.net_path}"]
            interface, other = f"hs{name}{os.getpid() % 100_000}", "ab"[2 - number]
            tunnel = subprocess.Popen(
                [*enter, go, "--foreground", interface],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(tunnel.wait)
            stack.callback(tunnel.terminate)
            eventually(Path(f"/var/run/wireguard/{interface}.sock").exists, "wireguard-go is up")
            to = ["endpoint", "127.0.0.1:5000", "persistent-keepalive", "1"] if name == "a" else []
            said(
                [*enter, wg, "set", interface, "private-key", str(tmp_path / name),
                 "listen-port", str(5000 + number), "peer", public[other],
                 "allowed-ips", f"10.77.0.{3 - number}/32", *to]
            )  # fmt: skip
            said([*enter, "ip", "address", "add", f"10.77.0.{number}/24", "dev", interface])
            said([*enter, "ip", "link", "set", interface, "up"])
        with forwarding(program, host, inner, "127.0.0.1/5000:5002"):
            assert_carries(host, inner, "10.77.0.2")


@contextlib.contextmanager
def forwarding(program: Program, host: Namespace, inner: Namespace, spec: str) -> Iterator[None]:
    """A port of UDP leads from one namespace into the other."""
    words = ["-f", "-u", spec, str(inner.pid)]
    instance = Instance(program, Within(host.net_path), words).wait_ready()
    try:
        yield
        instance.stop()
    finally:
        instance.discard()


def test_openvpn(program: Program, tmp_path: Path) -> None:
    """By TLS, whose ends know each other's certificates; the client's end reads and writes at a
    forwarded port.
    """
    openvpn, openssl = program_named("openvpn"), program_named("openssl")
    need_devices()
    root = identity_named("root")
    prints = {}
    for name in ("client", "server"):
        files = ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / name)]
        said(
            [openssl, "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2",
             "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}", *files]
        )  # fmt: skip
        told = said(
            [openssl, "x509", "-in", str(tmp_path / name), "-noout", "-fingerprint", "-sha256"]
        )
        prints[name] = told.strip().partition("=")[2]
    with contextlib.ExitStack() as stack:
        host, inner = (stack.enter_context(Namespace(root)) for _ in range(2))
        stack.enter_context(forwarding(program, host, inner, "127.0.0.1/5000:1194"))
        ends = {
            "server": (inner, "client", ["--dh", "none", "--local", "127.0.0.1"], "2 10.78.0.1"),
            "client": (
                host,
                "server",
                ["--remote", "127.0.0.1", "5000", "--nobind"],
                "1 10.78.0.2",
            ),
        }
        started = {}
        for name, (namespace, other, more, addresses) in ends.items():
            words = [
                "nsenter", f"--net={namespace.net_path}", openvpn, f"--tls-{name}", *more,
                "--proto", "udp", "--dev", f"hs{name[0]}{os.getpid() % 100_000}",
                "--dev-type", "tun", "--ifconfig", *f"10.78.0.{addresses}".split(),
                "--cert", str(tmp_path / name), "--key", str(tmp_path / f"{name}.key"),
                "--peer-fingerprint", prints[other], "--verb", "3",
            ]  # fmt: skip
            tunnel = subprocess.Popen(
                words, cwd="/", stdin=subprocess.DEVNULL, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            stack.callback(tunnel.communicate)
            stack.callback(tunnel.terminate)
            started[name] = tunnel
        for tunnel in started.values():
            await_line(tunnel, "Initialization Sequence Completed")
        assert_carries(host, inner, "10.78.0.2")
