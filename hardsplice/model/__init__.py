# SPDX-License-Identifier: GPL-2.0-or-later
"""The values that all of hardsplice uses: errors as they are displayed, port specifications,
directions, address families, identities. Values and decisions, no I/O.
"""
