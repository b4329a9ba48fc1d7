# SPDX-License-Identifier: GPL-2.0-or-later
"""A listening socket as a relay has it, and where its connections go."""

from __future__ import annotations

from dataclasses import dataclass

from hardsplice.sandbox.address_book import Pointer


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket and where its connections go.

    A plan lists targets in the order to try. A dual-stack listener has one for clients of each
    family; for a listener of one family both are the same.
    """

    fd: int
    plan_ipv4: tuple[Pointer, ...]
    plan_ipv6: tuple[Pointer, ...]
    index: int  # the monitor's number for it
