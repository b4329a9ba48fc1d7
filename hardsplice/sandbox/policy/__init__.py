# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy files: their form, what they come to on an architecture, and how people read them."""
