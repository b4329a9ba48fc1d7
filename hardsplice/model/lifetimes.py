# SPDX-License-Identifier: GPL-2.0-or-later
"""How long flows of datagrams live, which have no end of their own, and how many there may be.
Pure.
"""

from __future__ import annotations

from hardsplice.kernel.record import NamedTuple


class Lifetimes(NamedTuple):
    """The bounds of one relay's flows."""

    unanswered: int  # seconds since the last datagram, while the target has sent none
    answered: int  # the same once it has
    flows: int  # at the most
