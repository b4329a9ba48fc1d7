# SPDX-License-Identifier: GPL-2.0-or-later
"""UDP: what the datagram relay does between its sockets. It is imported only where a UDP port is
named or may come.
"""
