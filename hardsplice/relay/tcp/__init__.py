# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay's TCP: rules, flows, the engine that carries them out, and its seam with the kernel."""
