# SPDX-License-Identifier: GPL-2.0-or-later
"""The address book: pointers that a filter can check.

The address to connect to is behind a pointer, so a filter can't see it. The targets therefore lie
in memory whose content is known: it is at the same low address in every process, shared and
read-only; only the host monitor has a writable view of it, and that only where ports may change at
run time. The filters allow connect(2) with a pointer to the beginning of a slot there, and no call
that would remove or replace that memory: munmap, mremap and mprotect only above it, mmap never at a
fixed address (policy/relay.toml, policy/runtime.toml). So a process that was taken over can connect
to the targets and nowhere else; AF_UNSPEC, by which an accepted socket would become a fresh one of
the client's namespace, isn't in the book either. This needs no Landlock, and works on every kernel
from 5.1 on. mseal(2) protects the mapping as well, where the kernel has it (6.10).

Each direction has its own book, so that no process sees the targets of the other. In front of the
slots lie the values of socket options and the address of the next listener, for the same reason
(kernel/pinned.py).

An unused slot holds an address family that doesn't exist. A slot that was given up is reused as
late as possible; and a relay compares the address that it is about to connect to with the one that
it was given (relay/tcp/seam.py), so that a flow that waited meanwhile doesn't end up somewhere
else.
"""

from __future__ import annotations

import collections
import ctypes
import errno
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Iterable

from hardsplice.kernel import linux, pinned, socketcalls
from hardsplice.kernel.files import any_size
from hardsplice.kernel.record import NamedTuple
from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.model.errors import HardspliceError, reason_of

SEALED = "seal the address book's mappings (Linux 6.10)"
SLOT = 32  # bytes: a struct sockaddr_in6 fits
TARGETS_A_PORT = 2  # at the most: the loopback addresses of both families
NO_ADDRESS = b"\xff\xff" * 16  # a family that doesn't exist: never zeros, AF_UNSPEC
VALUES_SIZE = pinned.SIZE
_WRITTEN = pinned.FIRST_WRITTEN * pinned.PIECE  # where in the file the view begins
_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h, Linux 5.1


class Area(NamedTuple):
    """Where a book's slots are, in bytes. The size is a power of two that divides the address. All
    begins where pages of any size may (64 KiB).
    """

    address: int
    size: int

    @property
    def values(self) -> int:
        """Where the values are."""
        return self.address - VALUES_SIZE

    @property
    def words(self) -> dict[str, int]:
        """The words that policies use for it, and for what is in front of it."""
        numbered = self.size - SLOT  # the bits that number the slots
        return {
            "BOOK": self.address,
            "BOOK_SLOTS": (1 << 64) - 1 - numbered,
            "BOOK_END": self.address + self.size,
            **{name: self.values + offset for name, offset in pinned.PINNED.items()},
        }


# Nothing else may ever need a book's memory, and mappings that come and go have to lie above it.
# The kernel maps from the top of a process's memory down, or, where its stack has no limit, from a
# third or a quarter of it up: in 32 bits from 1 GiB on. Low are only the program, if it isn't
# position independent, and behind it its heap, which begins up to 1 GiB later (in 32 bits 32 MiB;
# arch_randomize_brk) and grows. So there is room in front of the program, on most architectures,
# and behind where a heap may begin.
USUAL = Area(0x200000, 0x200000)
# With slots for two targets of each of 65,535 ports, which is more than the usual one has.
LARGE = Area(0x70000000, 0x400000)
LARGE_32 = Area(0x3FC00000, 0x400000)
AREAS = (USUAL, LARGE, LARGE_32)
# Where a program begins at 64 KiB; elsewhere it is 4 MiB or more (ld/emulparams of binutils).
_LOW_PROGRAMS = ("armhf", "riscv64")


def area_for(targets: int, arch: str) -> Area:
    """Where books are that have room for so many targets, on an architecture."""
    if targets <= USUAL.size // SLOT and arch not in _LOW_PROGRAMS:
        return USUAL
    return LARGE if ARCHITECTURES[arch].bits == 64 else LARGE_32


