# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice: a hardened TCP and UDP port forwarder between a network namespace and the host."""

__version__ = "0.2.0"
