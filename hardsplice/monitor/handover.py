# SPDX-License-Identifier: GPL-2.0-or-later
"""Listeners that are added and removed at run time: the work of the two monitors, and the messages
between them.

A listener belongs to the namespace of its clients; the relays that accept on it are in the other
one, and so is the monitor that keeps it for them. So the host monitor creates inbound listeners and
passes them to the namespace monitor; the namespace monitor creates outbound listeners and passes
them back.

    inbound, add       host monitor: bind  ── SERVE, listener ──►  namespace monitor: keep it
                                           ◄───────── SERVED ────
    inbound, remove    host monitor        ────────── CLOSE ────►  namespace monitor: give it up
                       end it              ◄───────── CLOSED ────
    outbound, add      host monitor        ────────── OPEN ─────►  namespace monitor: bind
                       keep it             ◄─ OPENED, listener ──
    outbound, remove   host monitor: end it

Only the host monitor writes the addresses to bind and to connect to, and ends listeners
(monitor/effects.py).

One request (monitor/requests.py) is under way at a time, so its record always fits into the
channel, and an answer without a request is recognized as such. Each monitor treats the other as
hostile: records have a fixed form, and a descriptor is checked to be the listener before it is
kept.

*Every request ends.* A request has an outcome, whatever goes wrong on its way, and then the next
one is sent. If the namespace monitor does not answer in ANSWER_SECONDS, a request for a listener
fails, and so do all others until it does answer. A late answer still belongs to that request, since
no other was sent: the listener is ended again, because its request has failed. Requests to end a
listener have no such limit, since the listener is held until it is ended; there are no more of them
than ports.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Sequence

from hardsplice.ipc.channel import CROWDED_HINT, Channel, Sent
from hardsplice.ipc.loop import Alarm, Loop
from hardsplice.ipc.messages import Kind, MalformedError, Record
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward
from hardsplice.monitor.effects import Effects
from hardsplice.monitor.groups import RelayGroups
from hardsplice.monitor.requests import (
    CloseRequest,
    Done,
    Opened,
    OpenRequest,
    Request,
    ServeRequest,
    decode,
)
from hardsplice.net.listeners import is_listener, open_listener

ANSWER_SECONDS = 5.0
AGAIN_SECONDS = 0.1  # until an answer for which there was no memory is sent again
WAITING_MAX = 1 << 17  # requests: as many as there are ports of both directions

# --- the host monitor's part ----------------------------------------------------------------------

_HINT = (
    "if it was stopped or hangs, end it, and hardsplice ends with it:"
    " kill -KILL PID, of: ps -C hs-namespace -o pid,ppid,stat"
)
_SILENT = ("the namespace monitor does not answer", _HINT)
_SENT = {
    Sent.FULL: _SILENT,
    Sent.GONE: ("the namespace monitor has ended", None),
    Sent.CROWDED: (os.strerror(errno.ETOOMANYREFS), CROWDED_HINT),
}


class HostSide:
    """Does what the registry of ports decides (registry.Worker)."""

    def __init__(
        self,
        channel: Channel,
        groups: RelayGroups,
        effects: Effects,
        loop: Loop,
        report: Callable[[HardspliceError], None],
    ) -> None:
        """``channel`` leads to the namespace monitor; ``groups`` are the outbound relays.
        ``report`` gets messages for the log about errors that no request caused.
        """
        self.channel = channel
        self.groups = groups
        self.effects = effects
        self.waiting: deque[Request] = deque()
        self.current: Request | None = None
        self.is_late = False  # the current one has failed for lack of an answer
        self._due = 0.0
        self._clock = Alarm(loop, self._check_late)
        self._report = report
        self._is_at_it = False
        effects.begin(loop, report)

    def add(self, forward: Forward, done: Done, opened: Opened | None = None) -> None:
        """Listen, or take the inbound listener that is ``opened`` already, and have connections
        served.
        """
        if forward.direction is Direction.INBOUND:
            self._send_request(ServeRequest(forward, self.effects, done, opened))
        else:
            self._send_request(OpenRequest(forward, self.effects, done, self.groups))

    def remove(
        self, forward: Forward, *, reset_flows: bool, done: Callable[[HardspliceError | None], None]
    ) -> None:
        """Stop listening."""
        if forward.direction is Direction.INBOUND:
            self._send_request(CloseRequest(forward, self.effects, reset_flows, done))
        else:
            self.effects.end(forward.id)

            def removed() -> None:
                self.effects.cross_out(forward.id)
                done(None)

            self.groups.remove(forward.id, reset_flows=reset_flows, done=removed)

    def _send_request(self, request: Request) -> None:
        if not request.can_wait and (self.is_late or len(self.waiting) >= WAITING_MAX):
            self._finish(request, request.failed(*_SILENT))
            return
        self.waiting.append(request)
        self._next()

    def _next(self) -> None:
        """Send requests until one is under way. A caller that gets an outcome may make another
        request: that waits for its turn here.
        """
        if self._is_at_it:
            return
        self._is_at_it = True
        try:
            while self.current is None and self.waiting:
                request = self.waiting.popleft()
                failure = self._send(request)
                if failure is not None:
                    request.give_up()
                    self._finish(request, failure)
        finally:
            self._is_at_it = False

    def _send(self, request: Request) -> HardspliceError | None:
        """Have a request under way; a HardspliceError where that is not possible."""
        try:
            sent = self.channel.send(request.begin(), wait=False)
        except HardspliceError as failure:
            return failure
        except Exception as error:  # noqa: BLE001 - it ends this request, whatever it is
            return request.failed(f"{type(error).__name__}: {error}")
        if not sent:
            unsent = request.failed(*_SENT[sent])
            if sent is Sent.CROWDED:
                self._report(unsent)
            return unsent
        self.current = request
        self._due = time.monotonic() + ANSWER_SECONDS
        self._clock.set(ANSWER_SECONDS)
        try:
            request.sent()
        except Exception as error:  # noqa: BLE001 - it has its answer yet to come
            self._report(request.failed(f"{type(error).__name__}: {error}"))
        return None

    def _finish(self, request: Request, outcome: HardspliceError | None) -> None:
        """Report the outcome to the caller. An error there must not end the service."""
        try:
            request.report(outcome)
        except Exception as error:  # noqa: BLE001 - see above
            self._report(
                HardspliceError(
                    "report", "the outcome for a port", f"{type(error).__name__}: {error}"
                )
            )

    def _check_late(self) -> None:
        """Whether the answer is overdue."""
        if self.current is None or self.is_late:
            return
        left = self._due - time.monotonic()
        if left > 0:
            self._clock.set(left)
            return
        self.is_late = True
        late = [one for one in (self.current, *self.waiting) if not one.can_wait]
        self.waiting = deque(one for one in self.waiting if one.can_wait)
        self._report(HardspliceError("change", "ports", *_SILENT))
        for request in late:
            self._finish(request, request.failed(*_SILENT))

    def take(self, record: Record) -> None:
        """An answer. MalformedError if no request awaits it; the caller closes its descriptors."""
        request = self.current
        if request is None or (record.kind, record.index) != (request.answer, request.port_id):
            raise MalformedError(f"an answer of kind {record.kind} that nobody waits for")
        was_late, self.is_late = self.is_late, False
        self.current = None
        try:
            self._conclude(request, record, undo=was_late and not request.can_wait)
        finally:
            self._next()
            if self.current is None:
                self._clock.cancel()

    def _conclude(self, request: Request, record: Record, *, undo: bool) -> None:
        if record.detail == errno.ETOOMANYREFS:
            self._report(request.failed(*_SENT[Sent.CROWDED]))
        if undo:
            more = request.undo(record)
            if more is not None:
                self.waiting.appendleft(more)
            return
        try:
            outcome = request.end(record)
        except MalformedError:
            raise
        except Exception as error:  # noqa: BLE001 - it ends this request, whatever it is
            outcome = request.failed(f"{type(error).__name__}: {error}")
        self._finish(request, outcome)


# --- the namespace monitor's part -----------------------------------------------------------------


class NamespaceSide:
    """Serves the host monitor's requests."""

    def __init__(
        self, parent: Channel, groups: RelayGroups, families: Sequence[int], loop: Loop
    ) -> None:
        """``families`` are the namespace's; ``groups`` are the inbound relays."""
        self.parent = parent
        self.loop = loop
        self.groups = groups
        self.families = families

    def take(self, record: Record) -> None:
        """A request. MalformedError if it is invalid; its descriptors are then the caller's."""
        handler = _HANDLERS.get(record.kind)
        if handler is None:
            raise MalformedError(f"a request of kind {record.kind}")
        handler(self, record)

    def _open(self, record: Record) -> None:
        forward, _ = decode(record, Direction.OUTBOUND)
        try:
            listener = open_listener(forward, self.families)
        except OSError as error:
            self._answer(Kind.OPENED, record, error.errno or errno.EIO)
            return
        except Exception:  # noqa: BLE001 - it ends this request, whatever it is
            self._answer(Kind.OPENED, record, errno.EINVAL)
            return
        answer = Record(Kind.OPENED, index=record.index, fds=(listener,))
        sent = self.parent.send(answer)
        os.close(listener)
        if not sent:
            code = errno.ENOBUFS if sent is Sent.FULL else errno.ETOOMANYREFS
            self._answer(Kind.OPENED, record, code)

    def _serve(self, record: Record) -> None:
        forward, slots = decode(record, Direction.INBOUND)
        (fd,) = record.fds
        if self.groups.has(record.index) or not is_listener(fd, forward):
            raise MalformedError("a descriptor that is not a new listener")
        code = 0
        try:
            self.groups.add(forward, fd, slots)
        except HardspliceError:
            code = errno.EAFNOSUPPORT
        except Exception:  # noqa: BLE001 - it ends this request, whatever it is
            code = errno.EINVAL
        os.close(fd)
        self._answer(Kind.SERVED, record, code)

    def _close(self, record: Record) -> None:
        reset_flows = bool(record.small)

        def removed() -> None:
            self._answer(Kind.CLOSED, record)

        self.groups.remove(record.index, reset_flows=reset_flows, done=removed)

    def _answer(self, kind: Kind, record: Record, code: int = 0) -> None:
        """Answer, now or once there is memory for it: without the answer no other request would
        ever be sent.
        """
        if self.parent.send(Record(kind, index=record.index, detail=code)) is Sent.FULL:
            self.loop.after(AGAIN_SECONDS, lambda: self._answer(kind, record, code))


# The requests that the host monitor may send.
_HANDLERS: dict[int, Callable[[NamespaceSide, Record], None]] = {
    Kind.OPEN: NamespaceSide._open,
    Kind.SERVE: NamespaceSide._serve,
    Kind.CLOSE: NamespaceSide._close,
}
