# SPDX-License-Identifier: GPL-2.0-or-later
"""What the values of options may be: each function here makes of a text the value of an option, or
raises HardspliceError, which says what is wrong with it and what to write instead.
"""

from __future__ import annotations

import grp
import os
import pwd

from hardsplice.kernel.hints import TYPE_CHECKING, Literal, TypeVar
from hardsplice.model.errors import HardspliceError, quote
from hardsplice.model.identity import OWN, RunAs

if TYPE_CHECKING:
    from collections.abc import Callable

    from hardsplice.telemetry.log import LogFormat

__all__ = [
    "Audit",
    "RunAs",
    "Sandbox",
    "descriptor",
    "flows",
    "log_format",
    "netns",
    "number",
    "path",
    "runas",
    "sandbox",
    "size",
    "workers",
]

Sandbox = Literal["best-effort", "strict"]
Audit = Literal["table", "json"]

_Word = TypeVar("_Word", bound=str)
_SANDBOXES: tuple[Sandbox, ...] = ("best-effort", "strict")
_LOG_FORMATS: tuple[LogFormat, ...] = ("text", "json")
_LAST_ID = 2**32 - 2  # the last one, (uid_t)-1, means "leave as it is" to setresuid(2)
_LAST_FD = 2**31 - 1
WORKERS_MAX = 64
SECONDS_MAX = 86400
FLOWS_MAX = 1 << 20
_LOG_SIZE_MIN = 4096
_LOG_SIZE_LIMIT = 2**63  # off_t
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def path(option: str) -> Callable[[str], str]:
    """What checks the path that `option` is given: only that there is one."""

    def check(text: str) -> str:
        if not text:
            raise HardspliceError(
                "use", f"{option} with nothing", "it takes a path; write one after it"
            )
        return text

    return check


def netns(text: str) -> str:
    """The path of a network namespace, given as itself or by its name."""
    if text in ("", ".", ".."):
        reason = "that is neither a path nor a name; write one, as ip-netns(8) lists them"
        raise HardspliceError("parse", f"--netns {quote(text)}", reason)
    return text if "/" in text else f"/run/netns/{text}"


def number(text: str, least: int, most: int) -> int | None:
    """A decimal number within bounds; None for anything else, however long."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most))):
        return None
    return int(text) if least <= int(text) <= most else None


def descriptor(option: str, text: str) -> int:
    """The value of an option that is a file descriptor."""
    value = number(text, 0, _LAST_FD)
    if value is None:
        reason = "it is not a file descriptor; write its number"
        raise HardspliceError("parse", f"{option} {quote(text)}", reason)
    return value


def workers(text: str) -> int:
    """The value of --workers; `auto` is one for each processor that this process may use."""
    if text == "auto":
        return min(len(os.sched_getaffinity(0)), WORKERS_MAX)
    what = f"a number of relays; write 1 to {WORKERS_MAX}, or auto"
    return _counted("--workers", text, WORKERS_MAX, what)


def seconds(option: str, text: str) -> int:
    """The value of an option that is a time, in whole seconds up to a day."""
    return _counted(option, text, SECONDS_MAX, f"a time; write seconds, 1 to {SECONDS_MAX}")


def flows(option: str, text: str) -> int:
    """The value of an option that is a number of flows."""
    return _counted(option, text, FLOWS_MAX, f"a number of flows; write 1 to {FLOWS_MAX}")


def _counted(option: str, text: str, most: int, what: str) -> int:
    """A number from 1 on, which the option needs to be ``what``."""
    value = number(text, 1, most)
    if value is None:
        raise HardspliceError("parse", f"{option} {quote(text)}", f"it is not {what}")
    return value


def sandbox(text: str) -> Sandbox:
    """The value of --sandbox."""
    return _one_of(_SANDBOXES, text, "--sandbox", "mode")


def log_format(text: str) -> LogFormat:
    """The value of --log-format."""
    return _one_of(_LOG_FORMATS, text, "--log-format", "format")


def _one_of(words: tuple[_Word, ...], text: str, option: str, kind: str) -> _Word:
    for word in words:
        if text == word:
            return word
    reason = f"there is no such {kind}; write {' or '.join(words)}"
    raise HardspliceError("parse", f"{option} {quote(text)}", reason)


def size(text: str) -> int:
    """Bytes, of a number with or without a unit of 1024, its square or its cube."""
    unit = text[-1:].lower() if text[-1:].isalpha() else ""
    value = number(text[: len(text) - len(unit)], 0, _LOG_SIZE_LIMIT)
    if value is None or unit not in _SIZE_UNITS:
        reason = "it is not a size; write bytes, or a number followed by k, M or G"
        raise HardspliceError("parse", f"--log-size {quote(text)}", reason)
    value *= _SIZE_UNITS[unit]
    if not _LOG_SIZE_MIN <= value < _LOG_SIZE_LIMIT:
        reason = f"a log has at least {_LOG_SIZE_MIN} bytes, and less than 8 EiB; write 1M"
        raise HardspliceError("parse", f"--log-size {quote(text)}", reason)
    return value


def runas(text: str) -> RunAs:
    """The user and group of UID[:GID]|LOGIN[:GROUP], looked up now: later there are no files; or
    OWN.
    """
    if text == "own":
        return OWN
    user, colon, group = text.partition(":")
    try:
        if not user or (colon and not group):
            raise _UnknownError("a part is missing; write UID[:GID] or LOGIN[:GROUP]")
        account = _account(user)
        uid = account.pw_uid if account is not None else _id(user, "user")
        if group:
            return RunAs(uid, _gid(group))
        if account is None:
            raise _UnknownError(f"UID {uid} has no account to take the group from; write {uid}:GID")
        return RunAs(uid, account.pw_gid)
    except _UnknownError as unknown:
        raise HardspliceError("parse", f"--runas {quote(text)}", str(unknown)) from None


class _UnknownError(Exception):
    """Why a user or group can't be made out; `runas` adds what was written."""


def _account(user: str) -> pwd.struct_passwd | None:
    """The account of a login, or of a number that has one."""
    try:
        return pwd.getpwuid(_id(user, "user")) if user.isdigit() else pwd.getpwnam(user)
    except (KeyError, ValueError):
        if user.isdigit():
            return None
    raise _UnknownError(
        f"there is no user {quote(user)}; write a login of this system, or a UID:GID"
    )


def _gid(group: str) -> int:
    if group.isdigit():
        return _id(group, "group")
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        reason = f"there is no group {quote(group)}; write a group of this system, or a GID"
        raise _UnknownError(reason) from None


def _id(text: str, kind: str) -> int:
    value = number(text, 0, _LAST_ID)
    if value is None:
        raise _UnknownError(f"{quote(text)} is not a {kind}'s number, which is 0 to {_LAST_ID}")
    return value
