# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark: hardsplice and its peers side by side, in one run, under the same conditions."""
