# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of the whole house: errors as people read them, port specifications, directions,
address families, identities. Values and decisions; no input or output.
"""
