# SPDX-License-Identifier: GPL-2.0-or-later
"""What a checkout needs beside the program: its set-up, and the demonstration."""
