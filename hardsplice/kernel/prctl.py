# SPDX-License-Identifier: GPL-2.0-or-later
"""What hardsplice uses of python-prctl: from there, or, where that is not installed, from
prctl_fallback.py. Every room takes it from here.

python-prctl has to be compiled, and not every distribution has it.
"""

from __future__ import annotations

try:
    from prctl import (
        SECBIT_KEEP_CAPS_LOCKED,
        SECBIT_NO_SETUID_FIXUP,
        SECBIT_NO_SETUID_FIXUP_LOCKED,
        SECBIT_NOROOT,
        SECBIT_NOROOT_LOCKED,
        cap_effective,
        cap_inheritable,
        cap_permitted,
        get_pdeathsig,
        set_child_subreaper,
        set_dumpable,
        set_name,
        set_no_new_privs,
        set_pdeathsig,
    )

    PROVIDER = "python-prctl"
except ImportError:  # not there, compiled for another Python, or without libcap
    from hardsplice.kernel.prctl_fallback import (
        SECBIT_KEEP_CAPS_LOCKED,
        SECBIT_NO_SETUID_FIXUP,
        SECBIT_NO_SETUID_FIXUP_LOCKED,
        SECBIT_NOROOT,
        SECBIT_NOROOT_LOCKED,
        cap_effective,
        cap_inheritable,
        cap_permitted,
        get_pdeathsig,
        set_child_subreaper,
        set_dumpable,
        set_name,
        set_no_new_privs,
        set_pdeathsig,
    )

    PROVIDER = "hardsplice itself"

__all__ = [
    "PROVIDER",
    "SECBIT_KEEP_CAPS_LOCKED",
    "SECBIT_NOROOT",
    "SECBIT_NOROOT_LOCKED",
    "SECBIT_NO_SETUID_FIXUP",
    "SECBIT_NO_SETUID_FIXUP_LOCKED",
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
