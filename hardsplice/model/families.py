# SPDX-License-Identifier: GPL-2.0-or-later
"""The address families of TCP, and their numbers in everything that is kept by family. Pure."""

from __future__ import annotations

import socket

FAMILIES = (socket.AF_INET, socket.AF_INET6)


IPV4, IPV6 = ALL_FAMILIES = (0, 1)  # indexes into FAMILIES, and into every list kept by family
