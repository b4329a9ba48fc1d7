# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay: the process that accepts, connects and moves bytes, and can do nothing else.

main.py     a relay's life, from the fork to its own filter to the loop
orders.py   listeners that its monitor adds and removes at run time
pools.py    the pool of sockets that the monitor opened in advance
targets.py  connecting to a target of the address book, and what it means where that fails
flow_rows.py
            rows of the flow table, of either protocol
tcp/        rules.py      what a flow may do next: tables and small functions, without I/O
            flows.py, moving.py, connecting.py, accepting.py, engine.py
                          the engine in five layers, each above the one before: flows and their
                          ends; moving bytes; connecting to targets; accepting; waiting
            pipes.py      the pool of clean pipes that flows borrow
            flow_writer.py, heuristics.py
                          rows of the flow table; guesses that save calls
            seam.py       each call that the engine makes, so that a test can replace the kernel
udp/        rules.py      which datagrams go out together, and what an errno means, without I/O
            table.py      flows, and when they are over, without I/O
            sending.py, opening.py, answering.py, engine.py
                          the engine in four layers: sending to targets; new flows; receiving, and
                          answering clients; waiting
            flow_writer.py, seam.py
                          as in tcp/
"""
