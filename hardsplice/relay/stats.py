# SPDX-License-Identifier: GPL-2.0-or-later
"""Counters in anonymous shared memory: a relay writes them, its monitor reads them, and neither
asks the kernel.

The monitor makes the memory before it forks the relay, so the counts outlive a relay that died.
"""

from __future__ import annotations

import mmap

COUNTERS = (
    "accepted",  # connections taken from a listener
    "connected",  # of these, targets reached
    "closed",  # flows that ended with FIN both ways
    "reset",  # flows that ended by a reset of either side, passed on
    "refused",  # flows whose target refused; the client got a reset
    "timed_out",  # flows whose target did not answer in time
    "errors",  # flows ended by an error of our own
    "urgent",  # urgent bytes passed on
    "blocked",  # times a sink took less than was read
    "starved",  # times a direction waited for a pipe
    "paused",  # times accepting was suspended (no socket, or no descriptor to spare)
    "bytes_to_target",
    "bytes_to_client",
)
ACCEPTED, CONNECTED, CLOSED, RESET, REFUSED, TIMED_OUT, ERRORS, URGENT, BLOCKED, STARVED, PAUSED = (
    range(11)
)
BYTES = 11  # index of bytes_to_target; the other direction's follows


class Stats:
    """An array of 64-bit counters, shared with the processes forked after it was made."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * len(COUNTERS))
        self.count = memoryview(self._memory).cast("Q")

    def snapshot(self) -> dict[str, int]:
        """Every counter by name."""
        return dict(zip(COUNTERS, self.count, strict=True))
