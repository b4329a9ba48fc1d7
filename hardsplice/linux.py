# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's calls that Python's standard library does not have: the only module that uses
ctypes.

Each wrapper carries its call's own name and does nothing but call it. There are two conventions:

- *hot* calls, made for every connection (``accept4``, ``connect``, ``shutdown``, ``recv``,
  ``send``), return the kernel's own kind of answer: a result, or the negated errno. "Not now" is an
  everyday answer there, and an exception for it would cost more than the call (CPython formats the
  message of each OSError).
- all the others raise OSError, like the functions of ``os``.

Constants that Python has are taken from Python. The rest are given with the header they come from;
where architectures differ there is a table.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable
from ctypes import byref, c_char_p, c_int, c_long, c_size_t, c_ulong, c_void_p
from ipaddress import IPv4Address, IPv6Address
from typing import NoReturn

_libc = ctypes.CDLL(None, use_errno=True)
_errno = ctypes.get_errno

MACHINE = os.uname().machine

# linux/sched.h; the same on every architecture. (In os from Python 3.12 on.)
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/nsfs.h: _IO(0xb7, n). PowerPC writes "no argument" into the direction bits, the others write
# nothing.
_IO = 0x20000000 if MACHINE.startswith("ppc") else 0
NS_GET_USERNS = _IO | 0xB701
NS_GET_NSTYPE = _IO | 0xB703

# linux/prctl.h: what python-prctl 1.8.1 does not know, and what it would refuse.
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECCOMP = 22
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_MDWE = 65
PR_MDWE_REFUSE_EXEC_GAIN = 1
SECCOMP_MODE_FILTER = 2

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

# linux/inotify.h
IN_DELETE = 0x200
IN_MOVED_FROM = 0x40


class SockFprog(ctypes.Structure):
    """struct sock_fprog of linux/filter.h: a classic BPF program, its length counted in
    instructions.
    """

    _fields_ = (("len", ctypes.c_ushort), ("filter", c_void_p))


def _raise(*names: object) -> NoReturn:
    """Raise the OSError for the errno that the last call left."""
    code = _errno()
    raise OSError(code, os.strerror(code), *names)


# --- hot calls: a result or the negated errno -----------------------------------------------------

# Where all arguments are C ints, bytes and references made once, ctypes passes them on as they are.
# With argtypes it would call a converter for each, which takes longer than some of these calls.
_accept4 = _libc.accept4
_connect = _libc.connect
_getpeername = _libc.getpeername
_getsockopt = _libc.getsockopt
_shutdown = _libc.shutdown
_setsockopt = _libc.setsockopt
_sockatmark = _libc.sockatmark

_recv = _libc.recv
_recv.argtypes = (c_int, c_void_p, c_size_t, c_int)
_send = _libc.send
_send.argtypes = (c_int, c_char_p, c_size_t, c_int)

_ACCEPT_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_peer = ctypes.create_string_buffer(28)  # sizeof(struct sockaddr_in6), the longest that TCP has
_peer_length = c_int(28)
_peer_ref, _peer_length_ref = byref(_peer), byref(_peer_length)
_nobody_ref, _nobody_length_ref = byref(c_int()), byref(c_int(0))  # the address is not wanted
_option = c_int()
_option_length = c_int(4)
_option_ref, _option_length_ref = byref(_option), byref(_option_length)
_FAMILY = struct.Struct("=H")
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, an IPv4 client on a dual-stack listener
_LINGER_ZERO = struct.pack("ii", 1, 0)
_ONE = struct.pack("i", 1)


def accept4(listener: int) -> int:
    """Accept a connection, non-blocking and close-on-exec: its descriptor, or the negated errno."""
    _peer_length.value = 28
    fd: int = _accept4(listener, _peer_ref, _peer_length_ref, _ACCEPT_FLAGS)
    return fd if fd >= 0 else -_errno()


def accepted_from_ipv4() -> bool:
    """Whether the peer of the last ``accept4`` came by IPv4, be it mapped into IPv6."""
    raw = _peer.raw
    return _FAMILY.unpack_from(raw)[0] == socket.AF_INET or raw[8:20] == _MAPPED


def accepted_from() -> tuple[bytes, int]:
    """Address and port of the peer of the last ``accept4``, as ``endpoint`` has them."""
    return endpoint(_peer.raw)


