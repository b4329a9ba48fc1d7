# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl: a client of a running hardsplice's control socket. An ordinary program, without a
sandbox, that uses the standard library only.
"""
