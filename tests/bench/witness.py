# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that tells what reaches it: witness.py [--lo] PORT FILE.

A connection begins with a header of 12 bytes, whose first says what is wanted: W, the number of
this network namespace; E, everything back; C, to be counted. For each that was counted FILE gets a
line: the number in its header, how it ended (fin or reset), how many bytes came, and whether one
was urgent.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import threading

HEADER = struct.Struct("=cBHII")


def serve(connection: socket.socket, path: str) -> None:
    with connection:
        header = connection.recv(HEADER.size, socket.MSG_WAITALL)
        if header[:1] == b"W":
            connection.sendall(struct.pack("=Q", os.stat("/proc/self/ns/net").st_ino))
        elif header[:1] == b"E":
            while data := connection.recv(1 << 16):
                connection.sendall(data)
        elif header[:1] == b"C":
            said = f"{HEADER.unpack(header)[-1]} {count(connection)}\n"
            with open(path, "a", encoding="ascii") as file:
                file.write(said)


def count(connection: socket.socket) -> str:
    """How a connection ended; who has only closed one way gets an answer."""
    bytes_seen, is_urgent = 0, False
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLPRI)
    while True:
        for _, events in poll.poll():
            if events & select.POLLPRI:
                is_urgent = True
                connection.recv(1, socket.MSG_OOB)
                continue
            try:
                data = connection.recv(1 << 16)
            except ConnectionResetError:
                return f"reset {bytes_seen} {is_urgent}"
            if not data:
                said = f"fin {bytes_seen} {is_urgent}"
                connection.sendall(said.encode())
                return said
            bytes_seen += len(data)


def main() -> None:
    words = sys.argv[1:]
    if words[0] == "--lo":
        del words[0]
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with socket.create_server(("127.0.0.1", int(words[0])), backlog=128) as listener:
        print("ready", flush=True)
        threading.Thread(target=end_with_stdin, daemon=True).start()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, words[1]), daemon=True).start()


def end_with_stdin() -> None:
    """A server that a forwarder runs ends with whoever started that."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
