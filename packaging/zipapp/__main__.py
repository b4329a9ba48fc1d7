# SPDX-License-Identifier: GPL-2.0-or-later
"""Where dist/hardsplice.pyz starts (tools/zipapp.py): a zip archive that Python runs.

Under a name that begins with another program's, a link for example, it is that program. Any Python
may come here, so this file is as old ones understand it.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "hardsplice: cannot use this Python: it is %d.%d\n" % sys.version_info[:2]  # noqa: UP031
        + "hardsplice: run the file with Python 3.11 or newer: python3.11 hardsplice.pyz"
    )

from hardsplice import isolated

# The functions of frontends/programs.py, and what names of theirs begin with: engines start some by
# a name of their own.
ENGINE_PROGRAMS = {
    "cni": ("hardsplice-cni",),
    "docker_proxy": ("hardsplice-docker-proxy", "docker-proxy"),
    "oci_hook": ("hardsplice-oci-hook",),
    "rootlessport": ("hardsplice-rootlessport", "rootlessport"),
}


def main() -> int:
    """Run the program that this file is called like; the exit status."""
    name = sys.argv[0].rpartition("/")[2]
    if name.startswith("hardsplicectl"):
        from hardsplice.ctl.__main__ import main as hardsplicectl

        return hardsplicectl()
    for function, names in ENGINE_PROGRAMS.items():
        if name.startswith(names):
            from hardsplice.frontends import programs

            return int(getattr(programs, function)())
    from hardsplice.__main__ import main as hardsplice

    return hardsplice()


if isolated.has_begun():
    isolated.run()
else:
    sys.exit(main())
