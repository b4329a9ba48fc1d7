# SPDX-License-Identifier: GPL-2.0-or-later
"""A forwarder in user space that can be told to be wrong: it puts the contract to the test.

`python faulty_proxy.py FAULT LISTENER TARGET` forwards from the listening socket with descriptor
LISTENER to port TARGET of the same loopback, one thread a connection. With the fault "none" it is
right, if slow, and resets flows with urgent data, as the contract allows. The others are mistakes
that forwarders do make.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import threading
import time

FAULTS = {
    "none": "nothing is wrong",
    "end-at-hangup": "a socket shut both ways ends the flow, whatever is still held",
    "end-at-fin": "end of file one way ends both ways",
    "fin-overtakes": "FIN is passed on before the bytes that came before it",
    "urgent-lost": "urgent data is read past, and lost",
    "urgent-spins": "nothing reads past urgent data, while epoll says there is some",
    "reset-as-fin": "a reset of one side becomes a clean end for the other",
    "reset-unseen": "a side that finished is not watched any more",
    "refusal-as-fin": "a refused connection becomes one with a clean end",
    "dirty-buffer": "what an abandoned flow held comes out of the next",
    "spin-blocked": "a blocked sink leaves its source watched",
    "spin-half-closed": "a source at its end stays watched",
    "ticks": "twenty wake-ups a second for nothing",
    "nagle": "small segments wait for acknowledgements",
    "double": "now and then some bytes are sent twice",
    "drop": "now and then a byte is left out",
    "one-at-a-time": "a connection waits for the one before it",
    "late-reset": "a reset is passed on after two seconds",
}
_CHUNK = 65_536
_ABORT = struct.pack("ii", 1, 0)


class Proxy:
    """All the flows, and the fault they share."""

    def __init__(self, fault: str, listener: socket.socket, target: int) -> None:
        self.fault = fault
        self.listener = listener
        self.address = (listener.getsockname()[0], target)
        self.leftover = b""

    def serve(self) -> None:
        """Accept for ever."""
        while True:
            client, _ = self.listener.accept()
            thread = threading.Thread(target=self._forward, args=(client,), daemon=True)
            thread.start()
            if self.fault == "one-at-a-time":
                thread.join()

    def _forward(self, client: socket.socket) -> None:
        target = socket.socket(client.family)
        for sock in (client, target):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(self.fault != "nagle"))
        try:
            target.connect(self.address)
        except OSError:
            target.close()
            self._leave(client, abort=self.fault != "refusal-as-fin")
            return
        Flow(self, client, target).run()

    def _leave(self, *sockets: socket.socket, abort: bool) -> None:
        if abort and self.fault == "late-reset":
            time.sleep(2)
        for sock in sockets:
            if abort:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            sock.close()

    def end(self, flow: Flow, *, abort: bool) -> None:
        """Close both sides of a flow."""
        if self.fault == "dirty-buffer":
            self.leftover = flow.held[0]
        self._leave(*flow.sides, abort=abort and self.fault != "reset-as-fin")


class Flow:
    """One connection; direction 0 is client to target; `held` is what each read and not sent."""

    def __init__(self, proxy: Proxy, client: socket.socket, target: socket.socket) -> None:
        self.proxy, self.fault = proxy, proxy.fault
        self.sides = (client, target)
        for sock in self.sides:
            sock.setblocking(False)
        self.held = [proxy.leftover, b""]
        proxy.leftover = b""
        self.at_end = [False, False]
        self.passed_on = [False, False]
        self.hung_up = [False, False]
        self.turns = 0

    def run(self) -> None:
        """Until both directions are through, or something breaks."""
        try:
            while not all(self.passed_on):
                if not self._turn():
                    return
        except OSError:
            self.proxy.end(self, abort=True)
            return
        self.proxy.end(self, abort=False)

    def _wanted(self, side: int) -> int | None:
        wanted = 0
        if not self.at_end[side] and (not self.held[side] or self.fault == "spin-blocked"):
            wanted |= select.POLLIN | select.POLLPRI
        if self.at_end[side] and self.fault == "spin-half-closed":
            wanted |= select.POLLIN
        if self.held[1 - side]:
            wanted |= select.POLLOUT
        if not wanted and self.hung_up[side]:
            return None
        if not wanted and self.at_end[side] and self.fault == "reset-unseen":
            return None
        return wanted

    def _turn(self) -> bool:
        """Wait and move once; False when the flow was ended here."""
        poller = select.poll()
        for side in (0, 1):
            wanted = self._wanted(side)
            if wanted is not None:
                poller.register(self.sides[side], wanted)
        ready = dict(poller.poll(50 if self.fault == "ticks" else None))
        for side in (0, 1):
            events = ready.get(self.sides[side].fileno(), 0)
            if events & select.POLLERR:
                self._last_bytes(side)
                self.proxy.end(self, abort=True)
                return False
            if events & select.POLLHUP:
                self.hung_up[side] = True
                if self.fault == "end-at-hangup" and any(self.held):
                    self.proxy.end(self, abort=False)
                    return False
            if events & select.POLLPRI and self.fault not in ("urgent-lost", "urgent-spins"):
                self.proxy.end(self, abort=True)
                return False
            stuck = events & select.POLLPRI and self.fault == "urgent-spins"
            if events & (select.POLLIN | select.POLLHUP) and not stuck:
                self._read(side)
        for direction in (0, 1):
            self._write(direction)
            if not self._pass_on_end(direction):
                return False
        return True

    def _last_bytes(self, side: int) -> None:
        """What a reset side had sent before still goes out, as far as the other takes it."""
        try:
            while not self.held[side] and not self.at_end[side]:
                self._read(side)
                self._write(side)
        except OSError:
            return

    def _read(self, side: int) -> None:
        if self.at_end[side] or self.held[side]:
            return
        try:
            data = self.sides[side].recv(_CHUNK)
        except BlockingIOError:
            return
        self.turns += 1
        if self.turns % 3 == 0 and self.fault == "double":
            data += data[-1:]
        if self.turns % 3 == 0 and self.fault == "drop" and len(data) > 1:
            data = data[:-1]
        self.held[side] = data
        self.at_end[side] = not data
        if self.fault == "fin-overtakes" and not data:
            self.held[side] = b""

    def _write(self, direction: int) -> None:
        if self.held[direction]:
            if self.fault == "fin-overtakes" and self._fin_is_there(direction):
                self.held[direction], self.at_end[direction] = b"", True
                return
            try:
                sent = self.sides[1 - direction].send(self.held[direction])
            except BlockingIOError:
                return
            self.held[direction] = self.held[direction][sent:]

    def _fin_is_there(self, direction: int) -> bool:
        poller = select.poll()
        poller.register(self.sides[direction], select.POLLRDHUP)
        return bool(poller.poll(0))

    def _pass_on_end(self, direction: int) -> bool:
        if self.at_end[direction] and not self.held[direction] and not self.passed_on[direction]:
            self.passed_on[direction] = True
            if self.fault == "end-at-fin":
                self.proxy.end(self, abort=False)
                return False
            self.sides[1 - direction].shutdown(socket.SHUT_WR)
        return True


if __name__ == "__main__":
    Proxy(sys.argv[1], socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3])).serve()