def connect(fd: int, sockaddr: bytes) -> int:
    """Start a connection: 0 when it stands, -EINPROGRESS while it is under way, or the negated
    errno.
    """
    if _connect(fd, sockaddr, len(sockaddr)) == 0:
        return 0
    return -_errno()


def connected(fd: int) -> int:
    """How a connect(2) that was under way goes on: 0 when the connection stands, -EINPROGRESS when
    that isn't known yet, -ECONNRESET when it stood and has been reset since, else the negated errno
    of the refusal.
    """
    if _getpeername(fd, _nobody_ref, _nobody_length_ref) == 0:
        return 0
    # ENOTCONN: in SYN_SENT, or closed again. The kernel's tcp_reset tells a refusal (ECONNREFUSED)
    # from a reset.
    _option_length.value = 4
    if _getsockopt(fd, socket.SOL_SOCKET, socket.SO_ERROR, _option_ref, _option_length_ref) != 0:
        return -_errno()
    if _option.value in (errno.ECONNRESET, errno.EPIPE):
        return -errno.ECONNRESET
    return -_option.value or -errno.EINPROGRESS


def shutdown(fd: int, how: int) -> int:
    """Shut one half of a connection: 0, or the negated errno."""
    return 0 if _shutdown(fd, how) == 0 else -_errno()


def abort(fd: int) -> int:
    """Make the coming close of ``fd`` a reset (SO_LINGER, 0 seconds): 0, or the negated errno."""
    done = _setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO, len(_LINGER_ZERO))
    return 0 if done == 0 else -_errno()


def limit_unsent(fd: int, size: int) -> int:
    """Have ``fd`` take no more while ``size`` bytes wait in the kernel to be sent
    (TCP_NOTSENT_LOWAT): 0, or the negated errno.
    """
    value = struct.pack("i", size)
    done = _setsockopt(fd, socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, value, len(value))
    return 0 if done == 0 else -_errno()


def keep_urgent_inline(fd: int) -> int:
    """Leave the urgent byte in the stream for an ordinary receive (SO_OOBINLINE): 0, or the negated
    errno.
    """
    done = _setsockopt(fd, socket.SOL_SOCKET, socket.SO_OOBINLINE, _ONE, len(_ONE))
    return 0 if done == 0 else -_errno()


def sockatmark(fd: int) -> bool:
    """Whether the next byte to read from ``fd`` is the urgent one."""
    return bool(_sockatmark(fd) == 1)


_one_byte = ctypes.create_string_buffer(1)
_one_byte_ref = byref(_one_byte)


def receive_byte(fd: int, flags: int) -> bytes | int:
    """One byte; b"" at end of file; or the negated errno. One byte is all that the relay's filter
    lets it look at.
    """
    count: int = _recv(fd, _one_byte_ref, 1, flags)
    return _one_byte.raw[:count] if count >= 0 else -_errno()


def send_byte(fd: int, byte: bytes, flags: int) -> int:
    """Send one byte: 1, or the negated errno."""
    count: int = _send(fd, byte, 1, flags | socket.MSG_NOSIGNAL)
    return count if count >= 0 else -_errno()


_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_credentials = ctypes.create_string_buffer(_UCRED.size)
_cookie = ctypes.c_uint64()
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h


