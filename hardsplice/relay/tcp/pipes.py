# SPDX-License-Identifier: GPL-2.0-or-later
"""The pool of pipes that flows borrow, and the probe for how large a pipe may be.

Pipes are leased, not owned: a direction that has passed on what it read holds no pipe, and the next
one uses the same pipe, still warm in the cache. Only a direction whose sink blocked keeps its pipe,
with the bytes in it. A pipe that isn't known to be empty never comes back: it would carry one
client's bytes into another's stream. It is closed, and a new one takes its place when one is
needed.
"""

from __future__ import annotations

from hardsplice.relay.tcp.seam import Kernel

MAX_PIPE_SIZE = 8 * 1024 * 1024  # bytes; what the probe starts from
MIN_PIPE_SIZE = 4096  # one page: no kernel gives less
POOL_SIZE = 32  # clean pipes kept ready


class Pipe:
    """One pipe: two descriptors, and its capacity in bytes and in slots, each for a segment."""

    __slots__ = ("read", "size", "slots", "write")

    def __init__(self, read: int, write: int, size: int, slots: int) -> None:
        self.read = read
        self.write = write
        self.size = size
        self.slots = slots


def probe_size(kernel: Kernel, count: int = POOL_SIZE) -> int:
    """The largest size, from MAX_PIPE_SIZE down by halves, that ``count`` pipes can have at once;
    in bytes.

    Where even small pipes can't be had in that number (few descriptors, or the user's allowance
    spent), the answer is MIN_PIPE_SIZE: pipes then keep their initial size. No pipe stays open.
    """
    opened: list[tuple[int, int]] = []
    try:
        for _ in range(count):
            opened.append(kernel.open_pipe())  # noqa: PERF401 - those before an error count
    except OSError:
        pass  # fewer pipes then share the probe: descriptors, not memory, are short
    try:
        size = MAX_PIPE_SIZE if opened else MIN_PIPE_SIZE
        while size > MIN_PIPE_SIZE:
            if all(kernel.resize_pipe(read, size) >= size for read, _ in opened):
                return size
            size //= 2
        return MIN_PIPE_SIZE
    finally:
        for pair in opened:
            for fd in pair:
                kernel.close(fd)


def size_of_next(opened: int, size: int, keep: int) -> int:
    """Bytes for one more pipe, where ``opened`` are open and a pool holds ``keep`` of ``size``.

    Pipes beyond the pool's own are wanted where many flows block at once. With all of them at
    1 MiB, 64 pipes would be an ordinary user's whole allowance, and the kernel would give the next
    ones a page or two; shrinking by steps, it lasts for 384 of them.
    """
    if opened < keep:
        return size
    for times, divisor in ((2, 4), (4, 8)):
        if opened < times * keep:
            return max(size // divisor, MIN_PIPE_SIZE)
    return max(size // 16, MIN_PIPE_SIZE)


class PipePool:
    """Clean pipes, last used first."""

    def __init__(self, kernel: Kernel, size: int, keep: int) -> None:
        self.kernel = kernel
        self.size = size  # bytes to ask for, for those that the pool keeps
        self.keep = keep  # clean pipes to hold on to
        self.spare: list[Pipe] = []
        self.open = 0  # open pipes, in the pool or on lease

    def fill(self) -> None:
        """Open pipes until there are ``keep``, or the kernel has no more."""
        while self.open < self.keep:
            pipe = self._new()
            if pipe is None:
                break
            self.spare.append(pipe)

    def take(self) -> Pipe | None:
        """An empty pipe; None when the kernel has no more: then wait for one to be given back."""
        return self.spare.pop() if self.spare else self._new()

    def give(self, pipe: Pipe) -> None:
        """Take back a pipe that is empty, known by count."""
        if len(self.spare) < self.keep:
            self.spare.append(pipe)
        else:
            self.discard(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a pipe that holds bytes, or may, or is one too many."""
        self.open -= 1
        self.kernel.close(pipe.read)
        self.kernel.close(pipe.write)

    def _new(self) -> Pipe | None:
        try:
            read, write = self.kernel.open_pipe()
        except OSError:
            return None
        wanted = size_of_next(self.open, self.size, self.keep)
        self.open += 1
        size = self.kernel.resize_pipe(read, wanted)
        return Pipe(read, write, size, size // self.kernel.page_size)
