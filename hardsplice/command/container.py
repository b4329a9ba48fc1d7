# SPDX-License-Identifier: GPL-2.0-or-later
"""A COMMAND's namespaces, as the host monitor sees them.

    the host monitor
    └─ guard (guard.py)        makes user namespace A and the PID namespace; then it only waits
       └─ PID 1 (init.py)      mounts /proc in A; makes user namespace B and all other namespaces
          └─ COMMAND           root in B, once all others are locked down

Two user namespaces, because the kernel locks mounts that are copied into a mount namespace of
another one: the new /proc can't be unmounted from the host's, and what was made read-only can't be
made writable again. A belongs to the user who started hardsplice: if that is root, no other process
of COMMAND's user may enter it or trace processes in it.

PID 1 is not COMMAND itself, since a PID 1 gets no signals that it has no handler for: Ctrl-C would
not end `hardsplice sleep 100`. For the same reason only a process outside can end a PID 1 that
hangs, and the host monitor can't, once it has changed its user and is in a Landlock domain. So the
guard is PID 1's parent. It has a lifeline to the host monitor (ipc/lifeline.py), and PID 1 has
asked to be killed when its parent ends: whatever happens to the host monitor, the kernel ends the
guard, PID 1, and with it the whole PID namespace.

The namespace monitor joins B through PID 1, as it would join any process.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

from hardsplice.command import guard, id_maps, init
from hardsplice.command.recipe import Recipe
from hardsplice.ipc import child, lifeline
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.child import Child
from hardsplice.ipc.dialogue import OF_INIT, last_words
from hardsplice.ipc.messages import Kind, MalformedError, Record
from hardsplice.kernel import prctl
from hardsplice.kernel.status import describe_status, exit_status
from hardsplice.model.errors import HardspliceError, error_of, reason_of
from hardsplice.model.roles import GUARD, HOST, INIT
from hardsplice.net import namespaces
from hardsplice.sandbox import refusals

# For PID 1 to end by itself, and for the kernel to end it otherwise, in seconds
_LEAVE_SECONDS = 0.3
_END_SECONDS = 2.0


class Container:
    """A COMMAND's namespaces, and the processes that hold them."""

    def __init__(self, recipe: Recipe) -> None:
        """Create them; PID 1 waits until it is told to start COMMAND. A HardspliceError leaves
        nothing behind.
        """
        self.command = recipe.command[0]  # its program's name
        self._hints = (*init.HINTS, *([recipe.hint] if recipe.hint else []))  # of PID 1's
        self.warning = ""  # what COMMAND will miss
        self.has_own_proc = True
        self._init: Child | None = None  # PID 1
        self._has_been_ended = False
        prctl.set_child_subreaper(1)  # PID 1 becomes our child if the guard ends before it
        hanging, held = lifeline.pair()
        self.channel, channel = Channel.pair(HOST.name, INIT.name)
        pid, report = child.fork(
            HOST.name,
            GUARD.name,
            lambda theirs: guard.live(recipe, channel, theirs, hanging),
        )
        channel.close()
        os.close(hanging)
        self._guard = Child(pid, report, lifeline.Hold(held))
        try:
            self._make(recipe, report)
            self.served = namespaces.open_process(self.init, netns_only=not recipe.new_user)
            self.channel.send(Record(Kind.ENTERED))
        except BaseException:
            self.end()
            raise
        finally:
            report.close()

    def _make(self, recipe: Recipe, report: Channel) -> None:
        if recipe.new_user:
            self._expect(report, Kind.WANTS_MAPS)
            try:
                id_maps.write(self._guard.pid, recipe.ids)
            except OSError as error:
                hint = refusals.userns_hint(error)
                raise HardspliceError("create", "namespaces", reason_of(error), hint) from error
            report.send(Record(Kind.MAPPED))
        started = self._expect(report, Kind.STARTED)
        self._init = Child(started.detail, self.channel)
        self.warning = started.text.decode(errors="replace")
        self.has_own_proc = bool(self._expect(self.channel, Kind.NAMESPACES).detail)
        self._expect(report, Kind.READY)  # the guard is locked down

    def _expect(self, channel: Channel, kind: Kind) -> Record:
        """The other side's next record; its HardspliceError if it reports one."""
        try:
            record = channel.receive() or self._other_word(channel)
        except MalformedError as error:
            raise HardspliceError("create", "namespaces", str(error)) from error
        if record is None:
            raise HardspliceError("create", "namespaces", self._early_end())
        if record.kind == Kind.FATAL:
            raise error_of(record.text)
        if record.kind != kind:
            raise HardspliceError(
                "create", "namespaces", f"a record of kind {record.kind} is not due"
            )
        return record

    def _other_word(self, channel: Channel) -> Record | None:
        """What the other one of the two says, where this one has ended without a word: PID 1 ends
        with the guard, and the guard with PID 1.
        """
        if channel is not self.channel:
            return self.channel.receive()
        try:
            record = self._guard.channel.receive(wait=False)
        except BlockingIOError:  # it is still there
            return None
        return record if record and record.kind == Kind.FATAL else None

    def _early_end(self) -> str:
        """What is known about it, after the guard has ended or closed its channel."""
        known = "the process that makes them ended early"
        if self._guard.has_ended(_LEAVE_SECONDS):
            status = self._guard.reap()
            if status is not None:
                return f"{known}: {describe_status(status)}"
        return known

    @property
    def init(self) -> int:
        """PID 1, by its number here."""
        return 0 if self._init is None else self._init.pid

    @property
    def pidfd(self) -> int:
        """Readable when PID 1 has ended, and with it all that was in its PID namespace."""
        assert self._init is not None
        return self._init.pidfd

    @property
    def pids(self) -> tuple[int, ...]:
        """Our children: the guard, and after its end PID 1."""
        return self._guard.pid, self.init

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that the host monitor keeps."""
        assert self._init is not None
        return (*self._init.descriptors, *self._guard.descriptors)

    def status(self) -> tuple[int, str]:
        """How PID 1 ended, as a shell gives it and in words: the guard ends in the same way, unless
        it can't, or was ended itself, and PID 1 with it.
        """
        status = self._guard.reap() if self._guard.has_ended(_LEAVE_SECONDS) else None
        if status is None:
            return 128 + signal.SIGKILL, f"{INIT.name} was {describe_status(signal.SIGKILL)}"
        code = exit_status(status)
        if os.WIFSIGNALED(status):
            return code, f"{GUARD.name} was {describe_status(status)}"
        return code, f"{INIT.name} was {describe_status(code - 128 if code > 128 else code << 8)}"

    def last_records(self) -> Iterator[Record]:
        """What PID 1 has sent before it ended, and was not received yet. MalformedError."""
        assert self._init is not None
        return self._init.last_words()

    def last_words(self, record: Record, *, runs: bool) -> HardspliceError:
        """The HardspliceError that PID 1 reports; ``runs`` is whether COMMAND was told to run.
        MalformedError if PID 1 may not report that.
        """
        failure = last_words(record.text, OF_INIT if runs else None, self._hints)
        if failure.verb == "run":
            failure.object = self.command
        if record.detail in (init.NOT_EXECUTED, init.NOT_FOUND):
            failure.status = record.detail
        return failure

    def end(self, *, patience: float = _LEAVE_SECONDS) -> None:
        """End all processes in there. PID 1 may take ``patience`` seconds to end at end of file;
        then the guard, and with it PID 1, is killed.
        """
        if self._has_been_ended:
            return
        self._has_been_ended = True
        self.channel.discard_rest()
        self.channel.close()
        if self._init is not None:
            self._init.has_ended(patience)
        self._guard.let_go()
        deadline = time.monotonic() + _END_SECONDS
        for one in (self._guard, self._init):
            if one is not None and one.has_ended(max(0.0, deadline - time.monotonic())):
                one.reap()
