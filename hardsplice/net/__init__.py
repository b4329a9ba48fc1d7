# SPDX-License-Identifier: GPL-2.0-or-later
"""Network namespaces and what is in them: finding and joining them, listeners, inherited sockets,
the kernel's own tables.
"""
