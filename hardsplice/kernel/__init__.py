# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel offers and Python's standard library doesn't: system calls, sockets and their
options, and the contents of /proc. Nothing here knows what hardsplice is for.
"""
