# SPDX-License-Identifier: GPL-2.0-or-later
"""The page that --help shows."""

from __future__ import annotations

from hardsplice.kernel.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hardsplice.cli.parsing import Option

_USAGE = """\
usage: hardsplice [OPTION]... [COMMAND [ARG]...]
       hardsplice [OPTION]... PID
       hardsplice [OPTION]... --netns PATH|NAME [--userns PATH]"""

_DESCRIPTION = """\
Forward TCP and UDP ports between a network namespace and the host. The
namespace is a new one, in which COMMAND (by default the shell) runs, or an
existing one."""

_EPILOG = """\
SPEC is none (the default), all, auto (what the other side listens on), or ports
and ~exclusions; a listening address may precede them, a target may follow each:
  8080  80,443  8000-8009  8080:80  127.0.0.1/22  5432:10.0.0.5/5433  all,~22
Port 0, with a target, is a free one: -t 0:80 reports which.
-t inherit:NAME:PORT uses the listener NAME that a service manager passes.

Examples:
  hardsplice -t 8080:80 -- ./server        its port 80 is the host's 8080
  hardsplice -T 5432 -- ./client           the host's port 5432 is its own
  hardsplice -t 127.0.0.1/2222:22 1234     for process 1234, in the background
  hardsplice -f -t 80 --netns blue         for /run/netns/blue

The manual is hardsplice(1).
"""


def page(sections: Mapping[str, Sequence[Option]]) -> str:
    """All of it, with a line for each option."""
    lines = [_USAGE, "", _DESCRIPTION]
    for section, options in sections.items():
        lines += ["", f"{section}:"]
        for option in options:
            left = "  " + ", ".join(option.names) + f" {option.value}".rstrip()
            lines.append(f"{left:<28}  {option.help}")
    return "\n".join([*lines, "", _EPILOG])
