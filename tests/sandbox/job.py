# SPDX-License-Identifier: GPL-2.0-or-later
"""What a test and the launcher in `takeover.py` tell each other.

The test's orders are a `Job`, in the environment. The answers come over a `Board`, a page of
shared memory: a process that is locked down can write there without asking the kernel for
anything, so that the way in which a result is reported takes no part in it.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hardsplice.sandbox.policy.model import Rule

VARIABLE = "HARDSPLICE_TAKEOVER"
"""The environment variable with the job."""

ROLES = ("relay-in", "relay-out", "udp-in", "udp-out", "namespace", "host", "init", "guard")

SILENT, BEGAN, DONE, BROKEN = range(4)
"""How far an attempt came; BROKEN is one that could not be made."""


def key(rule: Rule) -> str:
    """What a rule, or one way of it, is called in a job's `drop`."""
    return f"{rule.role}: {rule.call} {rule.condition()}".strip()


@dataclass(frozen=True)
class Job:
    """What the launcher is to do."""

    board: str  # the file behind the board
    role: str = ""  # which process is taken over; none
    attempts: tuple[
        str, ...
    ] = ()  # each in a process of its own: "row:NAME", or "native:N", "x32:N", "int80:N"
    action: str = ""  # what the process does when the board says go, instead of its work
    bare: bool = False  # without any step of lock-down
    drop: tuple[str, ...] = ()  # rules that the policies are to lack, each as `key` has it
    helper: str = ""  # a shared library for calls by another convention
    victim: int = 0  # a process that has nothing to do with hardsplice
    ports: dict[str, int] = field(
        default_factory=dict
    )  # of this role's namespace: "target", "other"
    abstract: str = ""  # the name of abstract sockets that somebody outside serves
    server: str = ""  # serve many containers, as programs of engines have it, with a socket there
    props: bool = False  # keep some descriptors that no process of hardsplice would have

    def dump(self) -> str:
        """For the environment."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls) -> Job:
        """From the environment."""
        return cls(**json.loads(os.environ[VARIABLE]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one attempt."""

    state: int
    status: int  # as wait(2) has it
    result: int  # of the call, negated errno included

    @property
    def signal(self) -> int:
        """The signal that ended the process; 0 for none."""
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0


class Board:
    """Shared memory: a flag to go, a text, and a slot for each attempt."""

    _TEXT = 4096  # bytes, and where the slots begin
    _SLOT = struct.Struct("=iiq")
    SIZE = _TEXT + 2048 * _SLOT.size

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR)
        self._memory = mmap.mmap(fd, self.SIZE)
        os.close(fd)

    @classmethod
    def make(cls, path: Path) -> Board:
        """A new one, which everybody can write."""
        path.write_bytes(bytes(cls.SIZE))
        path.chmod(0o666)
        return cls(str(path))

    @property
    def go(self) -> bool:
        return self._memory[0] == 1

    @go.setter
    def go(self, value: bool) -> None:
        self._memory[0] = int(value)

    @property
    def text(self) -> str:
        """What the process had to say; empty until it has said it."""
        length = struct.unpack_from("=H", self._memory, 2)[0]
        return self._memory[4 : 4 + length].decode(errors="replace")

    @text.setter
    def text(self, value: str) -> None:
        data = value.encode()[: self._TEXT - 4]
        self._memory[4 : 4 + len(data)] = data
        struct.pack_into("=H", self._memory, 2, len(data))

    def _at(self, index: int) -> int:
        return self._TEXT + index * self._SLOT.size

    def put(self, index: int, state: int, result: int = 0) -> None:
        """The attempt's own process tells."""
        struct.pack_into("=i", self._memory, self._at(index) + 4, state)
        struct.pack_into("=q", self._memory, self._at(index) + 8, result)

    def put_status(self, index: int, status: int) -> None:
        """Its parent tells."""
        struct.pack_into("=i", self._memory, self._at(index), status)

    def get(self, index: int) -> Outcome:
        """What is known of an attempt."""
        status, state, result = self._SLOT.unpack_from(self._memory, self._at(index))
        return Outcome(state, status, result)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
