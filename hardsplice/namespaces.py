# SPDX-License-Identifier: GPL-2.0-or-later
"""The target's namespaces: finding them, joining them, and noticing when they go.

A namespace is held by descriptors that are opened before anything else changes. A process that
joins a user namespace loses its capabilities in the old one, so host ports are bound before, and
the join itself happens in a process of its own, the target monitor (joining.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import struct
from dataclasses import dataclass

from hardsplice import linux
from hardsplice.children import has_ended
from hardsplice.errors import Failure, quote, reason_of

RUN_NETNS = "/run/netns"
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
_PROC_NS = re.compile(r"/proc/(\d+)/(?:task/\d+/)?ns/net")

USERNS_HINT = (
    "user namespaces may be switched off here: see the sysctls user.max_user_namespaces, "
    "kernel.unprivileged_userns_clone (Debian) and "
    "kernel.apparmor_restrict_unprivileged_userns (Ubuntu)"
)


_SWITCHED_OFF = (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS)


def userns_hint(error: OSError) -> str | None:
    """USERNS_HINT, for an error of unshare(2) or of the ID maps by which it may be that."""
    return USERNS_HINT if error.errno in _SWITCHED_OFF else None


def limited_by(kind: str, error: OSError) -> str | None:
    """What to do about an error of unshare(2), where it is that of a limit."""
    if error.errno != errno.ENOSPC or error.filename is not None:
        return None
    setting = f"user.max_{kind}_namespaces"
    return f"see the sysctl {setting}: root in a user namespace can set it for all in there"


@dataclass(frozen=True, slots=True)
class Target:
    """The namespaces to serve, as open descriptors.

    ``user`` is None when the network namespace belongs to our own user namespace. ``process`` is a
    pidfd whose end is the end of the namespaces' purpose; ``watch`` an inotify descriptor on the
    directory that holds ``path``.
    """

    name: str
    net: int
    user: int | None
    process: int | None = None
    watch: int | None = None
    path: str | None = None


def same_namespace(fd: int, path: str) -> bool:
    """Whether ``fd`` is the namespace at ``path``."""
    return os.path.samestat(os.fstat(fd), os.stat(path))


def _open_namespace(path: str, kind: int, object_name: str) -> int:
    kinds = {linux.CLONE_NEWNET: "network", linux.CLONE_NEWUSER: "user"}
    hint = None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = "run hardsplice as the user who owns that namespace, or as root"
        elif error.errno == errno.ENOENT and path.startswith(RUN_NETNS + "/"):
            hint = "named namespaces are listed by: ip netns"
        raise Failure("join", object_name, reason_of(error), hint) from error
    try:
        found = fcntl.ioctl(fd, linux.NS_GET_NSTYPE)
    except OSError:
        found = 0
    if found != kind:
        os.close(fd)
        raise Failure("join", object_name, f"{path} is not a {kinds[kind]} namespace")
    return fd


def _owner(net: int, object_name: str) -> int | None:
    """The user namespace that owns a network namespace; None when it is ours."""
    try:
        user = fcntl.ioctl(net, linux.NS_GET_USERNS)
    except PermissionError as error:
        hint = "run hardsplice in the user namespace that owns it, or in a parent of that one"
        raise Failure("join", object_name, "its owner is out of reach", hint) from error
    os.set_inheritable(user, False)
    return _foreign(user)


def _foreign(user: int) -> int | None:
    """A user namespace's descriptor, or None (and closed) when it is our own, which can't be
    joined.
    """
    if same_namespace(user, "/proc/self/ns/user"):
        os.close(user)
        return None
    return user


def _open_pidfd(pid: int, name: str) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        reason = "no such process" if error.errno == errno.ESRCH else reason_of(error)
        raise Failure("join", name, reason) from error


def _refuse_ended(process: int, name: str) -> None:
    """Look again, once all that a number led to is open: if the process has ended, the number may
    have been another one's by then.
    """
    if has_ended(process):
        raise Failure("join", name, "no such process")


def open_process(pid: int, *, netns_only: bool) -> Target:
    """The namespaces of a running process."""
    name = f"process {pid}"
    with contextlib.ExitStack() as opened:
        process = _open_pidfd(pid, name)
        opened.callback(os.close, process)
        net = _open_namespace(f"/proc/{pid}/ns/net", linux.CLONE_NEWNET, name)
        opened.callback(os.close, net)
        user = None
        if not netns_only:
            user = _foreign(_open_namespace(f"/proc/{pid}/ns/user", linux.CLONE_NEWUSER, name))
        if user is not None:
            opened.callback(os.close, user)
        _refuse_ended(process, name)
        _refuse_own(net, name, f"process {pid} is in the network namespace that hardsplice runs in")
        opened.pop_all()
    return Target(name, net, user, process=process)


def open_path(path: str, userns: str | None, *, netns_only: bool) -> Target:
    """The network namespace at ``path``, with the user namespace at ``userns`` or else the one that
    owns it.
    """
    name = f"namespace {quote(path)}"
    of_process = _PROC_NS.fullmatch(path)
    process = watch = real = user = None
    with contextlib.ExitStack() as opened:
        if of_process:
            process = _open_pidfd(int(of_process[1]), name)
            opened.callback(os.close, process)
        else:
            # Watched before it is opened: a removal in between is not missed.
            folder, last = os.path.split(path)
            real = os.path.join(os.path.realpath(folder or "."), last)
            with contextlib.suppress(OSError):  # opening it below says it better
                watch = linux.inotify(os.path.dirname(real), linux.IN_DELETE | linux.IN_MOVED_FROM)
                opened.callback(os.close, watch)
        net = _open_namespace(path, linux.CLONE_NEWNET, name)
        opened.callback(os.close, net)
        _refuse_own(net, name, "it is the network namespace that hardsplice runs in")
        if userns is not None:
            user = _foreign(_open_namespace(userns, linux.CLONE_NEWUSER, name))
        elif not netns_only:
            user = _owner(net, name)
        if user is not None:
            opened.callback(os.close, user)
        if process is not None:
            _refuse_ended(process, name)
        opened.pop_all()
    return Target(name, net, user, process=process, watch=watch, path=real)


def _refuse_own(net: int, name: str, why: str) -> None:
    if same_namespace(net, "/proc/self/ns/net"):
        raise Failure("join", name, why, "name a namespace other than your own")


def join_network(target: Target) -> None:
    """Move this process into the target's network namespace."""
    _join(target, target.net, linux.CLONE_NEWNET)


