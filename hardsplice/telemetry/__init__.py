# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be seen from outside: counters, the flow table, the log, the audit."""
