# SPDX-License-Identifier: GPL-2.0-or-later
"""Front-ends: hardsplice under the names of programs that container engines start, in those
programs' dialects. Each translates what it is asked for into Options, or into an offer to a server
that several of them share (offers.py).
"""