def join_user(target: Target) -> None:
    """Move this process into the target's user namespace, where it has every capability. So has
    whoever is root there, over this process: see joining.py for what comes before.
    """
    assert target.user is not None
    _join(target, target.user, linux.CLONE_NEWUSER)


def _join(target: Target, fd: int, kind: int) -> None:
    try:
        linux.setns(fd, kind)
    except OSError as error:
        hint = None
        if error.errno == errno.EPERM:
            hint = "only the owner of a user namespace, or root, may join it: run as that user"
        raise Failure("join", target.name, reason_of(error), hint) from error


def enter_own_user_namespace() -> None:
    """Enter a user namespace of our own, ids unchanged: an ordinary user may give up the bounding
    set, and the file system, only in one.
    """
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER)
    write_id_maps("self", f"{uid} {uid} 1", f"{gid} {gid} 1", deny_setgroups=True)


def write_id_maps(pid: int | str, uid_map: str, gid_map: str, *, deny_setgroups: bool) -> None:
    """Write the ID maps of a new user namespace that process ``pid`` is in."""
    values = [("uid_map", uid_map), ("gid_map", gid_map)]
    if deny_setgroups:  # the kernel demands it of whoever isn't privileged, before gid_map
        values.insert(1, ("setgroups", "deny"))
    for name, value in values:
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


def owns_all_ids() -> bool:
    """Whether this user namespace maps every user ID, as the initial one does."""
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        return lines.read().split() == ["0", "0", "4294967295"]


def bring_up_loopback() -> None:
    """Set the interface ``lo`` up; OSError when this process may not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("H", answer, 16)[0]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
