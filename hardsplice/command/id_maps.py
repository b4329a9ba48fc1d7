# SPDX-License-Identifier: GPL-2.0-or-later
"""Which ids COMMAND has in its user namespace: root's, which is its user outside, and with
--map-auto those that the administrator gave to that user besides (subuid(5)), in their order from 1
on. Servers that become another user need these.

A process without privilege may map only its own ID. newuidmap(1) and newgidmap(1), which are
privileged, write maps for the owner of the subordinate IDs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from hardsplice.kernel import prctl
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.errors import HardspliceError, quote, reason_of
from hardsplice.model.identity import RunAs
from hardsplice.sandbox import user_namespace, users

FIRST, USUAL = 100_000, 65_536  # SUB_UID_MIN and SUB_UID_COUNT of login.defs(5)
NOBODY = 65534  # the last id that programs may count on
_FILES = {"user": "/etc/subuid", "group": "/etc/subgid"}
_HELPERS = {"user": "newuidmap", "group": "newgidmap"}
_PACKAGE_HINT = "install the package uidmap (Debian, Ubuntu) or shadow-utils (Fedora, SUSE: shadow)"
_HELPER_HINT = (
    "newuidmap and newgidmap need their set-user-ID bit or file capabilities, where neither the "
    "option nosuid nor no_new_privs takes these away"
)
_SAID_LIMIT = 4096  # bytes of a helper's output


class IdMap(NamedTuple):
    """Ids from 0 on inside, by where they begin and how many they are outside."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def lines(self) -> tuple[tuple[int, int, int], ...]:
        """First inside, first outside, count."""
        found, inside = [], 0
        for first, count in self.ranges:
            found.append((inside, first, count))
            inside += count
        return tuple(found)

    @property
    def text(self) -> str:
        """As it is written into a new user namespace's map."""
        return "\n".join(f"{inside} {first} {count}" for inside, first, count in self.lines)

    @property
    def same_below(self) -> str:
        """The map of a user namespace below, in which every id is what it is here. No line may span
        two of the map above (map_id_range_down, kernel/user_namespace.c).
        """
        return "\n".join(f"{inside} {inside} {count}" for inside, _, count in self.lines)


class Ids(NamedTuple):
    """Both maps."""

    uids: IdMap
    gids: IdMap

    @property
    def has_subordinate(self) -> bool:
        """Whether there are others than root's."""
        return max(len(self.uids.ranges), len(self.gids.ranges)) > 1

    @property
    def takes_helpers(self) -> bool:
        """Whether an ordinary user can't write them."""
        return os.geteuid() != 0 and self.has_subordinate


def of_command(user: RunAs | None, *, with_subordinate: bool) -> Ids:
    """The IDs of a COMMAND that is ``user`` outside, or our own user. HardspliceError if there
    should be subordinate ones, and there are not enough.
    """
    uid, gid = (user.uid, user.gid) if user else (os.geteuid(), os.getegid())
    if not with_subordinate:
        return Ids(IdMap(((uid, 1),)), IdMap(((gid, 1),)))
    name = users.name_of(uid)
    return Ids(
        IdMap(((uid, 1), *_subordinate("user", uid, name))),
        IdMap(((gid, 1), *_subordinate("group", uid, name))),
    )


def _subordinate(kind: str, uid: int, name: str | None) -> tuple[tuple[int, int], ...]:
    path = _FILES[kind]
    found = parse(_lines(path), {str(uid), name or str(uid)})
    number = sum(count for _, count in found)
    if number >= NOBODY:
        return found
    what = f"{name or uid} has " + (f"{number} of {NOBODY} {kind} ids" if found else "no entry")
    raise HardspliceError("map", "subordinate ids", f"{what} in {path}", _hint(name or str(uid)))


def _hint(name: str) -> str:
    options = " ".join(
        f"--add-sub{letter}ids {first}-{first + USUAL - 1}"
        for letter, path in (("u", _FILES["user"]), ("g", _FILES["group"]))
        for first in [first_free(_lines(path))]
    )
    hint = f"an administrator can give some: usermod {options} {name}"
    return f"--runas USER names a user who has them; or {hint}" if os.geteuid() == 0 else hint


def first_free(lines: Iterable[str]) -> int:
    """The first ID above all that lines of subuid(5) give to any user: a process with IDs of
    another user would be that user where these are mapped.
    """
    return max([FIRST, *(first + count for _, first, count in _entries(lines))])


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            return lines.readlines()
    except OSError:  # as if there were no line
        return []


def parse(lines: Iterable[str], names: set[str]) -> tuple[tuple[int, int], ...]:
    """The ranges of the user with one of these names, each once, from lines of subuid(5)."""
    found = [(first, count) for name, first, count in _entries(lines) if name in names]
    return tuple(dict.fromkeys(found))


def _entries(lines: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """Whose, first and count of each line that means something."""
    for line in lines:
        name, _, numbers = line.strip().partition(":")
        first, _, count = numbers.partition(":")
        if _is_number(first) and _is_number(count) and int(count):
            yield name, int(first), int(count)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10  # of 32 bits


def write(pid: int, ids: Ids) -> None:
    """Write the maps of the user namespace that process ``pid`` has created. OSError, or
    HardspliceError with a helper's output.
    """
    if not ids.takes_helpers:
        deny = not prctl.cap_effective.setgid
        try:
            user_namespace.write_id_maps(pid, ids.uids.text, ids.gids.text, deny_setgroups=deny)
        except PermissionError as error:
            if not ids.has_subordinate:
                raise
            hint = "the user namespace that hardsplice runs in has to have all of them"
            raise HardspliceError("map", "subordinate ids", reason_of(error), hint) from error
        return
    for kind, one in (("user", ids.uids), ("group", ids.gids)):
        _run(_HELPERS[kind], [str(pid), *(str(number) for line in one.lines for number in line)])


def _run(helper: str, words: list[str]) -> None:
    places = [os.path.join(folder, helper) for folder in os.get_exec_path()]
    path = next((one for one in places if os.access(one, os.X_OK)), None)
    if path is None:
        raise HardspliceError("run", helper, "it is not there", _PACKAGE_HINT)
    read, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        streams = [(os.POSIX_SPAWN_DUP2, write_end, fd) for fd in (1, 2)]
        pid = os.posix_spawn(path, [helper, *words], {}, file_actions=streams)
    except OSError as error:
        os.close(read)
        raise HardspliceError("run", path, reason_of(error), _HELPER_HINT) from error
    finally:
        os.close(write_end)
    with os.fdopen(read, "rb") as output:
        said = output.read(_SAID_LIMIT).decode(errors="replace").strip()
    if os.waitpid(pid, 0)[1] != 0:
        reason = said.partition("\n")[0] or f"{quote(helper)} failed"
        raise HardspliceError("map", "subordinate ids", reason, helper_hint(reason))


def helper_hint(said: str) -> str | None:
    """The hint for an error of newuidmap or newgidmap, if it is known."""
    if "different user" in said:  # it compares with the password database, the group too
        return "hardsplice's group has to be that of its user's account: see id -g, and newgrp(1)"
    return _HELPER_HINT if "not permitted" in said or "Could not" in said else None
