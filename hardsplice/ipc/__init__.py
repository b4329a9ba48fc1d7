# SPDX-License-Identifier: GPL-2.0-or-later
"""Communication between hardsplice's processes, and with a service manager: channels, messages, the
event loop, descriptor numbers, and how a child's end is noticed.
"""
