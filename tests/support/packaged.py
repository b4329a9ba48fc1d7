# SPDX-License-Identifier: GPL-2.0-or-later
"""What the packages of distributions install, as their recipes say."""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGING = Path(__file__).parents[2] / "packaging"


def engine_programs() -> set[str]:
    """The paths of what container engines start, in any package."""
    rules = (_PACKAGING / "debian/rules").read_text()
    debian = re.findall(r"^\t\$\(call engine_program,\w+,(\S+)\)$", rules, re.MULTILINE)
    spec = (_PACKAGING / "rpm/hardsplice.spec").read_text()
    fedora = re.findall(r"^engine_program \w+ (\S+)$", spec, re.MULTILINE)
    assert len(debian) == len(fedora) > 0
    return {f"/usr/{one}" for one in debian} | {f"/usr/libexec/{one}" for one in fedora}
