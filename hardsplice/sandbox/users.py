# SPDX-License-Identifier: GPL-2.0-or-later
"""The user that hardsplice's own processes run as, and that COMMAND is outside of its user
namespace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd

from hardsplice.kernel import ids, linux, prctl
from hardsplice.model.errors import HardspliceError
from hardsplice.model.identity import OWN, RunAs

NOBODY = RunAs(65534, 65534)
ROOT_HINT = "COMMAND is root of the host with --netns-only; --runas USER names another user"


# IDs that no user has: above those that directories of users are known to use, and below those that
# systemd reserves (its UIDS-GIDS.md).
_MADE_UP_FIRST, _MADE_UP_BITS = 0x7800_0000, 26


def _made_up() -> RunAs:
    number = _MADE_UP_FIRST + int.from_bytes(os.urandom(4)) % (1 << _MADE_UP_BITS)
    return RunAs(number, number)


def own_user(asked: RunAs | None) -> RunAs | None:
    """The user that hardsplice's own processes become: the one in the options, or nobody if started
    as real root that may change its user.
    """
    if asked is None:
        return NOBODY if ids.is_real_root() and may_change() else None
    if asked == OWN:
        asked = _made_up()
        asked = asked if is_mapped(asked) else NOBODY
    if (asked.uid, asked.gid) == (os.geteuid(), os.getegid()):
        return asked
    if os.geteuid() == 0 and not may_change():
        hint = "leave --runas out; a container gets both by --cap-add SETUID --cap-add SETGID"
        reason = "root has no CAP_SETUID or no CAP_SETGID here"
        raise HardspliceError("become", f"user {asked.uid}", reason, hint)
    if os.geteuid() not in (0, asked.uid):
        hint = "leave --runas out, or start hardsplice as root"
        raise HardspliceError("become", f"user {asked.uid}", "only root may", hint)
    if not is_mapped(asked):
        raise HardspliceError("become", f"user {asked.uid}", "this user namespace does not map it")
    return asked


def may_change() -> bool:
    """Whether this process may become another user."""
    return bool(prctl.cap_effective.setuid and prctl.cap_effective.setgid)


def keeps_root(user: RunAs | None) -> bool:
    """Whether COMMAND is to be root of the machine, with all of root's files."""
    return user is not None and user.uid == 0 and ids.is_real_root()


def hint(user: RunAs) -> str:
    """What to do where COMMAND needs what belongs to root."""
    return f"COMMAND is user {user.uid} here; --runas USER names another, --runas 0 keeps root"


def leave_what_is_the_callers(user: RunAs) -> None:
    """Before this process becomes another user: drop its supplementary groups and the keys of its
    session, which don't depend on its user ID.
    """
    # Where groups can't be dropped, in a user namespace that denies that, they are no root's.
    with contextlib.suppress(PermissionError):
        os.setgroups([])
    if user.uid == os.geteuid():
        return
    try:
        linux.join_session_keyring()
    except OSError as error:  # EPERM: some containers' filters, for all of keyctl(2)
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise


def name_of(uid: int) -> str | None:
    """The login of a user who has one."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def is_mapped(user: RunAs) -> bool:
    """Whether this user namespace maps both IDs."""
    for path, wanted in (("/proc/self/uid_map", user.uid), ("/proc/self/gid_map", user.gid)):
        with open(path, encoding="ascii") as lines:
            ranges = [tuple(map(int, line.split())) for line in lines]
        if not any(first <= wanted < first + count for first, _, count in ranges):
            return False
    return True
