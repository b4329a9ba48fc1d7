# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors that no rule foresees, in the form that all have, and in the system's words; and the next
step where it is a limit that was met, whatever met it.
"""

from __future__ import annotations

import errno
import os
import resource

from hardsplice.model.errors import HardspliceError, reason_of

_PROCESSES = "its user or cgroup has too many processes: see ulimit -u, and TasksMax= of a unit"


def _of_memory() -> str | None:
    for limit, letter in ((resource.RLIMIT_AS, "v"), (resource.RLIMIT_DATA, "d")):
        if resource.getrlimit(limit)[0] != resource.RLIM_INFINITY:
            return f"its memory is limited: raise the limit with ulimit -{letter}"
    return None


# Worked out now: a process that is locked down may not ask for its limits.
_HINTS = {
    errno.EMFILE: "raise the limit with ulimit -n",
    errno.ENFILE: "the whole system has too many open: see the sysctl fs.file-max",
    errno.EFBIG: "raise the limit with ulimit -f",
    errno.EAGAIN: _PROCESSES,
    errno.ENOMEM: _of_memory(),
}
LIMIT_HINTS = frozenset(hint for hint in _HINTS.values() if hint is not None)


def next_step(error: BaseException | None) -> str | None:
    """What to do about an error that says that there is too little of something."""
    code = errno_of(error)
    return None if code is None else _HINTS.get(code)


def errno_of(error: BaseException | None) -> int | None:
    """The number of an error of the system's, or of one that comes of it."""
    if isinstance(error, MemoryError) or _is_lost(error):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    return _of_loader(str(error)) if isinstance(error, ImportError | OSError) else None


def _is_lost(error: BaseException | None) -> bool:
    """Whether the interpreter lost an exception on its way, or overlooked one for a while
    (_Py_CheckFunctionResult, Objects/call.c, and its like), as it may where there is no memory.
    """
    words = ("without", "with an exception set")
    if isinstance(error, SystemError):
        return any(word in str(error) for word in words)
    # Its parser goes on with what it had no memory for (Python/Python-ast.c).
    return isinstance(error, ValueError) and "is required for" in str(error)


def _of_loader(said: str) -> int | None:
    """What the dynamic loader lacked, from its words (dlerror(3)): it gives no number."""
    if os.strerror(errno.EMFILE) in said or f"Error {errno.EMFILE}" in said:
        return errno.EMFILE
    # elf/dl-load.c and its neighbours; musl's ldso/dynlink.c
    words = ("cannot map", "failed to map", "cannot create", "cannot allocate", "out of memory")
    return errno.ENOMEM if any(word in said for word in words) else None


def as_error(error: BaseException, verb: str, object: str) -> HardspliceError:  # noqa: A002 - as in HardspliceError
    """An error as it is told; ``verb`` and ``object`` are what was being done, for those that don't
    say so themselves.
    """
    if isinstance(error, HardspliceError):
        if error.hint is None:
            error.hint = next_step(error.__cause__)
        return error
    return HardspliceError(verb, object, _reason(error), next_step(error))


def _reason(error: BaseException) -> str:
    code = errno_of(error)
    if code in _HINTS:
        assert code is not None
        return os.strerror(code)
    where = _where(error)
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{reason_of(error)}{where}"
    if isinstance(error, ImportError):
        return str(error)
    return f"{type(error).__name__}{where}: {error}"


def kind_and_place(error: BaseException) -> str:
    """Type and place of an error, from what is loaded: traceback would open source files."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    code = trace.tb_frame.f_code
    return f"{type(error).__name__} in {code.co_name}, line {trace.tb_lineno}"


def _where(error: BaseException) -> str:
    """The place in the source: traceback would read files, which may be gone by now."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" in {trace.tb_frame.f_code.co_qualname}, line {trace.tb_lineno}" if trace else ""
