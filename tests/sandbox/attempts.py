# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways out of the sandbox, one row each: what is tried, by which process, and what comes of it.

Each is tried by system calls made directly, as machine code in a process that was taken over
would make them: neither the C library's choice of calls nor the tripwire in the interpreter
(hardsplice.sandbox.tripwire) takes part.

`SIGSYS`, which is what a row expects unless it says otherwise, means that the filter killed the
process; a name of errno, that the call got through the filter and another layer refused it;
WORKS, that it succeeded. Beside it stands what the same attempt does without the sandbox: it
WORKS, or at least REACHES the kernel, for calls whose success would harm the machine, or that
some kernels refuse for reasons of their own.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from hardsplice.ipc.channel import Channel
from hardsplice.kernel import linux, socketcalls
from hardsplice.monitor import supply
from tests.sandbox.job import ROLES, Job

SIGSYS, WORKS, REACHES = "SIGSYS", "works", "reaches"
RELAYS = ("relay-in", "relay-out")
DATAGRAM_RELAYS = ("udp-in", "udp-out")
MONITORS = ("namespace", "host")
SERVING = (*RELAYS, *MONITORS)
_NO_MONITORS = (*RELAYS, *DATAGRAM_RELAYS, "init", "guard")
LOOPBACK = IPv4Address("127.0.0.1")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# linux/fcntl.h, linux/mman.h, linux/shm.h, linux/tcp.h and the like: what Python lacks.
_AT_FDCWD, _AT_EMPTY_PATH, _O_PATH = -100, 0x1000, 0o10000000
_RWX, _RX, _RW = 7, 5, 3
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_MSG_FASTOPEN, _IPPROTO_MPTCP = 0x20000000, 262
_FLAGS = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT  # what monitors send with
_POOLED = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

# asm/unistd_64.h of x86_64; other architectures' kernels have their say in tests/arches.
NUMBERS: Mapping[str, int] = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "mmap": 9, "mprotect": 10,
    "pread64": 17, "readv": 19, "writev": 20, "pipe": 22, "shmget": 29, "shmat": 30, "dup": 32,
    "dup2": 33, "getpid": 39, "sendfile": 40, "socket": 41, "connect": 42, "accept": 43,
    "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "shutdown": 48, "bind": 49,
    "listen": 50, "socketpair": 53, "setsockopt": 54, "getsockopt": 55, "clone": 56, "fork": 57,
    "vfork": 58, "execve": 59, "kill": 62, "fcntl": 72, "chdir": 80, "readlink": 89,
    "mkdir": 83, "unlink": 87, "chmod": 90, "ptrace": 101, "setuid": 105, "capset": 126,
    "rt_sigqueueinfo": 129, "personality": 135, "prctl": 157, "arch_prctl": 158, "chroot": 161,
    "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169, "sethostname": 170, "iopl": 172,
    "init_module": 175, "quotactl": 179, "tkill": 200, "sched_setaffinity": 203,
    "io_setup": 206, "epoll_create": 213, "tgkill": 234, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "inotify_init1": 294, "openat": 257, "mkdirat": 258,
    "mknodat": 259, "newfstatat": 262, "unshare": 272, "splice": 275, "tee": 276,
    "vmsplice": 278, "signalfd4": 289, "timerfd_create": 283, "eventfd2": 290,
    "epoll_create1": 291, "dup3": 292, "pipe2": 293, "preadv": 295, "rt_tgsigqueueinfo": 297,
    "perf_event_open": 298, "recvmmsg": 299, "fanotify_init": 300, "prlimit64": 302,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "sendmmsg": 307, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
    "seccomp": 317, "memfd_create": 319, "bpf": 321, "execveat": 322, "userfaultfd": 323,
    "copy_file_range": 326, "pkey_mprotect": 329, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "pidfd_send_signal": 424, "pidfd_open": 434, "clone3": 435, "openat2": 437,
    "pidfd_getfd": 438, "process_madvise": 440, "landlock_create_ruleset": 444,
    "memfd_secret": 447, "ioctl": 16, "accept4": 288, "pivot_root": 155, "setresuid": 117,
    "modify_ldt": 154, "getrandom": 318, "setgroups": 116, "munmap": 11, "mremap": 25,
    "getsockname": 51, "remap_file_pages": 216, "close_range": 436,
}  # fmt: skip
X32 = 0x40000000  # __X32_SYSCALL_BIT


