# SPDX-License-Identifier: GPL-2.0-or-later
"""libseccomp, through whichever of its two bindings for Python is installed.

pyseccomp comes first: it is what pip installs. libseccomp's own, the module ``seccomp``, is what
distributions have. Both have the same classes and constants; where they differ, it is given
pyseccomp's ways here. Filters come out the same, byte for byte.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import types
from collections.abc import Callable
from functools import cache

from hardsplice.kernel.hints import Any
from hardsplice.model.errors import HardspliceError
from hardsplice.model.unforeseen import as_error, next_step

__all__ = ["LibraryBinding", "load"]

_LIBRARY = "libseccomp.so.2"
_NO_LIBRARY = "install libseccomp (Debian and Ubuntu: libseccomp2)"
_BY_DISTRIBUTION = (
    "apt install python3-seccomp, dnf install python3-libseccomp, or apk add py3-libseccomp"
)
# seccomp.h's numbers for calls that are sub-calls of another one on some architectures: -101 and
# below for those of socketcall(2), in its order, and -201 and below for those of ipc(2), by its
# numbers.
_SOCKETCALL = """
    socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom
    shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg
""".split()  # noqa: SIM905 - a table of words, not code
_IPC = {
    "semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13,
    "msgctl": 14, "shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24,
}  # fmt: skip
_SUB_CALLS = {
    **{name: ("socketcall", -101 - place) for place, name in enumerate(_SOCKETCALL)},
    **{name: ("ipc", -200 - number) for name, number in _IPC.items()},
}


@cache
def load() -> Any:
    """The binding, with pyseccomp's interface; HardspliceError where there is none, or none that
    works. Its ``__name__`` says which it is.
    """
    failed = None
    for find in (_pyseccomp, _own):
        try:
            if found := find():
                return found
        except (ImportError, OSError) as error:
            failed = failed or _error(error)
    reason = "neither of these bindings of libseccomp is installed"
    raise failed or HardspliceError("import", "pyseccomp or seccomp", reason, _how_to_install())


def _error(error: ImportError | OSError) -> HardspliceError:
    if next_step(error) is not None:
        return as_error(error, "load", _LIBRARY)
    if _LIBRARY in str(error):
        return HardspliceError("load", _LIBRARY, str(error), _NO_LIBRARY)
    return HardspliceError("import", "a binding of libseccomp", str(error), _how_to_install())


def _how_to_install() -> str:
    """How this Python gets a binding. An isolated interpreter doesn't tell by itself that it is a
    virtual environment's: site does.
    """
    environment = os.path.dirname(os.path.dirname(sys.executable))
    if os.path.exists(os.path.join(environment, "pipx_metadata.json")):
        how = f"pipx inject {os.path.basename(environment)} pyseccomp"
    elif sys.prefix == "/usr" and not os.path.exists(os.path.join(environment, "pyvenv.cfg")):
        how = _BY_DISTRIBUTION
    else:
        how = f"{sys.executable} -m pip install pyseccomp"
    return f"install one of them: {how}"


def _pyseccomp() -> Any:
    """pyseccomp, imported without its search for libraries; None where it isn't installed.

    pyseccomp asks ctypes.util.find_library for libc and libseccomp while it is imported, which runs
    `ldconfig -p`, and failing that a compiler. There is no need: libc is part of this process, and
    libseccomp's name is its ABI's. So for the length of the import a module with those two answers
    stands in for ctypes.util, and no process is started.
    """
    import ctypes

    stand_in = types.ModuleType("ctypes.util")
    vars(stand_in)["find_library"] = {"c": None, "seccomp": _LIBRARY}.get
    module, attribute = sys.modules.get("ctypes.util"), vars(ctypes).get("util")
    sys.modules["ctypes.util"] = vars(ctypes)["util"] = stand_in
    try:
        import pyseccomp
    except ModuleNotFoundError:
        return None
    finally:
        del sys.modules["ctypes.util"], vars(ctypes)["util"]
        if module is not None:
            sys.modules["ctypes.util"] = module
        if attribute is not None:
            vars(ctypes)["util"] = attribute
    return pyseccomp


def _own() -> Any:
    """libseccomp's own binding; None where it isn't installed. ImportError where
    something else has its name.

    It is linked with libseccomp, which the dynamic loader finds.
    """
    try:
        import seccomp
    except ModuleNotFoundError:
        return None
    if not hasattr(seccomp, "SyscallFilter"):
        raise ImportError("the module seccomp that is installed is not libseccomp's")
    return LibraryBinding(seccomp)


class LibraryBinding:
    """libseccomp's own binding, as if it were pyseccomp."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def SyscallFilter(self, action: int) -> _Filter:  # noqa: N802 - pyseccomp's name
        """A filter without rules, whose answer is ``action``."""
        return _Filter(_with_os_errors(self._module.SyscallFilter)(action))

    def resolve_syscall(self, arch: int, name: str) -> int:
        """A call's number, negative where it has none of its own.

        Where a call is a sub-call of another one, as send(2) of socketcall(2), this binding gives
        the number of that one. A rule for it would permit all of its sub-calls.
        """
        number: int = self._module.resolve_syscall(arch, name)
        outer, stand_in = _SUB_CALLS.get(name, ("", 0))
        if outer and number == self._module.resolve_syscall(arch, outer) and number >= 0:
            return stand_in
        return number


class _Filter:
    """A filter of that binding, whose methods raise OSError."""

    def __init__(self, rules: Any) -> None:
        self._rules = rules

    def __getattr__(self, name: str) -> Any:
        return _with_os_errors(getattr(self._rules, name))


def _with_os_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The binding raises RuntimeError("Library error (errno = -22)"), and ValueError("Invalid
    attribute") and the like for EINVAL.
    """

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (RuntimeError, ValueError) as error:
            found = re.search(r"errno = -(\d+)", str(error))
            code = int(found[1]) if found else errno.EINVAL
            raise OSError(code, os.strerror(code)) from None

    return call
