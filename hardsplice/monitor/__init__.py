# SPDX-License-Identifier: GPL-2.0-or-later
"""The two monitors: they start and replace relays, give them listeners and sockets, and change
ports at run time.
"""
