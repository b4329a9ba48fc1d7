# SPDX-License-Identifier: GPL-2.0-or-later
"""COMMAND: its namespaces, PID 1 and the guard, its IDs, its terminal, its environment."""
