# SPDX-License-Identifier: GPL-2.0-or-later
"""What no relay, no monitor and no PID 1 may do, tried on a real kernel under each role's filter.

Each attempt is one system call by its number, so that the C library's choice of calls plays no
part. It is made more than once: in a fresh process without a filter, where it must work (otherwise
nothing would be shown), and in one that has a role's filter and no other layer of the sandbox,
where SIGSYS must end it.

Not among them: what an architecture's policy can't check, since the arguments lie behind a pointer
(PROT_EXEC in s390x's mmap). SECURITY.md tells of it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import signal
import socket
import struct
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hardsplice.kernel import linux
from hardsplice.model.roles import POLICIES
from hardsplice.sandbox import seccomp
from hardsplice.sandbox.policy.files import load_policy
from tests.arches import numbers
from tests.arches.tap import SkipCheck, Writer

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_PR_GET_DUMPABLE = 3
_AT_FDCWD = -100  # linux/fcntl.h
_PROT_ALL = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
# A relay has its monitor's filter besides its own.
_ALL = ("monitor", "init")
_NOT_MONITOR = ("relay", "init")
_NOT_INIT = ("monitor",)
_RELAY = ("relay",)
_DATAGRAMS = ("relay-udp", "monitor-udp")
# A kernel may be built without these, or have them switched off even for root.
_MAY_LACK = frozenset({errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Attempt:
    """One system call, made by a process that holds what `arguments` opens."""

    name: str
    call: str
    arguments: Callable[[], tuple[int, ...]]
    roles: tuple[str, ...] = _ALL
    everywhere: bool = True  # every kernel can do this


# --- what attempts are made with ------------------------------------------------------------------
# All of this is made in a process that lives for one attempt, before its filter is in force.

_KEPT: list[mmap.mmap] = []


def _room(contents: bytes = b"") -> int:
    """The address of a page of memory with these contents."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[: len(contents)] = contents
    _KEPT.append(page)
    return ctypes.addressof(ctypes.c_char.from_buffer(page))


def _longs(*values: int) -> int:
    """The address of an array of longs, or of pointers."""
    return _room(struct.pack(f"@{len(values)}L", *values))


