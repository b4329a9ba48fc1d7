# SPDX-License-Identifier: GPL-2.0-or-later
"""User namespaces of our own: entering one, and the ids that are mapped in it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from hardsplice.ipc import child
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.messages import MAPPER, Kind, Record
from hardsplice.kernel import linux, prctl
from hardsplice.kernel.hints import NoReturn
from hardsplice.model.identity import RunAs
from hardsplice.model.roles import HOST


def enter_own_user_namespace(user: RunAs | None = None) -> None:
    """Enter a user namespace of our own, with unchanged IDs: without CAP_SYS_ADMIN a process may
    give up the bounding set, and the file system, only in one. It maps the IDs of this process and
    those of ``user``, which the process may then become.
    """
    uid, gid = os.geteuid(), os.getegid()
    if user is None or (user.uid, user.gid) == (uid, gid):
        linux.unshare(linux.CLONE_NEWUSER)
        write_id_maps("self", _same(uid), _same(gid), deny_setgroups=True)
        return
    # To map root the kernel asks for CAP_SETFCAP (verify_root_map, kernel/user_namespace.c).
    known = [uid] if uid != 0 or prctl.cap_effective.setfcap else []
    uids, gids = _same(*known, user.uid), _same(gid, user.gid)
    with _outside((uids, gids)) as go:
        linux.unshare(linux.CLONE_NEWUSER)
        go()


def _same(*ids: int) -> str:
    """A map in which these ids are what they are outside."""
    return "\n".join(f"{one} {one} 1" for one in dict.fromkeys(ids))


@contextlib.contextmanager
def _outside(maps: tuple[str, str]) -> Iterator[Callable[[], None]]:
    """A child that stays where this process is, where it may map other ids than our own, and does
    so when it is called. OSError where it can't.
    """

    def life(theirs: Channel) -> NoReturn:
        code = errno.EPERM
        try:
            if theirs.receive() is not None:
                write_id_maps(os.getppid(), *maps, deny_setgroups=False)
                code = 0
        except OSError as error:
            code = error.errno or errno.EPERM
        finally:
            os._exit(code)

    pid, ours = child.fork(HOST.name, MAPPER, life)

    def go() -> None:
        ours.send(Record(Kind.WANTS_MAPS))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            raise OSError(code, os.strerror(code))

    try:
        yield go
    finally:
        ours.close()
        with contextlib.suppress(ChildProcessError):  # it was not called
            os.waitpid(pid, 0)


def write_id_maps(pid: int | str, uid_map: str, gid_map: str, *, deny_setgroups: bool) -> None:
    """Write the ID maps of a new user namespace that process ``pid`` is in."""
    values = [("uid_map", uid_map), ("gid_map", gid_map)]
    if deny_setgroups:  # the kernel requires it of a process without privilege, before gid_map
        values.insert(1, ("setgroups", "deny"))
    for name, value in values:
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
