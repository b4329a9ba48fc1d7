# SPDX-License-Identifier: GPL-2.0-or-later
"""A program to start in a container and outside of it, by file: a server of datagrams, and clients
that say in a word whether its answers are right.

    serve PORT...            answer each datagram with the same, "port?" with the port's number
    ports ADDRESS PORT...    which ports of the server's are behind these
    sizes ADDRESS PORT       "whole", or the first size in bytes that comes back as anything else
    clients ADDRESS PORT     how many of 50 clients at once had 20 answers, each its own

A port may be a range, FIRST-LAST. The clients' sockets are connected ones, which take answers only
from where they asked.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import time
from collections.abc import Iterator

SIZES = (0, 1, 64, 1400, 9000, 65507)  # the last is IPv4's largest
CLIENTS, ROUNDS = 50, 20
PATIENCE = 10.0  # seconds, of which a server may need the first to start


def numbers(words: list[str]) -> Iterator[int]:
    """The ports that words name."""
    for word in words:
        first, _, last = word.partition("-")
        yield from range(int(first), int(last or first) + 1)


def serve(words: list[str]) -> None:
    """Answer at all addresses of both families until the process is ended."""
    selector = selectors.DefaultSelector()
    for port in numbers(words):
        end = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        end.bind(("::", port))
        selector.register(end, selectors.EVENT_READ, str(port).encode())
    while True:
        for key, _ in selector.select():
            end = key.fileobj  # type: ignore[assignment]
            data, peer = end.recvfrom(1 << 16)
            end.sendto(key.data if data == b"port?" else data, peer)


def asking(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    end = socket.socket(family, socket.SOCK_DGRAM)
    end.connect((address, port))
    end.settimeout(PATIENCE)
    return end


def answer(end: socket.socket, data: bytes, seconds: float = 0.3) -> bytes | None:
    """What comes back, asked again and again until the server is there; None if nothing does."""
    end.settimeout(seconds)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            end.send(data)
            return end.recv(1 << 16)
        except TimeoutError:
            continue
        except ConnectionRefusedError:
            time.sleep(0.05)
    return None


def ports(address: str, words: list[str]) -> str:
    """The numbers that the server has for these ports."""
    said = (answer(asking(address, port), b"port?") for port in numbers(words))
    return " ".join("none" if one is None else one.decode() for one in said)


def sizes(address: str, port: int) -> str:
    """Whether datagrams of all sizes come back whole."""
    for size in SIZES:
        data = os.urandom(size)
        if answer(asking(address, port), data) != data:
            return str(size)
    return "whole"


def clients(address: str, port: int) -> int:
    """How many of many clients at once have all their answers."""
    answer(asking(address, port), b"port?")  # the server is there
    ends = [asking(address, port) for _ in range(CLIENTS)]
    right = dict.fromkeys(range(CLIENTS), 0)
    for turn in range(ROUNDS):
        for at, end in enumerate(ends):
            end.send(b"%d of %d" % (turn, at))
        for at, end in enumerate(ends):
            try:
                right[at] += end.recv(100) == b"%d of %d" % (turn, at)
            except OSError:
                continue
    return sum(number == ROUNDS for number in right.values())


def main() -> None:
    """Do what the command line says."""
    what, *words = sys.argv[1:]
    if what == "serve":
        serve(words)
    elif what == "ports":
        print(ports(words[0], words[1:]))
    elif what == "sizes":
        print(sizes(words[0], int(words[1])))
    else:
        print(clients(words[0], int(words[1])))


if __name__ == "__main__":
    main()
