# SPDX-License-Identifier: GPL-2.0-or-later
"""Where dist/hardsplice.pyz starts (tools/zipapp.py): a zip archive that Python runs.

Under a name that begins with hardsplicectl, a link for example, it is that program. Any Python may
come here, so this file is as old ones understand it.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "hardsplice: cannot use this Python: it is %d.%d\n" % sys.version_info[:2]  # noqa: UP031
        + "hardsplice: run the file with Python 3.11 or newer: python3.11 hardsplice.pyz"
    )

from hardsplice import isolated

if isolated.has_begun():
    isolated.run()
elif sys.argv[0].rpartition("/")[2].startswith("hardsplicectl"):
    from hardsplice.ctl.__main__ import main as hardsplicectl

    sys.exit(hardsplicectl())
else:
    from hardsplice.__main__ import main as hardsplice

    sys.exit(hardsplice())
