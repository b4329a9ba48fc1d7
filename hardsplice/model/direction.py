# SPDX-License-Identifier: GPL-2.0-or-later
"""The two directions in which ports are forwarded. Pure."""

from __future__ import annotations

from typing import Literal

Direction = Literal["inbound", "outbound"]


DIRECTIONS: tuple[Direction, Direction] = ("inbound", "outbound")


PLACES: dict[Direction, str] = {"inbound": "on the host", "outbound": "in the namespace"}
