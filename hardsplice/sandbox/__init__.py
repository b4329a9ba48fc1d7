# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process gives up, and how: the steps of the lock-down, Landlock, seccomp, the address
book.
"""
