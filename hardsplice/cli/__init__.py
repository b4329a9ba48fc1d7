# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command lines of hardsplice, hardsplicectl and the policy tool share."""
