# SPDX-License-Identifier: GPL-2.0-or-later
"""An empty, read-only folder as a process's root, so that there is nothing to open.

There are two ways. A process that may create a mount namespace leaves the file system by one of its
own (``leave``). A process that may do so only after joining a user namespace whose root can forbid
it there, by user.max_mnt_namespaces, has a child create such a folder before (``made_by_child``),
and enters it afterwards (``enter``), which needs nothing that the other root could switch off. The
folder persists without the child, or any mount namespace: it is in no tree, so that ".." stays
where it is.
"""

from __future__ import annotations

import errno
import os

from hardsplice.ipc import child
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.messages import FOLDER_MAKER, Kind, Record
from hardsplice.kernel import linux
from hardsplice.model.errors import error_of, not_done, reason_of
from hardsplice.model.roles import HOST
from hardsplice.sandbox import refusals, user_namespace

LEAVE = "leave the file system for an empty one"
_PLACE = "/proc"  # a folder that is there for sure, to mount the new root on


def leave() -> None:
    """A mount namespace of our own, with an empty, read-only root and nothing else."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    flags = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("tmpfs", _PLACE, "tmpfs", flags, "nr_inodes=2,size=4k,mode=0555")
    os.chdir(_PLACE)
    try:
        # Both on the same place: the old root ends up on top of the new one, and is then taken off
        # (pivot_root(2)).
        linux.pivot_root(".", ".")
        linux.umount2(".", linux.MNT_DETACH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The root is the initramfs, which can't be left: it stays below the new one, as it does
        # when a system starts (switch_root(8)). To get there takes capabilities.
        linux.mount(".", "/", None, linux.MS_MOVE)
        os.chroot(".")
    os.chdir("/")


def made_by_child() -> int:
    """A descriptor of such a folder, for an ordinary user; HardspliceError where there is none."""
    verb, what = LEAVE.split(" ", 1)
    pid, ours = child.fork(
        HOST.name,
        FOLDER_MAKER,
        lambda theirs: child.live(lambda: _make(theirs), theirs, verb, what),
    )
    try:
        record = ours.receive()
    finally:
        ours.close()
        os.waitpid(pid, 0)
    if record is None:
        raise not_done(LEAVE, "the process that makes it ended early")
    if record.kind == Kind.FATAL:
        raise error_of(record.text)
    (folder,) = record.fds
    return folder


def _make(channel: Channel) -> int:
    try:
        user_namespace.enter_own_user_namespace()
        leave()
    except OSError as error:
        raise not_done(LEAVE, reason_of(error), refusals.userns_hint(error)) from error
    folder = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    channel.send(Record(Kind.FOLDER, fds=(folder,)))
    return 0


def enter(folder: int) -> None:
    """Make a folder of ``made_by_child`` the root of this process, which needs CAP_SYS_CHROOT."""
    os.fchdir(folder)
    os.chroot(".")
    os.close(folder)
