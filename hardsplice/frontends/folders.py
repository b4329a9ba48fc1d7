# SPDX-License-Identifier: GPL-2.0-or-later
"""Where programs of this room keep what lasts until the next boot: in a folder below /run, or below
the user's own folder there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from hardsplice.kernel import ids
from hardsplice.model.errors import HardspliceError, reason_of

RUN = "/run"


def runtime_folder(environment: Mapping[str, str], id_map: str, *, is_real_root: bool) -> str:
    """The folder in which programs of one user keep what lasts until the next boot.

    ``id_map`` is our uid_map(5): engines start programs as root of a user namespace and some of
    them without any variable.
    """
    if is_real_root:
        return RUN
    given = environment.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/"):
        return given
    return f"{RUN}/user/{_outside(id_map)}"


def _outside(id_map: str) -> int:
    """Who outside of the user namespace its root is, or else our own user ID."""
    for line in id_map.splitlines():
        inside, outside, _ = map(int, line.split())
        if inside == 0 and outside != 0:
            return outside
    return os.geteuid()


def make(*names: str) -> str:
    """The folder to which ``names`` lead, which is made; HardspliceError where it can't be."""
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        id_map = lines.read()
    folder = runtime_folder(os.environ, id_map, is_real_root=ids.is_real_root())
    hint = None
    if folder != RUN:
        hint = "XDG_RUNTIME_DIR names a user's folder for such things"
    # Units keep other users' sockets in the first one.
    modes = {"hardsplice": 0o755 if folder == RUN else 0o700}
    for name in ("hardsplice", *names):
        folder = f"{folder}/{name}"
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, modes.get(name, 0o700))
        except OSError as error:
            reason = reason_of(error)
            raise HardspliceError("make", f"folder {folder}", reason, hint) from error
    return folder
