# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel offers and Python's standard library doesn't: system calls, sockets, what they
are given, and what /proc says. It knows nothing of what hardsplice is for.
"""
