# SPDX-License-Identifier: GPL-2.0-or-later
"""Front-ends: hardsplice under the names of programs that container engines start, in those
programs' dialects. Each translates what it is asked for into Options (app/frontend.py).
"""
