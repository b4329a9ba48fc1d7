# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay: the process that accepts, connects and moves bytes, and can do nothing else.

flow.py     what a connection may do next: tables and small functions, no input or output
pipes.py    the pool of clean pipes that flows borrow
sockets.py  the pool of sockets that the monitor opened in advance
kernel.py   the seam: each call that the engine makes, so that a test can stand in for the kernel
engine.py   the loop that does what flow.py says
stats.py    counters in memory shared with the monitor
"""