class Book:
    """The targets of one direction. Made by the host monitor before the processes that use it."""

    def __init__(
        self, area: Area, targets: Iterable[bytes], late: int, *, is_written: bool
    ) -> None:
        """``targets`` are struct sockaddr; so many ``late`` ones may come at run time.
        ``is_written`` says that this process will write in it; else no process can any more.
        HardspliceError where the kernel can't seal memory like that.
        """
        self.area = area
        self._slots: dict[bytes, int] = {}
        self._uses: dict[bytes, int] = {}
        uses = collections.Counter(targets)
        number = len(uses) + late
        if number * SLOT > area.size:
            reason = f"there is room for {area.size // SLOT} addresses"
            raise HardspliceError(
                "write down", f"{number} targets", reason, "forward fewer ports, or -4"
            )
        size = -(-(VALUES_SIZE + max(number, 1) * SLOT) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._free = deque(range((size - VALUES_SIZE) // SLOT))
        self.fd = os.memfd_create("targets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        slots = bytearray(NO_ADDRESS * len(self._free))
        for sockaddr, times in uses.items():
            slot = self._take(sockaddr)
            self._uses[sockaddr] = times
            slots[slot * SLOT : slot * SLOT + len(sockaddr)] = sockaddr
        try:
            with any_size():
                os.ftruncate(self.fd, size)
                for at, value in pinned.initial_values():
                    piece, offset = divmod(at, pinned.PIECE)
                    os.pwrite(self.fd, value, pinned.IN_FILE[piece] * pinned.PIECE + offset)
                os.pwrite(self.fd, slots, VALUES_SIZE)
            self.view = self._writable(size) if is_written else None
            self._seal(written=self.view is not None)
        except OSError as error:
            hint = None
            if error.errno == errno.EINVAL:
                hint = "sealed memory that one process can write takes Linux 5.1"
            raise HardspliceError("make", "the address book", reason_of(error), hint) from error

    def _writable(self, size: int) -> int:
        """The one view that can be written, of what may be written (kernel/pinned.py). No process
        that is forked from now on inherits it.
        """
        size -= _WRITTEN
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        view = linux.map_shared(self.fd, size, protection, offset=_WRITTEN)
        linux.madvise(view, size, linux.MADV_DONTFORK)
        return view

    @property
    def written(self) -> pinned.Written | None:
        """Where this process can write the address of the next listener."""
        return None if self.view is None else pinned.Written(self.view, self.view + pinned.PIECE)

    def _seal(self, *, written: bool) -> None:
        last = _F_SEAL_FUTURE_WRITE if written else fcntl.F_SEAL_WRITE
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | last
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)

    # --- in the process that uses it ------------------------------------------------------------

    def open(self) -> str | None:
        """Map it where this process's filter expects it. This can be done once, and not be undone.
        Returns why the mapping isn't sealed as well, if it isn't.
        """
        read, area = mmap.PROT_READ, self.area
        try:
            for number, piece in enumerate(pinned.IN_FILE):
                at, offset = area.values + number * pinned.PIECE, piece * pinned.PIECE
                linux.map_shared(self.fd, pinned.PIECE, read, address=at, offset=offset)
            # The whole area is taken, even if the file is smaller: other mappings could land there
            # otherwise.
            linux.map_shared(self.fd, area.size, read, address=area.address, offset=VALUES_SIZE)
        except OSError as error:
            what = f"the address book at {area.address:#x}"
            raise HardspliceError("map", what, reason_of(error), _hint(error)) from error
        global _seen
        _seen = memoryview((ctypes.c_char * area.size).from_address(area.address)).cast("B")
        try:
            linux.mseal(area.values, VALUES_SIZE)
            linux.mseal(area.address, area.size)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
                raise
            # Programs that start no process have no use for it; where there is one, it is imported.
            from hardsplice.sandbox import landlock

            return landlock.FORBIDDEN if error.errno == errno.EPERM else landlock.lacked()
        return None

    def pin(self, *, is_writer: bool) -> None:
        """Take the values of socket options from it, from now on. ``is_writer`` says that this is
        the process that made it.
        """
        pinned.pin(self.area.values, self.written if is_writer else None)

    def close(self) -> None:
        """Close the file; mappings stay."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # --- what it holds --------------------------------------------------------------------------

    def slot(self, sockaddr: bytes) -> int:
        """The number of the slot of a target that is in it; KeyError when it isn't."""
        return self._slots[sockaddr]

    def add(self, sockaddr: bytes) -> int:
        """Write a target down, at run time, if it isn't there already: its slot. HardspliceError
        when the book is full. Each ``add`` takes a ``remove``.
        """
        if sockaddr not in self._slots:
            if not self._free:
                reason = "the address book is full"
                raise HardspliceError(
                    "forward", "one more port", reason, "remove others, or restart"
                )
            self._write(self._take(sockaddr), sockaddr.ljust(SLOT, b"\0"))
        else:
            self._uses[sockaddr] += 1
        return self._slots[sockaddr]

    def remove(self, sockaddr: bytes) -> None:
        """Take a target out, once it is no longer needed."""
        self._uses[sockaddr] -= 1
        if self._uses[sockaddr] == 0:
            del self._uses[sockaddr]
            slot = self._slots.pop(sockaddr)
            self._write(slot, NO_ADDRESS)
            self._free.append(slot)

    def _take(self, sockaddr: bytes) -> int:
        self._uses[sockaddr] = 1
        slot = self._slots[sockaddr] = self._free.popleft()
        return slot

    def _write(self, slot: int, content: bytes) -> None:
        assert self.view is not None
        # The family last, and first when it goes: a reader sees a whole address or none.
        at = self.view + VALUES_SIZE - _WRITTEN + slot * SLOT
        ctypes.memmove(at, NO_ADDRESS[:2], 2)
        ctypes.memmove(at + 2, content[2:], SLOT - 2)
        ctypes.memmove(at, content[:2], 2)


def _hint(error: OSError) -> str | None:
    taken = "something of this interpreter's is there: use one that is position independent"
    return taken if error.errno == errno.EEXIST else None


_seen: memoryview | None = None  # the slots, as this process sees them


class Pointer:
    """A target as a relay connects to it: where it lies, and what must be there."""

    __slots__ = ("_at", "family", "length", "may_vanish", "slot", "sockaddr", "where")

    def __init__(self, area: Area, slot: int, family: int, sockaddr: bytes) -> None:
        """``slot`` is the number of its slot, ``family`` an index into model.families.FAMILIES."""
        self._at = slot * SLOT
        self.slot = slot
        self.family = family
        self.sockaddr = sockaddr
        self.length = len(sockaddr)
        self.where = ctypes.c_void_p(area.address + self._at)
        # Whether it is another machine, which can vanish without a packet.
        self.may_vanish = not socketcalls.is_loopback(sockaddr)

    def holds(self) -> bool:
        """Whether the target is still there, in a process that has opened the book."""
        assert _seen is not None
        return _seen[self._at : self._at + self.length] == self.sockaddr

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pointer):
            return NotImplemented
        return (self.where.value, self.sockaddr) == (other.where.value, other.sockaddr)

    def __hash__(self) -> int:
        return hash((self.where.value, self.sockaddr))