def _clone_args() -> int:
    """struct clone_args that makes what fork does."""
    return _room(struct.pack("=8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0))


def _bpf_map() -> int:
    """union bpf_attr for an array of one word."""
    return _room(struct.pack("=4I", 2, 4, 4, 1))


def _high(fd: int) -> int:
    """The same file at a number that no policy names."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD, 20)


def _pipe() -> tuple[int, int]:
    """Both ends of a pipe with something in it."""
    read, write = map(_high, os.pipe())
    os.write(write, b"payload")
    return read, write


def _pair() -> int:
    """One end of a connection that has something to read."""
    ours, theirs = socket.socketpair()
    theirs.send(b"payload")
    theirs.detach()
    return _high(ours.detach())


def _tcp() -> int:
    return _high(socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach())


def _listener() -> int:
    """A listener with a client in its queue."""
    listener = socket.create_server(("127.0.0.1", 0))
    socket.create_connection(listener.getsockname()).detach()
    return _high(listener.detach())


def _datagrams() -> int:
    """A connected UDP socket that has something to read."""
    ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for one in (ours, theirs):
        one.bind(("127.0.0.1", 0))
    ours.connect(theirs.getsockname())
    theirs.sendto(b"payload", ours.getsockname())
    theirs.detach()
    return _high(ours.detach())


def _messages() -> int:
    """struct mmsghdr with one iovec."""
    return _longs(0, 0, _iovec(), 1, 0, 0, 0, 0)


def _file() -> int:
    return _high(os.open("/proc/self/exe", os.O_RDONLY))


def _iovec() -> int:
    """struct iovec of two bytes."""
    return _longs(_room(), 2)


def _message() -> int:
    """struct msghdr with one iovec."""
    return _longs(0, 0, _iovec(), 1, 0, 0, 0)


def _local_address() -> int:
    """struct sockaddr_in of the loopback, any port."""
    return _room(struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 0, b"\x7f\0\0\1"))


def _address() -> int:
    """The same with a port."""
    return _room(struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 9, b"\x7f\0\0\1"))


def _program() -> tuple[int, int, int]:
    """What execve needs to run this Python for nothing."""
    words = [_room(word) for word in (b"python3", b"-I", b"-S", b"-c", b"0")]
    return _room(b"/proc/self/exe"), _longs(*words, 0), _longs(0)


def _new_process(flags: int, arch: str) -> tuple[int, ...]:
    """clone's arguments, whose order differs: CONFIG_CLONE_BACKWARDS2."""
    return (0, flags, 0, 0, 0) if arch == "s390x" else (flags, 0, 0, 0, 0)


# --- the attempts ---------------------------------------------------------------------------------


def attempts(arch: str) -> list[Attempt]:
    """Those that can be made on an architecture."""
    known = numbers.of(arch)
    table = [
        # files
        Attempt("open", "open", lambda: (_room(b"/proc/self/exe"), 0)),
        Attempt("openat", "openat", lambda: (_AT_FDCWD, _room(b"/proc/self/exe"), 0)),
        Attempt("mkdirat", "mkdirat", lambda: (_AT_FDCWD, _room(b"/tmp/%d" % os.getpid()), 0o700)),
        Attempt("memfd_create", "memfd_create", lambda: (_room(b"x"), 0)),
        Attempt("chroot", "chroot", lambda: (_room(b"/"),)),
        Attempt("mount", "mount", lambda: (_room(b"x"), _room(b"/run"), _room(b"tmpfs"), 0, 0)),
        # programs and processes
        Attempt("execve", "execve", _program),
        Attempt("clone", "clone", lambda: _new_process(signal.SIGCHLD, arch)),
        Attempt(
            "clone, with a new namespace",
            "clone",
            lambda: _new_process(linux.CLONE_NEWUTS | signal.SIGCHLD, arch),
        ),
        Attempt("clone3", "clone3", lambda: (_clone_args(), 64)),
        Attempt("kill", "kill", lambda: (os.getpid(), 0), _NOT_INIT),
        Attempt("tgkill", "tgkill", lambda: (os.getpid(), os.getpid(), 0)),
        Attempt("ptrace", "ptrace", lambda: (0, 0, 0, 0)),
        Attempt(
            "process_vm_readv",
            "process_vm_readv",
            lambda: (os.getpid(), _iovec(), 1, _iovec(), 1, 0),
        ),
        Attempt(
            "process_vm_writev",
            "process_vm_writev",
            lambda: (os.getpid(), _iovec(), 1, _iovec(), 1, 0),
        ),
        Attempt("pidfd_getfd", "pidfd_getfd", lambda: (_high(os.pidfd_open(os.getpid())), 0, 0)),
        Attempt("prctl", "prctl", lambda: (_PR_GET_DUMPABLE, 0, 0, 0, 0)),
        Attempt("personality", "personality", lambda: (0xFFFFFFFF,)),
        Attempt("setresuid", "setresuid", lambda: (-1, -1, -1)),
        # namespaces
        Attempt("setns", "setns", lambda: (os.open("/proc/self/ns/net", os.O_RDONLY), 0)),
        Attempt("unshare", "unshare", lambda: (linux.CLONE_NEWUTS,)),
        # memory
        Attempt("mprotect, executable", "mprotect", lambda: (_room(), mmap.PAGESIZE, _PROT_ALL)),
        # sockets
        Attempt("socket", "socket", lambda: (socket.AF_INET, socket.SOCK_STREAM, 0), _NOT_MONITOR),
        Attempt("socket, UDP", "socket", lambda: (socket.AF_INET, socket.SOCK_DGRAM, 0)),
        Attempt("socket, local", "socket", lambda: (socket.AF_UNIX, socket.SOCK_STREAM, 0)),
        Attempt("socket, netlink", "socket", lambda: (socket.AF_NETLINK, socket.SOCK_RAW, 0)),
        Attempt("socket, raw", "socket", lambda: (socket.AF_INET, socket.SOCK_RAW, 1)),
        Attempt("bind", "bind", lambda: (_tcp(), _local_address(), 16)),
        Attempt("listen", "listen", lambda: (_tcp(), 1)),
        Attempt("shutdown, to read", "shutdown", lambda: (_pair(), socket.SHUT_RD)),
        Attempt(
            "setsockopt, another option",
            "setsockopt",
            lambda: (_tcp(), socket.SOL_SOCKET, socket.SO_SNDBUF, _room(b"\0\1\1\0"), 4),
        ),
        # payload
        Attempt("read", "read", lambda: (_pipe()[0], _room(), 2), _RELAY),
        Attempt("readv", "readv", lambda: (_pipe()[0], _iovec(), 1)),
        Attempt("pread64", "pread64", lambda: (_file(), _room(), 2, 0, 0, 0)),
        Attempt("write, to another descriptor", "write", lambda: (_pipe()[1], _room(), 2)),
        Attempt("writev", "writev", lambda: (_pipe()[1], _iovec(), 1)),
        Attempt("recvfrom, two bytes", "recvfrom", lambda: (_pair(), _room(), 2, 0, 0, 0)),
        Attempt("sendto, two bytes", "sendto", lambda: (_pair(), _room(), 2, 0, 0, 0)),
        Attempt("recvmsg, elsewhere", "recvmsg", lambda: (_pair(), _message(), 0), _NOT_MONITOR),
        Attempt("sendmsg, elsewhere", "sendmsg", lambda: (_pair(), _message(), 0), _NOT_MONITOR),
        Attempt("sendmmsg", "sendmmsg", lambda: (_pair(), _longs(*(8 * (0,))), 0, 0)),
        Attempt("tee", "tee", lambda: (_pipe()[0], _pipe()[1], 2, 0)),
        Attempt("vmsplice", "vmsplice", lambda: (_pipe()[1], _iovec(), 1, 0)),
        # descriptors
        Attempt("dup", "dup", lambda: (0,)),
        Attempt("fcntl", "fcntl64" if "fcntl64" in known else "fcntl", lambda: (0, 0, 30)),
        Attempt("ioctl", "ioctl", lambda: (_pipe()[0], termios.FIONREAD, _room())),
        # the rest of the kernel
        Attempt("bpf", "bpf", lambda: (0, _bpf_map(), 16), everywhere=False),
        Attempt("io_uring_setup", "io_uring_setup", lambda: (1, _room()), everywhere=False),
        Attempt("userfaultfd", "userfaultfd", lambda: (0,), everywhere=False),
        Attempt("keyctl", "keyctl", lambda: (0, -3, 1, 0, 0), everywhere=False),
    ]
    table += _of_datagrams("recvmmsg_time64" if "recvmmsg_time64" in known else "recvmmsg")
    if arch != "s390x":
        call = "mmap2" if "mmap2" in known else "mmap"
        table.append(
            Attempt(
                "mmap, executable",
                call,
                lambda: (0, mmap.PAGESIZE, _PROT_ALL, _ANONYMOUS, 0xFFFFFFFF, 0),
            )
        )
    if arch == "i686":
        table.append(
            Attempt(
                "mmap, the old one",
                "mmap",
                lambda: (_longs(0, mmap.PAGESIZE, _PROT_ALL, _ANONYMOUS, 0xFFFFFFFF, 0),),
            )
        )
    if "socketcall" in known:
        table += _through_socketcall()
    return [attempt for attempt in table if attempt.call in known]


def _of_datagrams(receiving: str) -> list[Attempt]:
    """What a datagram relay does, in ways in which it may not do it."""
    sent = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    return [
        Attempt(
            "sendmmsg, from a flow", "sendmmsg", lambda: (_datagrams(), _messages(), 1, sent),
            _DATAGRAMS,
        ),
        Attempt(
            "sendto, with an address", "sendto",
            lambda: (_datagrams(), _room(), 2, sent, _address(), 16),
            _DATAGRAMS,
        ),
        Attempt(
            "send, to be held back", "sendto",
            lambda: (_datagrams(), _room(), 2, sent | socket.MSG_MORE, 0, 0), _DATAGRAMS,
        ),
        Attempt("writev, elsewhere", "writev", lambda: (1, _iovec(), 0), _DATAGRAMS),
        Attempt(
            f"{receiving}, to peek", receiving,
            lambda: (_datagrams(), _messages(), 1, socket.MSG_DONTWAIT | socket.MSG_PEEK, 0),
            _DATAGRAMS,
        ),
        Attempt(
            f"{receiving}, with a timeout", receiving,
            lambda: (_datagrams(), _messages(), 1, socket.MSG_DONTWAIT, _room()), _DATAGRAMS,
        ),
        Attempt(
            "socket, UDP that blocks", "socket", lambda: (socket.AF_INET, socket.SOCK_DGRAM, 0),
            _DATAGRAMS,
        ),
        Attempt(
            "setsockopt, a cork", "setsockopt",
            lambda: (_datagrams(), socket.IPPROTO_UDP, 1, _room(b"\0\0\0\0"), 4), _DATAGRAMS,
        ),
    ]  # fmt: skip


def _through_socketcall() -> list[Attempt]:
    """Sub-calls by their numbers in linux/net.h."""
    stream, datagram = ((socket.AF_INET, kind, 0) for kind in (1, 2))  # linux/net.h
    local = (socket.AF_UNIX, socket.SOCK_SEQPACKET, 0)
    return [
        Attempt("socketcall: socket", "socketcall", lambda: (1, _longs(*stream))),
        Attempt("socketcall: socket, UDP", "socketcall", lambda: (1, _longs(*datagram))),
        Attempt("socketcall: socketpair", "socketcall", lambda: (8, _longs(*local, _room()))),
        Attempt("socketcall: sendmsg", "socketcall", lambda: (16, _longs(_pair(), _message(), 0))),
        Attempt("socketcall: recvmsg", "socketcall", lambda: (17, _longs(_pair(), _message(), 0))),
        Attempt(
            "socketcall: bind",
            "socketcall",
            lambda: (2, _longs(_tcp(), _local_address(), 16)),
        ),
        Attempt("socketcall: listen", "socketcall", lambda: (4, _longs(_tcp(), 1))),
        Attempt("socketcall: accept", "socketcall", lambda: (5, _longs(_listener(), 0, 0))),
        Attempt(
            "socketcall: sendmmsg",
            "socketcall",
            lambda: (20, _longs(_pair(), _room(), 0, 0)),
            (*_ALL, *_DATAGRAMS),
        ),
        Attempt(
            "socketcall: recvmmsg",
            "socketcall",
            lambda: (19, _longs(_datagrams(), _messages(), 1, socket.MSG_DONTWAIT, 0)),
            (*_ALL, *_DATAGRAMS),
        ),
        Attempt(
            "socketcall: sendto",
            "socketcall",
            lambda: (11, _longs(_datagrams(), _room(), 2, 0, _address(), 16)),
            (*_ALL, *_DATAGRAMS),
        ),
    ]


# --- trying ---------------------------------------------------------------------------------------


def try_it(attempt: Attempt, number: int, program: bytes | None) -> int:
    """Make the attempt in a process of its own: 0 when it worked, an errno, or -SIGSYS.

    -1 when not even what it needs could be made.
    """
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            arguments = [ctypes.c_long(argument) for argument in attempt.arguments()]
            if program is not None:
                linux.prctl(_PR_SET_NO_NEW_PRIVS, 1)
                linux.set_seccomp_filter(program)
            ctypes.set_errno(0)
            failed = _libc.syscall(ctypes.c_long(number), *arguments) == -1
            status = ctypes.get_errno() if failed else 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return -1 if status == 255 else status


def judge(attempt: Attempt, number: int, programs: Mapping[str, bytes]) -> None:
    """It works without a filter, and with any role's filter SIGSYS ends the process."""
    for role in attempt.roles:
        status = try_it(attempt, number, programs[role])
        assert status == -signal.SIGSYS, f"{role}: {_told(status)} instead of SIGSYS"
    status = try_it(attempt, number, None)
    if status in _MAY_LACK and not attempt.everywhere:
        raise SkipCheck(f"killed, but {_told(status)} without a filter too")
    assert status == 0, f"without a filter: {_told(status)}"


def _told(status: int) -> str:
    if status < -1:
        return signal.Signals(-status).name
    if status == -1:
        return "a failure to prepare"
    return errno.errorcode.get(status, "success") if status else "success"


def run(report: Writer, arch: str) -> None:
    """Try everything."""
    known = numbers.of(arch)
    programs = {role: seccomp.compile_policy(load_policy(role), arch) for role in POLICIES}
    for attempt in attempts(arch):
        check = functools.partial(judge, attempt, known[attempt.call], programs)
        report.check(f"forbidden: {attempt.name}", check)
