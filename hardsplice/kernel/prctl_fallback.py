# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of python-prctl that hardsplice uses, by the same names, for where that isn't installed.

Functions raise OSError. The numbers are linux/securebits.h's and linux/capability.h's, the same on
every architecture.
"""

from __future__ import annotations

from hardsplice.kernel import linux
from hardsplice.kernel.hints import Final
from hardsplice.kernel.linux import get_pdeathsig, set_name

__all__ = [
    "Capabilities",
    "cap_effective",
    "cap_inheritable",
    "cap_permitted",
    "get_pdeathsig",
    "set_child_subreaper",
    "set_dumpable",
    "set_name",
    "set_no_new_privs",
    "set_pdeathsig",
]

SECBIT_NOROOT: Final = 1 << 0
SECBIT_NOROOT_LOCKED: Final = 1 << 1
SECBIT_NO_SETUID_FIXUP: Final = 1 << 2
SECBIT_NO_SETUID_FIXUP_LOCKED: Final = 1 << 3
SECBIT_KEEP_CAPS_LOCKED: Final = 1 << 5

_SETGID, _SETUID, _SYS_PTRACE, _SYS_ADMIN, _SETFCAP = 6, 7, 19, 21, 31


def set_pdeathsig(signal: int) -> None:
    """Have the end of the parent send this signal; 0 for none."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal)


def set_dumpable(value: int) -> None:
    """Permit core dumps and being traced by others of this user (1), or refuse both (0)."""
    linux.prctl(linux.PR_SET_DUMPABLE, value)


def set_no_new_privs(value: int) -> None:
    """Gain no privileges by exec (1); that can't be undone."""
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, value)


def set_child_subreaper(value: int) -> None:
    """Become the parent of descendants that lose theirs (1), or no longer (0)."""
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, value)


class Capabilities:
    """One of this thread's sets of capabilities."""

    def __init__(self, place: int) -> None:
        """``place`` is the set's in capget(2)."""
        self._place = place

    def _has(self, capability: int) -> bool:
        return bool(linux.capget()[self._place] >> capability & 1)

    @property
    def setgid(self) -> bool:
        """Whether CAP_SETGID is in it; the others likewise."""
        return self._has(_SETGID)

    @property
    def setuid(self) -> bool:
        return self._has(_SETUID)

    @property
    def sys_ptrace(self) -> bool:
        return self._has(_SYS_PTRACE)

    @property
    def sys_admin(self) -> bool:
        return self._has(_SYS_ADMIN)

    @property
    def setfcap(self) -> bool:
        return self._has(_SETFCAP)

    def limit(self, *kept: int) -> None:
        """Drop all capabilities but these, by their numbers; none is added."""
        sets = list(linux.capget())
        sets[self._place] &= sum(1 << one for one in set(kept))
        linux.capset(*sets)


cap_effective, cap_permitted, cap_inheritable = (Capabilities(place) for place in range(3))