def send(fd: int, data: bytes) -> int:
    """Send what the socket takes now: how many bytes that was, or the negated errno."""
    count: int = _send(fd, data, len(data), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    return count if count >= 0 else -_errno()


def peer_user(fd: int) -> int:
    """The effective user id with which the peer of a UNIX stream socket connected, as it is in our
    own user namespace; -1 when there is none.
    """
    _option_length.value = _UCRED.size
    where = byref(_credentials)
    if _getsockopt(fd, socket.SOL_SOCKET, socket.SO_PEERCRED, where, _option_length_ref) != 0:
        return -1
    uid: int = _UCRED.unpack(_credentials.raw)[1]
    return uid


def namespace_cookie(fd: int) -> int | None:
    """A number for the network namespace that a socket belongs to; None before Linux 5.14."""
    _option_length.value = ctypes.sizeof(_cookie)
    where = byref(_cookie)
    if _getsockopt(fd, socket.SOL_SOCKET, _SO_NETNS_COOKIE, where, _option_length_ref) != 0:
        return None
    return _cookie.value


def sockaddr(address: IPv4Address | IPv6Address, port: int, scope: int = 0) -> bytes:
    """struct sockaddr_in or sockaddr_in6 for ``address`` and ``port``; ``scope`` is an interface's
    index.
    """
    if address.version == 4:
        return _FAMILY.pack(socket.AF_INET) + struct.pack("!H", port) + address.packed + bytes(8)
    return (
        _FAMILY.pack(socket.AF_INET6)
        + struct.pack("!HI", port, 0)
        + address.packed
        + struct.pack("=I", scope)
    )


def endpoint(sockaddr: bytes) -> tuple[bytes, int]:
    """Address and port in a struct sockaddr_in or sockaddr_in6: the address packed as IPv6, where
    IPv4 is mapped.
    """
    family, port = _FAMILY.unpack_from(sockaddr)[0], int.from_bytes(sockaddr[2:4], "big")
    return (_MAPPED + sockaddr[4:8] if family == socket.AF_INET else sockaddr[8:24]), port


# --- calls that raise OSError ---------------------------------------------------------------------

_socket = _libc.socket
_SOCKET_TYPE = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def stream_socket(family: int) -> int:
    """A bare TCP socket, non-blocking and close-on-exec. One is made for every connection, and a
    socket object takes longer to make than the socket.
    """
    fd: int = _socket(family, _SOCKET_TYPE, 0)
    if fd < 0:
        _raise()
    return fd


def set_nodelay(fd: int) -> None:
    """Send small segments at once (TCP_NODELAY)."""
    if _setsockopt(fd, socket.IPPROTO_TCP, socket.TCP_NODELAY, _ONE, len(_ONE)) != 0:
        _raise()


# Calls through it hold the interpreter's lock, as a fork must
_python = ctypes.PyDLL(None, use_errno=True)
_python.PyOS_BeforeFork.restype = None
_python.PyOS_AfterFork_Child.restype = None
_python.PyOS_AfterFork_Parent.restype = None


def fork() -> int:
    """fork(2) for a process that is locked down: 0 in the child.

    ``os.fork`` of Python 3.12 and later looks into /proc for threads, to warn of them; there is no
    /proc any more.
    """
    _python.PyOS_BeforeFork()
    pid: int = _python.fork()
    code = _errno()
    if pid == 0:
        _python.PyOS_AfterFork_Child()
        return 0
    _python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, os.strerror(code))
    return pid


