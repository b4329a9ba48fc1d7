# SPDX-License-Identifier: GPL-2.0-or-later
"""Which release of a distribution the tests run on."""

from __future__ import annotations

import platform


def is_debian_12() -> bool:
    """Whether other programs are of the versions that the pages compare hardsplice with."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return False
    return (release.get("ID"), release.get("VERSION_ID")) == ("debian", "12")
