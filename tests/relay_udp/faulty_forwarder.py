# SPDX-License-Identifier: GPL-2.0-or-later
"""A forwarder of datagrams that can be told to be wrong: it puts the contract to the test.

`python faulty_forwarder.py FAULT COUNTS BOUND LISTENER:TARGET...` forwards from each bound socket
with descriptor LISTENER to port TARGET of the loopback of its family. What it drops it counts in
the first eight bytes of the file with descriptor COUNTS. It keeps BOUND flows at most; the oldest
unanswered one goes first. With the fault "none" it is right, if slow. The others are mistakes that
forwarders do make.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import select
import socket
import struct
import sys

FAULTS = {
    "none": "nothing is wrong",
    "one-socket": "all clients share one socket towards the target; the last gets the answers",
    "by-client": "a client of two listeners has one flow, which is the first one's",
    "zero-ignored": "a datagram without a byte is taken for an end, and dropped",
    "zero-ends": "one of the target's ends the flow",
    "merged": "what is there is joined into one datagram",
    "unsplit": "several that were received as one go on as one",
    "split-wrongly": "they are split in halves, whatever their size was",
    "last-lost": "of several that were received as one, the shorter last one is left out",
    "wrong-source": "answers leave from the address that the routing table prefers",
    "small-buffer": "65,000 bytes are received at most; the rest is cut off",
    "ethernet-buffer": "1,500 bytes are received at most; the rest is cut off",
    "one-answer": "a flow ends with its first answer",
    "reorders": "what is there at once is sent last to first",
    "doubles": "now and then a datagram is sent twice",
    "keeps-one": "the last datagram waits for the next one",
    "foreign-answers": "answers go to whoever wrote last",
    "refused-for-ever": "a flow whose target refused stays, and drops what comes",
    "refused-spins": "the error of a target that refused is never taken",
    "refused-dies": "the error of a target that refused ends the listener's turn for good",
    "new-address": "each burst of a client comes from a new address",
    "ticks": "twenty wake-ups a second for nothing",
    "uncounted": "nothing that is dropped is counted",
    "oldest-evicted": "at the bound the oldest flow goes, answered or not",
    "never-evicted": "at the bound new clients are dropped, although unanswered flows are there",
}
_SOL_UDP, _UDP_GRO, _UDP_SEGMENT = 17, 104, 103
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO, _SO_RXQ_OVFL = 8, 49, 50, 40
_BATCH = 64

Source = tuple[int, int, bytes]


class Socket:
    """A UDP socket, and how many datagrams it is known to have dropped."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.dropped = 0
        sock.setblocking(False)
        sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)


class Listener(Socket):
    """Where clients write to, and the port that it leads to."""

    def __init__(self, sock: socket.socket, target: int) -> None:
        super().__init__(sock)
        self.target = target


class Flow(Socket):
    """A client of a listener: the socket that stands for it, and how it is answered."""

    def __init__(self, sock: socket.socket, listener: Listener, client: object) -> None:
        super().__init__(sock)
        self.listener, self.client = listener, client
        self.source: list[Source] = []
        self.answered = self.refused = False


