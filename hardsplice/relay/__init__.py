# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay: the process that accepts, connects and moves bytes, and can do nothing else.

flow.py     what a connection may do next: tables and small functions, no input or output
table.py, moving.py, connecting.py, engine.py
            the engine in four layers, which does what flow.py says: the flows and their ends;
            moving bytes; reaching targets; waiting and accepting
pipes.py    the pool of clean pipes that flows borrow
sockets.py  the pool of sockets that the monitor opened in advance
kernel.py   the seam: each call that the engine makes, so that a test can stand in for the kernel
stats.py    counters in memory shared with the monitor
main.py     a relay's life, from the fork to its own filter to the loop
"""
