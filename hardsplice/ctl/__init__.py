# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl: asks a running hardsplice over its control socket. An ordinary program, in no
sandbox, of the standard library alone.
"""