class Forwarder:
    """All the flows, and the fault they share."""

    def __init__(self, fault: str, counts: int, bound: int, listeners: list[Listener]) -> None:
        self.fault, self.bound = fault, bound
        self.counts = mmap.mmap(counts, mmap.PAGESIZE)
        self.listeners = {listener.sock.fileno(): listener for listener in listeners}
        self.by_client: dict[object, Flow] = {}
        self.flows: dict[int, Flow] = {}
        self.last: Flow | None = None
        self.kept: list[tuple[Flow, bytes]] = []
        self.number = 0
        self.poller = select.epoll()
        for descriptor in self.listeners:
            self.poller.register(descriptor, select.EPOLLIN)

    def serve(self) -> None:
        """For ever."""
        while True:
            for descriptor, events in self.poller.poll(0.05 if self.fault == "ticks" else None):
                if listener := self.listeners.get(descriptor):
                    self._from_clients(listener)
                elif flow := self.flows.get(descriptor):
                    self._from_target(flow, events)

    # --- there ---

    def _from_clients(self, listener: Listener) -> None:
        turned: set[Flow] = set()
        batch: list[tuple[Flow, bytes]] = []
        for data, control, peer in self._received(listener):
            flow = self._flow(listener, peer, control, turned)
            if flow is None:
                self._count(1)
                continue
            turned.add(flow)
            self.last = flow
            batch.append((flow, data))
        if self.fault == "keeps-one":
            batch, self.kept = [*self.kept, *batch[:-1]], batch[-1:]
        for flow, data in self._faulty(batch):
            self._send(flow.sock, data, lambda flow, data: flow.sock.send(data), flow)

    def _flow(
        self, listener: Listener, peer: object, control: list[Source], turned: set[Flow]
    ) -> Flow | None:
        asked = [one for one in control if one[1] in (_IP_PKTINFO, _IPV6_PKTINFO)]
        local = tuple(_address(one) for one in asked)
        key: object = (listener.sock.fileno(), peer, local)
        if self.fault == "one-socket":
            key = listener.sock.fileno()
        elif self.fault == "by-client":
            key = peer
        flow = self.by_client.get(key)
        if flow is not None and self.fault == "new-address" and flow not in turned:
            self._end(flow)
            flow = None
        if flow is None:
            if len(self.flows) >= self.bound and not self._make_room():
                return None
            flow = Flow(_connected(listener), listener, peer)
            self.by_client[key] = self.flows[flow.sock.fileno()] = flow
            self.poller.register(flow.sock.fileno(), select.EPOLLIN)
        flow.client = peer
        flow.source = [_answer_from(one) for one in asked]
        return None if flow.refused else flow

    def _make_room(self) -> bool:
        if self.fault == "never-evicted":
            return False
        for flow in self.flows.values():
            if not flow.answered or self.fault == "oldest-evicted":
                self._end(flow)
                return True
        return False

    # --- back ---

    def _from_target(self, flow: Flow, events: int) -> None:
        if events & select.EPOLLERR and self.fault == "refused-spins":
            return
        batch = [(flow, data) for data, _, _ in self._received(flow)]
        if flow.sock.fileno() < 0:
            return
        if batch:
            flow.answered = True
        if self.fault == "zero-ends" and (flow, b"") in batch:
            self._end(flow)
        for one, data in self._faulty(batch):
            self._answer(one, data)
            if self.fault == "one-answer":
                self._end(flow)
                return

    def _answer(self, flow: Flow, data: bytes) -> None:
        if self.fault == "foreign-answers" and self.last is not None:
            flow = self.last
        source = [] if self.fault == "wrong-source" else flow.source
        self._send(
            flow.listener.sock,
            data,
            lambda flow, data: flow.listener.sock.sendmsg([data], source, 0, flow.client),
            flow,
        )

    # --- both ways ---

    def _received(self, one: Socket) -> list[tuple[bytes, list[Source], object]]:
        """What is there, one datagram each."""
        room = {"small-buffer": 65_000, "ethernet-buffer": 1500}.get(self.fault, 1 << 16)
        found = []
        for _ in range(_BATCH):
            try:
                data, control, _, peer = one.sock.recvmsg(room, 256)
            except BlockingIOError:
                break
            except ConnectionRefusedError:
                if isinstance(one, Flow):
                    self._refused(one)
                break
            size = 0
            for level, kind, value in control:
                if (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL):
                    (dropped,) = struct.unpack("=I", value)
                    self._count(dropped - one.dropped)
                    one.dropped = dropped
                elif (level, kind) == (_SOL_UDP, _UDP_GRO):
                    (size,) = struct.unpack("=i", value)
            found += [(part, control, peer) for part in self._split(data, size)]
        return found

    def _split(self, data: bytes, size: int) -> list[bytes]:
        if not size or len(data) <= size or self.fault == "unsplit":
            return [data]
        if self.fault == "split-wrongly":
            size = (len(data) + 1) // 2
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        if self.fault == "last-lost" and len(parts[-1]) < size:
            parts.pop()
        return parts

    def _faulty(self, batch: list[tuple[Flow, bytes]]) -> list[tuple[Flow, bytes]]:
        self.number += len(batch)
        if self.fault == "reorders":
            return batch[::-1]
        if self.fault == "doubles" and self.number % 7 == 0:
            return [*batch, *batch[-1:]]
        if self.fault == "zero-ignored":
            return [(flow, data) for flow, data in batch if data]
        if self.fault == "merged" and len({flow for flow, _ in batch}) == 1:
            whole = b"".join(data for _, data in batch)
            return [(batch[0][0], whole)] if len(whole) < 60_000 else batch
        return batch

    def _send(self, sock: socket.socket, data: bytes, send: object, flow: Flow) -> None:
        assert callable(send)
        try:
            send(flow, data)
        except ConnectionRefusedError:
            if sock is flow.sock and self.fault == "refused-dies":
                self.poller.unregister(flow.listener.sock.fileno())
            elif sock is flow.sock:
                self._refused(flow)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.EBADF, errno.EMSGSIZE):
                raise
            self._count(1)

    def _refused(self, flow: Flow) -> None:
        if self.fault == "refused-for-ever":
            flow.refused = True
        elif self.fault == "refused-dies":
            self.poller.unregister(flow.listener.sock.fileno())
        else:
            self._end(flow)

    def _end(self, flow: Flow) -> None:
        self.flows.pop(flow.sock.fileno(), None)
        self.by_client = {key: one for key, one in self.by_client.items() if one is not flow}
        flow.sock.close()

    def _count(self, number: int) -> None:
        if self.fault != "uncounted":
            (before,) = struct.unpack_from("=Q", self.counts)
            struct.pack_into("=Q", self.counts, 0, before + number)


def _connected(listener: Listener) -> socket.socket:
    """A socket towards the target."""
    sock = socket.socket(listener.sock.family, socket.SOCK_DGRAM)
    address = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
    sock.connect((address, listener.target))
    return sock


def _address(asked: Source) -> bytes:
    """The address that was asked; of the other fields, IPv4's differ from one time to the next."""
    level, _, value = asked
    return value[8:12] if level == socket.IPPROTO_IP else value[:16]


def _answer_from(asked: Source) -> Source:
    """What has the answer leave from the address that was asked."""
    level, kind, value = asked
    if level == socket.IPPROTO_IP:  # in_pktinfo: interface, address to send from, address asked
        return level, kind, struct.pack("=i4s4x", 0, value[8:12])
    return level, kind, value[:16] + struct.pack("=i", 0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        Forwarder(
            sys.argv[1],
            int(sys.argv[2]),
            int(sys.argv[3]),
            [
                Listener(socket.socket(fileno=int(listener)), int(target))
                for listener, target in (words.split(":") for words in sys.argv[4:])
            ],
        ).serve()
