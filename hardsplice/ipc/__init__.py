# SPDX-License-Identifier: GPL-2.0-or-later
"""How hardsplice's processes, and its service manager, speak with each other: channels, the event
loop, the numbers of descriptors, and how a child's end is noticed.
"""