# --- memory that attempts use: made while this module is imported ---------------------------------

_room = ctypes.create_string_buffer(1 << 16)
_used = 0
_pages = mmap.mmap(-1, 4 * mmap.PAGESIZE)
PAGES = ctypes.addressof(ctypes.c_char.from_buffer(_pages))


def place(contents: bytes) -> int:
    """The address of a copy of these bytes."""
    global _used
    at = -(-_used // 16) * 16
    ctypes.memmove(ctypes.addressof(_room) + at, contents, len(contents))
    _used = at + len(contents) + 1
    return ctypes.addressof(_room) + at


def longs(*values: int) -> int:
    """The address of an array of longs, or of pointers."""
    return place(struct.pack(f"@{len(values)}q", *values))


def sockaddr(port: int) -> bytes:
    return socketcalls.sockaddr(LOOPBACK, port)


_BUFFER = place(b"made-up payload")
_IOVEC = longs(_BUFFER, 8)
_MESSAGE = longs(0, 0, _IOVEC, 1, 0, 0, 0)
_MESSAGES = longs(0, 0, _IOVEC, 1, 0, 0, 0, 0)  # struct mmsghdr
_PROGRAM = place(b"/bin/true")
_ARGUMENTS = longs(_PROGRAM, 0)
_NOTHING = longs(0, 0, 0, 0, 0, 0, 0, 0)
_ZEROS = place(bytes(256))
_LIMIT = longs(1024, 1024)
_LINGER = place(struct.pack("ii", 0, 0))
_PATHS = {
    text: place(text.encode())
    for text in ("/", "/proc", "/proc/self/mem", "/etc/passwd", "etc/passwd", "x", "")
}


class NotMadeError(Exception):
    """Something that an attempt needs could not be had, so that it proves nothing."""


@dataclass
class Scene:
    """What a process that makes attempts finds."""

    job: Job
    channel: Channel | None = None  # a relay's
    parent: int = 0  # its monitor
    listeners: tuple[int, ...] = ()
    server: int = -1  # the socket of a server of many containers' ports
    props: dict[str, int] = field(default_factory=dict)
    helper: ctypes.CDLL | None = None

    def gather(self, first: int) -> None:
        """Open what no process of hardsplice has: descriptors that would make a way out easy. They
        get numbers from ``first`` on.
        """
        opened = {
            "net": os.open("/proc/self/ns/net", os.O_RDONLY),
            "file": os.open("/etc/passwd", os.O_RDONLY),
            "root": os.open("/", _O_PATH | os.O_DIRECTORY),
            "program": os.open("/bin/true", os.O_RDONLY),
            "memory": os.memfd_create("code", 0),
            "victim": os.pidfd_open(self.job.victim),
            "datagram": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
            "stream": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach(),
            "packets": socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach(),
        }
        os.ftruncate(opened["memory"], mmap.PAGESIZE)
        for name, fd in opened.items():
            self.props[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first + 200)
            os.close(fd)

    def pooled(self) -> int:
        """A socket that is not connected: from its pool for a relay, a new TCP socket elsewhere."""
        if self.job.role not in (*RELAYS, *DATAGRAM_RELAYS):
            return supply.open_socket(0)
        assert self.channel is not None
        record = self.channel.receive()
        if record is None or not record.fds:
            raise NotMadeError("no pooled socket")
        return record.fds[0]

    def client(self) -> int:
        """A client's connection, with payload to be read."""
        deadline = time.monotonic() + 1.0
        while (fd := socketcalls.accept4(self.listeners[0])) < 0:
            if time.monotonic() > deadline:
                raise NotMadeError(f"no client: errno {-fd}")
        while (byte := socketcalls.receive_byte(fd, socket.MSG_PEEK)) == -errno.EAGAIN:
            if time.monotonic() > deadline:
                raise NotMadeError("the client sent nothing")
        if not byte:
            raise NotMadeError("the client has gone")
        return fd

    def pair(self) -> tuple[int, int]:
        """A pipe with nothing in it."""
        return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


def raw(number: int, *arguments: int) -> int:
    """A system call by its number: its result, or the negated errno."""
    result: int = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return result if result != -1 else -ctypes.get_errno() or -1


def call(name: str, *arguments: int) -> int:
    """A system call by its name."""
    return raw(NUMBERS[name], *arguments)


def make(attempt: str, scene: Scene) -> int:
    """Make the attempt; its result, or the negated errno."""
    kind, _, what = attempt.partition(":")
    if kind == "row":
        return ROWS[what].make(scene)
    if kind == "int80":
        assert scene.helper is not None
        result: int = scene.helper.int80(int(what), *(6 * [-1]))
        return result
    return raw(int(what) | (X32 if kind == "x32" else 0), *(6 * [-1]))


# --- the rows -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One way out."""

    name: str
    make: Callable[[Scene], int]
    roles: tuple[str, ...] = ROLES
    bare: str = WORKS
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # by role: where it isn't SIGSYS
    dynamic: Mapping[str, str] = field(default_factory=dict)  # the same, where ports may change
    udp: Mapping[str, str] = field(default_factory=dict)  # the same, where UDP is forwarded
    clients: bool = False  # needs a client's connection
    server: bool = False  # is of the server of many containers' ports only

    def expected(self, role: str, *, dynamic: bool = False, udp: bool = False) -> str:
        """What comes of it in the sandbox: SIGSYS, WORKS, or a name of errno or of a signal."""
        usual = self.elsewhere.get(role, SIGSYS)
        usual = self.udp.get(role, usual) if udp else usual
        return self.dynamic.get(role, usual) if dynamic else usual


def _simple(name: str, *arguments: int, bare: str = WORKS, as_: str = "") -> Row:
    """A call that no role may make, with fixed arguments."""
    return Row(as_ or name, lambda _: call(name, *arguments), bare=bare)


def _files() -> list[Row]:
    path = _PATHS
    handle = longs(64, *(8 * [0]))
    return [
        *(
            _simple("open", path[one], 0, as_=f"open {one}")
            for one in ("/", "/proc", "/etc/passwd")
        ),
        _simple("open", path["/proc/self/mem"], 0, as_="open /proc/self/mem", bare=REACHES),
        *(
            _simple("openat", _AT_FDCWD, path[one], 0, as_=f"openat {one}")
            for one in ("/", "/proc", "/etc/passwd")
        ),
        _simple("openat2", _AT_FDCWD, path["/"], _NOTHING, 24),
        Row(
            "openat below a folder that was left open",
            lambda scene: call("openat", scene.props["root"], path["etc/passwd"], 0),
        ),
        Row("read an open file", lambda scene: call("pread64", scene.props["file"], _ZEROS, 8, 0)),
        _simple("stat", path["/"], _ZEROS),
        _simple("newfstatat", _AT_FDCWD, path["/"], _ZEROS, 0),
        _simple("name_to_handle_at", _AT_FDCWD, path["/"], handle, _ZEROS, 0, bare=REACHES),
        _simple("open_by_handle_at", _AT_FDCWD, handle, 0, bare=REACHES),
        _simple("mkdir", path["/proc"], 0, bare=REACHES),
        _simple("unlink", path["/"], bare=REACHES),
        _simple("mknodat", _AT_FDCWD, path[""], 0, 0, bare=REACHES),
        _simple("chdir", path["/"]),
        _simple("chroot", path["/"], bare=REACHES),
        _simple("mount", 0, path[""], 0, 0, 0, bare=REACHES),
        _simple("umount2", path[""], 0, bare=REACHES),
        _simple("pivot_root", path[""], path[""], bare=REACHES),
        _simple("open_tree", _AT_FDCWD, path["/"], 0, bare=REACHES),
        _simple("fsopen", path["x"], 0, bare=REACHES),
        _simple("memfd_create", path["x"], 0),
        _simple("memfd_secret", 0, bare=REACHES),
        _simple("inotify_init1", 0),
        _simple("fanotify_init", 0, 0, bare=REACHES),
    ]


def _programs() -> list[Row]:
    signal_number = signal.SIGCHLD
    return [
        _simple("execve", _PROGRAM, _ARGUMENTS, _ZEROS, bare=REACHES),
        Row(
            "execveat, of a program that was left open",
            lambda scene: call(
                "execveat", scene.props["program"], _PATHS[""], _ARGUMENTS, _ZEROS, _AT_EMPTY_PATH
            ),
            bare=REACHES,
        ),
        _simple("fork"),
        _simple(
            "clone", linux.CLONE_NEWUSER | signal_number, 0, 0, 0, 0, as_="clone, user namespace"
        ),
        _simple("clone", signal_number, 0, 0, 0, 0, as_="clone, other flags"),
        _simple("clone3", longs(0, 0, 0, 0, signal_number, 0, 0, 0), 64),
        Row(
            "clone, as a monitor forks",
            lambda _: call("clone", 0x01200000 | signal_number, 0, 0, _ZEROS, 0),
            roles=_NO_MONITORS,
        ),
        Row("getpid", lambda _: call("getpid"), roles=_NO_MONITORS),
        _simple("setuid", 0, bare=REACHES),
        _simple("setresuid", 0, 0, 0, bare=REACHES),
        _simple("setgroups", 0, 0, bare=REACHES),
        _simple("capset", longs(0x20080522), _ZEROS, bare=REACHES),
        _simple("personality", 0xFFFFFFFF),
        _simple("prctl", 4, 1, 0, 0, 0, as_="prctl, be dumpable again"),
        _simple("prctl", 47, 2, 0, 0, 0, as_="prctl, raise an ambient capability", bare=REACHES),
        _simple("arch_prctl", 0x1003, _ZEROS, as_="arch_prctl"),
        _simple("modify_ldt", 0, _ZEROS, 8),
        _simple("iopl", 0, bare=REACHES),
        _simple("seccomp", 2, 0, longs(0x7FFF0000), as_="seccomp", bare=REACHES),
    ]


def _others() -> list[Row]:
    """Other processes, first of all the monitor."""

    def parent(name: str, *more: int) -> Callable[[Scene], int]:
        return lambda scene: call(name, scene.parent, *more)

    def victim(name: str, *more: int) -> Callable[[Scene], int]:
        return lambda scene: call(name, scene.job.victim, *more)

    outside, every = "a process outside", (*RELAYS, *DATAGRAM_RELAYS)
    return [
        Row("ptrace of the monitor", lambda s: call("ptrace", 0x4206, s.parent, 0, 0), every),
        Row(
            "process_vm_readv of the monitor",
            parent("process_vm_readv", _IOVEC, 1, longs(PAGES, 8), 1, 0),
            every,
        ),
        Row(
            "process_vm_writev to the monitor",
            parent("process_vm_writev", _IOVEC, 1, longs(PAGES, 8), 1, 0),
            every,
        ),
        Row("kill the monitor", parent("kill", 0), every),
        Row("pidfd_open of the monitor", parent("pidfd_open", 0), every),
        Row("the limits of the monitor", parent("prlimit64", 7, 0, _ZEROS), every),
        Row(
            f"kill {outside}",
            victim("kill", 0),
            # PID 1 may kill, but in its PID namespace nobody else has a number.
            elsewhere={"init": "ESRCH"},
            bare=REACHES,
        ),
        # To which whoever started hardsplice belongs.
        Row("kill the process group", lambda s: call("kill", 0, 0), bare=WORKS),
        Row("kill it, as 64 bits", lambda s: call("kill", 1 << 32, 0), bare=WORKS),
        Row("kill all", lambda s: call("kill", -1, 0), bare=REACHES),
        Row(f"tkill {outside}", victim("tkill", 0), bare=REACHES),
        Row(
            f"tgkill {outside}",
            lambda s: call("tgkill", s.job.victim, s.job.victim, 0),
            bare=REACHES,
        ),
        Row(f"rt_sigqueueinfo to {outside}", victim("rt_sigqueueinfo", 0, _ZEROS), bare=REACHES),
        Row(
            f"pidfd_send_signal to {outside}",
            lambda s: call("pidfd_send_signal", s.props["victim"], 0, 0, 0),
            bare=REACHES,
        ),
        Row(
            f"SIGKILL to {outside}, by the one signal call that a monitor has",
            lambda s: call("pidfd_send_signal", s.props["victim"], signal.SIGKILL, 0, 0),
            roles=MONITORS,
            elsewhere=dict.fromkeys(MONITORS, "EPERM"),  # Landlock's scope
        ),
        Row(
            f"prlimit64 of {outside}",
            victim("prlimit64", 7, 0, _ZEROS),
            roles=SERVING,
            bare=REACHES,
        ),
        Row(
            f"ptrace of {outside}",
            lambda s: call("ptrace", 0x4206, s.job.victim, 0, 0),
            bare=REACHES,
        ),
        Row(
            f"sched_setaffinity of {outside}", victim("sched_setaffinity", 8, _ZEROS), bare=REACHES
        ),
        Row("pidfd_getfd", lambda s: call("pidfd_getfd", s.props["victim"], 0, 0), bare=REACHES),
        Row("kcmp", lambda s: call("kcmp", s.job.victim, s.job.victim, 0, 0, 0), bare=REACHES),
        Row(
            "setns to the host",
            lambda s: call("setns", s.props["net"], linux.CLONE_NEWNET),
            bare=REACHES,
        ),
        *(
            _simple("unshare", flag, as_=f"unshare {name}", bare=REACHES)
            for name, flag in (
                ("user", linux.CLONE_NEWUSER),
                ("net", linux.CLONE_NEWNET),
                ("mnt", linux.CLONE_NEWNS),
                ("nothing", 0),
            )
        ),
    ]


def _kernel() -> list[Row]:
    """Doors to the rest of the kernel."""
    path = _PATHS["x"]
    return [
        _simple("io_uring_setup", 1, _ZEROS, bare=REACHES),
        _simple("io_uring_enter", -1, 0, 0, 0, 0, bare=REACHES),
        _simple("io_uring_register", -1, 0, 0, 0, bare=REACHES),
        _simple("io_setup", 1, _NOTHING, bare=REACHES),
        _simple("bpf", 0, place(struct.pack("=4I", 2, 4, 4, 1)), 16, bare=REACHES),
        _simple("userfaultfd", 0, bare=REACHES),
        _simple("keyctl", 0, -3, 1, 0, 0, bare=REACHES),
        _simple("add_key", path, path, 0, 0, -3, bare=REACHES),
        _simple("request_key", path, path, 0, -3, bare=REACHES),
        _simple("perf_event_open", _ZEROS, 0, -1, -1, 0, bare=REACHES),
        _simple("init_module", 0, 0, 0, bare=REACHES),
        _simple("finit_module", -1, 0, 0, bare=REACHES),
        _simple("kexec_load", 0, -1, 0, -1, bare=REACHES),
        _simple("reboot", 0, 0, 0, 0, bare=REACHES),
        _simple("swapon", path, 0, bare=REACHES),
        _simple("quotactl", -1, 0, 0, 0, bare=REACHES),
        _simple("sethostname", 0, -1, bare=REACHES),
        _simple("landlock_create_ruleset", 0, 0, 1, bare=REACHES),
        _simple("eventfd2", 0, 0),
        _simple("timerfd_create", 1, 0),
        _simple("signalfd4", -1, _ZEROS, 8, 0),
        _simple("epoll_create", 1),
        _simple("getrandom", _ZEROS, 8, 0, as_="getrandom, blocking"),
    ]


def _memory() -> list[Row]:
    """Memory that can be executed."""

    def shared(_: Scene) -> int:
        number = call("shmget", 0, mmap.PAGESIZE, 0o700)
        attached = call("shmat", number, 0, 0o100000) if number >= 0 else number  # SHM_EXEC
        _libc.shmctl(number, 0, 0)  # IPC_RMID
        return attached

    return [
        _simple(
            "mmap", 0, mmap.PAGESIZE, _RWX, _ANONYMOUS, -1, 0, as_="mmap, writable and executable"
        ),
        _simple("mmap", 0, mmap.PAGESIZE, _RX, _ANONYMOUS, -1, 0, as_="mmap, executable"),
        Row(
            "mmap of a file, executable",
            lambda s: call("mmap", 0, mmap.PAGESIZE, _RX, mmap.MAP_PRIVATE, s.props["program"], 0),
        ),
        Row(
            "mmap of a memfd, executable",
            lambda s: call("mmap", 0, mmap.PAGESIZE, _RX, mmap.MAP_SHARED, s.props["memory"], 0),
        ),
        _simple("mprotect", PAGES, mmap.PAGESIZE, _RX, as_="mprotect, executable"),
        _simple("mprotect", PAGES, mmap.PAGESIZE, _RWX, as_="mprotect, writable and executable"),
        _simple("pkey_mprotect", PAGES, mmap.PAGESIZE, _RX, -1, as_="pkey_mprotect, executable"),
        Row("shmat, executable", shared),
        _simple("process_madvise", -1, _IOVEC, 1, 4, 0, bare=REACHES),
    ]


def _sockets() -> list[Row]:
    def by_fast_open(scene: Scene) -> int:
        address = sockaddr(scene.job.ports["other"])
        message = longs(place(address), len(address), _IOVEC, 1, 0, 0, 0)
        result = call("sendmsg", scene.pooled(), message, _MSG_FASTOPEN)
        return 0 if result == -errno.EINPROGRESS else result

    def at_channel(scene: Scene) -> int:
        """As by_fast_open, with the socket in the place that the channel has."""
        if call("dup3", scene.pooled(), 3, 0) < 0:
            raise NotMadeError("dup3")
        address = sockaddr(scene.job.ports["other"])
        message = longs(place(address), len(address), _IOVEC, 1, 0, 0, 0)
        result = call("sendmsg", 3, message, _MSG_FASTOPEN)
        return 0 if result == -errno.EINPROGRESS else result

    def bind(scene: Scene) -> int:
        return call("bind", scene.pooled(), place(sockaddr(0)), 16)

    def listen(scene: Scene) -> int:
        return call("listen", scene.pooled(), 1)

    def local(scene: Scene, kind: str) -> bytes:
        """struct sockaddr_un of an abstract socket that a process outside serves."""
        return struct.pack("=H", socket.AF_UNIX) + f"\0{scene.job.abstract}-{kind}".encode()

    def abstract(scene: Scene) -> int:
        address = local(scene, "stream")
        return call("connect", scene.props["stream"], place(address), len(address))

    def abstract_datagram(scene: Scene) -> int:
        address = local(scene, "datagram")
        message = longs(place(address), len(address), _IOVEC, 1, 0, 0, 0)
        return call("sendmsg", scene.props["datagram"], message, _FLAGS)

    return [
        *(
            _simple("socket", family, kind, 0, as_=f"socket, family {family}, {name}", bare=REACHES)
            for family in range(1, 46)
            for name, kind in (("stream", socket.SOCK_STREAM), ("raw", socket.SOCK_RAW))
        ),
        *(
            _simple(
                "socket", socket.AF_INET, _POOLED, protocol, as_=f"socket, {name}", bare=REACHES
            )
            for name, protocol in (
                ("MPTCP, on which Landlock has no say", _IPPROTO_MPTCP),
                ("SCTP", 132),
                ("SMC", 256),
            )
        ),
        _simple(
            "socketpair", socket.AF_UNIX, socket.SOCK_STREAM, 0, _ZEROS, as_="socketpair, stream"
        ),
        Row("connect to another port by TCP fast open", by_fast_open, roles=MONITORS),
        Row("the same, at the channel's number", at_channel, roles=MONITORS),
        Row("bind", bind, roles=SERVING),
        Row("listen", listen, roles=SERVING),
        Row(
            "connect to an abstract socket",
            abstract,
        ),
        Row(
            "a message to an abstract socket",
            abstract_datagram,
            elsewhere=dict.fromkeys(MONITORS, "EPERM"),
        ),
        Row(
            "another option",
            lambda s: call(
                "setsockopt", s.pooled(), socket.SOL_SOCKET, socket.SO_KEEPALIVE, _IOVEC, 4
            ),
            roles=SERVING,
        ),
    ]


def _payload() -> list[Row]:
    """What a relay may not do with a connection: look at payload, and make some up."""
    reading: dict[str, Callable[[int], int]] = {
        "read": lambda fd: call("read", fd, _ZEROS, 8),
        "read one byte": lambda fd: call("read", fd, _ZEROS, 1),
        "readv": lambda fd: call("readv", fd, _IOVEC, 1),
        "recvfrom, two bytes": lambda fd: call("recvfrom", fd, _ZEROS, 2, 0, 0, 0),
        "recvfrom, to peek": lambda fd: call("recvfrom", fd, _ZEROS, 8, socket.MSG_PEEK, 0, 0),
        "recvmsg": lambda fd: call("recvmsg", fd, _MESSAGE, 0),
        "recvmmsg": lambda fd: call("recvmmsg", fd, _MESSAGES, 1, 0, 0),
    }
    writing: dict[str, Callable[[int], int]] = {
        "write": lambda fd: call("write", fd, _BUFFER, 8),
        "write one byte": lambda fd: call("write", fd, _BUFFER, 1),
        "writev": lambda fd: call("writev", fd, _IOVEC, 1),
        "sendto, two bytes": lambda fd: call(
            "sendto", fd, _BUFFER, 2, socket.MSG_OOB | socket.MSG_NOSIGNAL, 0, 0
        ),
        "sendto, one byte that isn't urgent": lambda fd: call(
            "sendto", fd, _BUFFER, 1, socket.MSG_NOSIGNAL, 0, 0
        ),
        "sendmsg": lambda fd: call("sendmsg", fd, _MESSAGE, socket.MSG_NOSIGNAL),
        "sendmmsg": lambda fd: call("sendmmsg", fd, _MESSAGES, 1, 0),
    }

    def of_a_client(action: Callable[[int], int]) -> Callable[[Scene], int]:
        return lambda scene: action(scene.client())

    def in_place_of_the_channel(action: Callable[[int], int]) -> Callable[[Scene], int]:
        """recvmsg and sendmsg are allowed for descriptor 3: have a client's connection there."""

        def attempt(scene: Scene) -> int:
            call("close", 3)
            fd = scene.client()
            if fd != 3:
                raise NotMadeError(f"the client is at {fd}")
            return action(fd)

        return attempt

    def through_a_pipe(name: str, *more: int) -> Callable[[Scene], int]:
        def attempt(scene: Scene) -> int:
            read, write = scene.pair()
            flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
            if call("splice", scene.client(), 0, write, 0, 4096, flags) <= 0:
                raise NotMadeError("nothing to splice")
            return call(name, read, *more)

        return attempt

    def into_a_pipe(name: str, *more: int) -> Callable[[Scene], int]:
        return lambda scene: call(name, scene.pair()[1], *more)

    def sent_file(scene: Scene) -> int:
        return call("sendfile", scene.client(), scene.props["file"], 0, 8)

    where = ("relay-in",)
    rows = [
        Row(f"{name} a client's payload", of_a_client(action), where, clients=True)
        for name, action in reading.items()
    ]
    rows += [
        Row(f"{name} to a client", of_a_client(action), where, clients=True)
        for name, action in writing.items()
    ]
    return [
        *rows,
        Row(
            "recvmsg of a client in the place of the channel",
            in_place_of_the_channel(reading["recvmsg"]),
            where,
            clients=True,
        ),
        Row(
            "sendmsg to a client in the place of the channel",
            in_place_of_the_channel(writing["sendmsg"]),
            where,
            clients=True,
        ),
        Row("read from a pipe", through_a_pipe("read", _ZEROS, 8), where, clients=True),
        Row("readv from a pipe", through_a_pipe("readv", _IOVEC, 1), where, clients=True),
        Row("write into a pipe", into_a_pipe("write", _BUFFER, 8), where),
        Row("vmsplice into a pipe", into_a_pipe("vmsplice", _IOVEC, 1, 0), where),
        Row("sendfile to a client", sent_file, where, clients=True),
    ]


def _descriptors() -> list[Row]:
    return [
        _simple("dup", 0),
        Row("dup3", lambda _: call("dup3", 0, 3, 0), roles=_NO_MONITORS),
        _simple("fcntl", 0, fcntl.F_DUPFD, 60, as_="fcntl, to duplicate"),
        Row(
            "fcntl, F_GETFL",
            lambda _: call("fcntl", 0, fcntl.F_GETFL, 0),
            dynamic={"host": WORKS},
        ),
        _simple("ioctl", 0, termios.FIONREAD, _ZEROS, as_="ioctl, FIONREAD", bare=REACHES),
        _simple("ioctl", 0, termios.TIOCSTI, _BUFFER, as_="ioctl, TIOCSTI", bare=REACHES),
        _simple("pipe", _ZEROS),
        _simple("write", 1, _BUFFER, 1, as_="write to standard output"),
    ]


def _table() -> dict[str, Row]:
    # These need most of this module.
    from tests.sandbox import (
        attempts_asking,
        attempts_book,
        attempts_datagrams,
        attempts_server,
    )  # fmt: skip

    rows = [
        *_files(),
        *_programs(),
        *_others(),
        *_kernel(),
        *_memory(),
        *_sockets(),
        *_payload(),
        *_descriptors(),
        *attempts_book.all_of_them(),
        *attempts_asking.all_of_them(),
        *attempts_datagrams.all_of_them(),
        *attempts_server.all_of_them(),
    ]
    table = {row.name: row for row in rows}
    assert len(table) == len(rows), "two rows with one name"
    return table


ROWS = _table()
"""All of them, by name."""