_prctl = _libc.prctl
_prctl.argtypes = (c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_unshare = _libc.unshare
_unshare.argtypes = (c_int,)
_setns = _libc.setns
_setns.argtypes = (c_int, c_int)
_mount = _libc.mount
_mount.argtypes = (c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _libc.umount2
_umount2.argtypes = (c_char_p, c_int)
_signalfd = _libc.signalfd
_signalfd.argtypes = (c_int, c_char_p, c_int)
_inotify_init1 = _libc.inotify_init1
_inotify_init1.argtypes = (c_int,)
_inotify_add_watch = _libc.inotify_add_watch
_inotify_add_watch.argtypes = (c_int, c_char_p, ctypes.c_uint32)
_syscall = _libc.syscall
_syscall.restype = c_long


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) for the options that python-prctl lacks."""
    result: int = _prctl(option, arg2, arg3, arg4, arg5)
    if result < 0:
        _raise()
    return result


def set_seccomp_filter(program: bytes) -> None:
    """Install a classic BPF program as a seccomp filter; it needs no_new_privs or CAP_SYS_ADMIN."""
    code = ctypes.create_string_buffer(program, len(program))
    fprog = SockFprog(len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(fprog))


def unshare(flags: int) -> None:
    """unshare(2); ``os.unshare`` exists from Python 3.12 on only."""
    if _unshare(flags) != 0:
        _raise()


def setns(fd: int, kind: int) -> None:
    """setns(2); ``os.setns`` exists from Python 3.12 on only."""
    if _setns(fd, kind) != 0:
        _raise()


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    kind_bytes = kind.encode() if kind is not None else None
    data_bytes = data.encode() if data is not None else None
    if _mount(os.fsencode(source), os.fsencode(target), kind_bytes, flags, data_bytes) != 0:
        _raise(target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    if _umount2(os.fsencode(target), flags) != 0:
        _raise(target)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2), which the C library has no function for."""
    number = _PIVOT_ROOT.get(MACHINE, 41)  # 41 is asm-generic/unistd.h's
    if sys.maxsize < 2**32:
        number = _PIVOT_ROOT_32.get(MACHINE, number)
    if _syscall(number, os.fsencode(new), os.fsencode(old)) != 0:
        _raise(new)


def join_session_keyring() -> None:
    """keyctl(KEYCTL_JOIN_SESSION_KEYRING): have a new, empty session keyring in the place of the
    one that was inherited.
    """
    number = _KEYCTL.get(MACHINE, 219)  # 219 is asm-generic/unistd.h's
    if sys.maxsize < 2**32:
        number = _KEYCTL_32.get(MACHINE, number)
    if _syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        _raise()


# From each architecture's asm/unistd.h; a 32-bit program may run on a 64-bit machine's kernel.
_PIVOT_ROOT = {"x86_64": 155, "i686": 217, "i386": 217, "armv7l": 218, "ppc64le": 203, "s390x": 217}
_PIVOT_ROOT_32 = {"x86_64": 217, "aarch64": 218, "armv8l": 218}

_KEYCTL = {"x86_64": 250, "i686": 288, "i386": 288, "armv7l": 311, "ppc64le": 271, "s390x": 280}
_KEYCTL_32 = {"x86_64": 288, "aarch64": 311, "armv8l": 311}
_KEYCTL_JOIN_SESSION_KEYRING = 1  # linux/keyctl.h

# linux/landlock.h; these numbers are the same on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_NET_PORT = 2


def landlock_abi() -> int:
    """The version of Landlock; OSError when there is none."""
    version: int = _syscall(
        _LANDLOCK_CREATE_RULESET, None, c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION
    )
    if version < 0:
        _raise()
    return version


def landlock_create_ruleset(fs: int, net: int, scoped: int) -> int:
    """A ruleset that handles these rights. Attributes that are 0 at the end are left out, for older
    kernels.
    """
    words = [fs, net, scoped]
    while len(words) > 1 and words[-1] == 0:
        words.pop()
    attributes = struct.pack(f"={len(words)}Q", *words)
    fd: int = _syscall(_LANDLOCK_CREATE_RULESET, attributes, c_size_t(len(attributes)), 0)
    if fd < 0:
        _raise()
    return fd


def landlock_add_port(ruleset: int, access: int, port: int) -> None:
    """Grant TCP access to a port."""
    rule = struct.pack("=QQ", access, port)
    if _syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_NET_PORT, rule, 0) != 0:
        _raise()


def landlock_restrict_self(ruleset: int) -> None:
    """Put this process, for good, under a ruleset; it needs no_new_privs."""
    if _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
        _raise()


SIGNALFD_SIGINFO = 128  # sizeof(struct signalfd_siginfo)
SI_KERNEL = 0x80  # asm-generic/siginfo.h: sent by the kernel itself, the terminal's Ctrl-C for one
_SIGSET_BYTES = 128  # glibc's sigset_t; musl's is as large


def signalfd(signals: Iterable[int]) -> int:
    """A descriptor that yields ``signals`` (blocked already) as struct signalfd_siginfo,
    non-blocking.
    """
    bits = 0
    for number in signals:
        bits |= 1 << (number - 1)
    # A sigset_t is an array of native longs: on big-endian machines the words are swapped inside,
    # not among themselves.
    mask = b"".join(
        struct.pack("@L", (bits >> shift) & (2 ** (8 * struct.calcsize("@L")) - 1))
        for shift in range(0, 64, 8 * struct.calcsize("@L"))
    )
    fd: int = _signalfd(-1, mask.ljust(_SIGSET_BYTES, b"\0"), os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        _raise()
    return fd


def siginfo(record: bytes) -> tuple[int, int]:
    """Signal number and si_code of one struct signalfd_siginfo."""
    number, _, code = struct.unpack_from("=Iii", record)
    return number, code


def inotify(directory: str, mask: int) -> int:
    """A non-blocking inotify descriptor that watches one directory."""
    fd: int = _inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        _raise()
    if _inotify_add_watch(fd, os.fsencode(directory), mask) < 0:
        code = _errno()
        os.close(fd)
        raise OSError(code, os.strerror(code), directory)
    return fd


def inotify_names(records: bytes) -> list[str]:
    """The names in a read from an inotify descriptor: struct inotify_event, each followed by its
    padded name.
    """
    names, at = [], 0
    while at + 16 <= len(records):
        length = struct.unpack_from("=I", records, at + 12)[0]
        names.append(os.fsdecode(records[at + 16 : at + 16 + length].rstrip(b"\0")))
        at += 16 + length
    return names
