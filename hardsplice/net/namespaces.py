# SPDX-License-Identifier: GPL-2.0-or-later
"""The namespaces that are served: finding them, joining them, and noticing when they end.

A namespace is held by descriptors that are opened before anything else changes. A process that
joins a user namespace loses its capabilities in the old one, so host ports are bound before, and
the join itself happens in a process of its own, the namespace monitor (net/joining.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat

from hardsplice.ipc.child import has_ended
from hardsplice.kernel import linux, mounts
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.errors import HardspliceError, quote, reason_of
from hardsplice.net import procfs
from hardsplice.sandbox import refusals, rights

RUN_NETNS = "/run/netns"
_LINKS_LIMIT = 40  # path_resolution(7)
_PROC_NS = r"/proc/(\d+)/(?:task/\d+/)?ns/net"

_RIGHTS_HINT = (
    "joining takes CAP_SYS_ADMIN in the user namespace that owns it; a --userns that is given has "
    "to be that one, or one above it"
)
ELSEWHERE_HINT = (
    "an empty file is left where a namespace was, or where one is mounted for other processes "
    "only: use the PID of a process in it, or, for rootless Podman: podman unshare hardsplice ..."
)


class Served(NamedTuple):
    """The namespaces to serve, as open descriptors. The network namespace was opened at ``path``.

    ``user`` is None when the network namespace belongs to our own user namespace. The end of the
    process behind the pidfd ``process``, or of the mount that is ``watched``, is the end of the
    namespaces' purpose.
    """

    name: str
    path: str
    net: int
    user: int | None
    process: int | None = None
    watched: mounts.Watch | None = None
    is_own: bool = False  # this process is in it already


def _open_namespace(path: str, kind: int, name: str, pid: int | None = None) -> int:
    kinds = {linux.CLONE_NEWNET: "network", linux.CLONE_NEWUSER: "user"}
    try:
        # Whatever else lies there, a FIFO say, is not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        told = rights.unreadable(path, pid, name, error)
        if told is not None:
            raise told from error
        is_name = error.errno == errno.ENOENT and path.startswith(RUN_NETNS + "/")
        hint = "named namespaces are listed by: ip netns" if is_name else None
        raise HardspliceError("join", name, reason_of(error), hint) from error
    try:
        found = fcntl.ioctl(fd, linux.NS_GET_NSTYPE)
    except OSError:
        found = 0
    if found != kind:
        found_file = os.fstat(fd)
        os.close(fd)
        is_left = stat.S_ISREG(found_file.st_mode) and found_file.st_size == 0
        reason = f"{path} is not a {kinds[kind]} namespace"
        raise HardspliceError("join", name, reason, ELSEWHERE_HINT if is_left else None)
    return fd


def _owner(net: int, name: str, *, netns_only: bool) -> int | None:
    """The user namespace to join on the way to a network namespace; None where that takes none.
    HardspliceError where this process has not the rights.
    """
    user = rights.owner_of(net, name)
    try:
        rights.refuse_without(user, name)
        if netns_only and not (rights.is_own_user_namespace(user) or rights.may_make_namespaces()):
            reason = "that takes the user namespace that owns it, which is another one"
            raise HardspliceError("join", name, reason, "leave --netns-only out")
    except HardspliceError:
        os.close(user)
        raise
    if netns_only:
        os.close(user)
        return None
    return _foreign(user)


def _foreign(user: int) -> int | None:
    """A user namespace's descriptor, or None (and closed) when it is our own, which can't be
    joined.
    """
    if rights.is_own_user_namespace(user):
        os.close(user)
        return None
    return user


def _open_pidfd(pid: int, name: str) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        reason = "no such process" if error.errno == errno.ESRCH else reason_of(error)
        raise HardspliceError("join", name, reason) from error


def _open_of_process(path: str, pid: int, process: int, name: str) -> int:
    """The network namespace of the process behind a pidfd. Once it is open, or can't be, look
    again: if the process has ended, the number may have been another one's by then.
    """
    net = None
    try:
        net = _open_namespace(path, linux.CLONE_NEWNET, name, pid)
    finally:
        if has_ended(process):
            if net is not None:
                os.close(net)
            raise HardspliceError("join", name, "no such process")
    return net


def open_process(pid: int, *, netns_only: bool) -> Served:
    """The network namespace of a running process."""
    name, path = f"process {pid}", f"/proc/{pid}/ns/net"
    with contextlib.ExitStack() as opened:
        process = _open_pidfd(pid, name)
        opened.callback(os.close, process)
        net = _open_of_process(path, pid, process, name)
        opened.callback(os.close, net)
        _refuse_own(net, name, f"process {pid} is in the network namespace that hardsplice runs in")
        user = _owner(net, name, netns_only=netns_only)
        opened.pop_all()
    return Served(name, path, net, user, process=process)


def open_path(path: str, userns: str | None, *, netns_only: bool) -> Served:
    """The network namespace at ``path``, with the user namespace at ``userns`` or else the one that
    owns it.
    """
    name = f"namespace {quote(path)}"
    of_process = re.fullmatch(_PROC_NS, _real(path))
    pid = int(of_process[1]) if of_process else None
    process = watched = None
    with contextlib.ExitStack() as opened:
        if pid is not None:
            procfs.refuse_others_proc()
            process = _open_pidfd(pid, name)
            opened.callback(os.close, process)
            net = _open_of_process(path, pid, process, name)
            opened.callback(os.close, net)
        else:
            net = _open_namespace(path, linux.CLONE_NEWNET, name)
            opened.callback(os.close, net)
            watched = mounts.watch(path, net)
            if watched is not None:
                opened.callback(os.close, watched.table)
            _refuse_removed(net, path, name)
        _refuse_own(net, name, "it is the network namespace that hardsplice runs in")
        if userns is None:
            user = _owner(net, name, netns_only=netns_only)
        else:
            user = _named_owner(userns, name)
        opened.pop_all()
    return Served(name, path, net, user, process=process, watched=watched)


def open_own() -> Served:
    """The network namespace that this process is in, to be served itself: it joins none."""
    name, path = "our own network namespace", "/proc/self/ns/net"
    return Served(name, path, _open_namespace(path, linux.CLONE_NEWNET, name), None, is_own=True)


def _real(path: str) -> str:
    """A path without symbolic links; but those of /proc lead to no path."""
    folder, last = os.path.split(os.path.abspath(path))
    path = os.path.join(os.path.realpath(folder), last)
    for _ in range(_LINKS_LIMIT):
        if re.fullmatch(_PROC_NS, path) or not os.path.islink(path):
            break
        try:
            to = os.readlink(path)
        except OSError:  # a process's that may not be traced
            break
        folder, last = os.path.split(os.path.join(os.path.dirname(path), to))
        path = os.path.join(os.path.realpath(folder), last)
    return path


def _named_owner(userns: str, name: str) -> int | None:
    """The user namespace that --userns names."""
    user = _open_namespace(userns, linux.CLONE_NEWUSER, name)
    try:
        rights.refuse_without(user, name)
    except HardspliceError:
        os.close(user)
        raise
    return _foreign(user)


def _refuse_removed(net: int, path: str, name: str) -> None:
    """Check again, once it is watched: earlier events are not reported."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(net), os.stat(path)):
            return
    raise HardspliceError("join", name, "it was removed meanwhile")


def _refuse_own(net: int, name: str, why: str) -> None:
    if rights.same_namespace(net, "/proc/self/ns/net"):
        raise HardspliceError("join", name, why, "name a namespace other than your own")


def join_network(served: Served) -> None:
    """Move this process into the network namespace that is served."""
    _join(served, served.net, linux.CLONE_NEWNET)


def join_user(served: Served) -> None:
    """Move this process into the user namespace that is served, where it has every capability. So
    has root there, over this process: see net/joining.py for what comes before.
    """
    assert served.user is not None
    _join(served, served.user, linux.CLONE_NEWUSER)


def _join(served: Served, fd: int, kind: int) -> None:
    try:
        linux.setns(fd, kind)
    except OSError as error:
        hint = None
        if error.errno == errno.EPERM:
            hint = refusals.filter_hint() or _RIGHTS_HINT
        raise HardspliceError("join", served.name, reason_of(error), hint) from error
