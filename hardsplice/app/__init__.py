# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice itself: its options, the stages of its start, the configuration of its processes."""
