# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests share: byte streams, namespaces, ways for a connection, readers of /proc."""
