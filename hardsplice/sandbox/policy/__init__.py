# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy files: their form, what they mean on an architecture, and how they are displayed."""
