# SPDX-License-Identifier: GPL-2.0-or-later
"""Network namespaces that the tests make themselves, and users to make them as."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from socket import socket as Socket  # noqa: N812 - a method has its name

from tests.support.stream import PATIENCE

_AGENT = Path(__file__).with_name("agent.py")


@dataclass(frozen=True)
class Identity:
    """Somebody who runs programs: the tests' own user (uid None) or another ordinary one."""

    name: str
    uid: int | None = None

    @property
    def is_root(self) -> bool:
        return self.uid is None and os.geteuid() == 0

    def wrap(self, argv: list[str]) -> list[str]:
        """The same command, run as this identity."""
        if self.uid is None:
            return argv
        return [
            "setpriv",
            f"--reuid={self.uid}",
            f"--regid={self.uid}",
            "--clear-groups",
            "--inh-caps=-all",
            *argv,
        ]


def ordinary_user() -> Identity:
    """A user of the tests' own: what is limited per user, such as pipes, is shared with nobody."""
    if os.geteuid() != 0:
        return Identity("user")
    return Identity("user", 40_000 + os.getpid() % 20_000)


class Namespace:
    """A network namespace with its loopback up (and a user namespace, for an ordinary user).

    It lives as long as its agent process, whose PID is the one to join; sockets handed out keep
    working after that, as the kernel keeps the namespace for them.
    """

    def __init__(self, owner: Identity, *, new_user: bool | None = None) -> None:
        new_user = not owner.is_root if new_user is None else new_user
        self._owner, self._new_user = owner, new_user
        self._asking = threading.Lock()  # a request has two answers, and threads of a test ask
        unshare = ["unshare", "-Urn" if new_user else "-n"]
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.agent = subprocess.Popen(
                owner.wrap(
                    [*unshare, "/usr/bin/python3", "-I", "-c", _AGENT.read_text(),
                     str(theirs.fileno())]
                ),
                pass_fds=[theirs.fileno()],
                cwd="/",
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._channel.settimeout(PATIENCE)
        if self._channel.recv(2) != b"up":
            self.close()
            raise RuntimeError(f"{' '.join(unshare)} does not work for {owner.name} here")

    @property
    def pid(self) -> int:
        return self.agent.pid

    @property
    def net_path(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    @property
    def user_path(self) -> str:
        return f"/proc/{self.pid}/ns/user"

    def datagram_socket(self, family: socket.AddressFamily) -> Socket:
        """A UDP socket that belongs to this namespace."""
        return self._made(b"u" if family == socket.AF_INET else b"v")

    def socket(self, family: socket.AddressFamily) -> Socket:
        """A TCP socket that belongs to this namespace."""
        return self._made(b"4" if family == socket.AF_INET else b"6")

    def packet_socket(self) -> Socket:
        """One for whole frames of its interfaces (AF_PACKET)."""
        return self._made(b"p")

    def diag_socket(self) -> Socket:
        """A socket to ask about TCP sockets of this namespace with; see diag.py."""
        return self._made(b"d")

    def _made(self, request: bytes) -> Socket:
        with self._asking:
            self._channel.send(request)
            _, (descriptor,), _, _ = socket.recv_fds(self._channel, 1, 1)
            made = Socket(fileno=descriptor)
            self._channel.recv(1)  # it is ours alone
        return made

    def add_address(self, address: str) -> None:
        """Give its loopback interface one more IPv4 address."""
        self._ip("address", "replace", f"{address}/32", "dev", "lo")

    def set_mtu(self, mtu: int) -> None:
        """Have its loopback interface carry packets of so many bytes at most (65,536)."""
        self._ip("link", "set", "lo", "mtu", str(mtu))

    def _ip(self, *words: str) -> None:
        enter = ["nsenter", f"--target={self.pid}", "--net"]
        if self._new_user:
            enter += ["--user", "--preserve-credentials"]
        subprocess.run(self._owner.wrap([*enter, "ip", *words]), check=True, timeout=PATIENCE)

    def kill(self) -> None:
        """End the namespace's only process."""
        self.agent.kill()
        self.agent.wait(PATIENCE)

    def close(self) -> None:
        self._channel.close()
        try:
            self.agent.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def mounted(namespace: Namespace, path: Path) -> Iterator[Path]:
    """Bind the network namespace to a file, as ip-netns(8) and container engines do; needs root."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    subprocess.run(["mount", "--bind", namespace.net_path, path], check=True, timeout=PATIENCE)
    try:
        yield path
    finally:
        unmount(path)


def unmount(path: Path) -> None:
    """Take a bound namespace away: unmounted and removed, as `ip netns delete` does."""
    subprocess.run(
        ["umount", "--lazy", path], check=False, timeout=PATIENCE, stderr=subprocess.DEVNULL
    )
    path.unlink(missing_ok=True)


def can_make(owner: Identity) -> bool:
    """Whether the owner may create namespaces here."""
    try:
        Namespace(owner).close()
    except (OSError, RuntimeError):
        return False
    return True


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The tests' environment without what belongs to their own interpreter."""
    left_out = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST"}
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    return {**kept, **extra}
