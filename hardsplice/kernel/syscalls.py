# SPDX-License-Identifier: GPL-2.0-or-later
"""What a seccomp policy's words mean: architectures, parameters of system calls, constants.

A policy may be compiled for a machine other than this one, so a constant can't come from
Python's own modules: FIONBIO has another number on PowerPC than elsewhere. Each word that a policy
may use is therefore in a table, with its differences between architectures. A word that isn't here
is an error, not a guess; before adding one, check its value on all seven architectures. The tests
hold the tables against Python's modules on the machine that they run on.
"""

from __future__ import annotations

from collections.abc import Iterable

from hardsplice.kernel.hints import Final, Literal
from hardsplice.kernel.record import NamedTuple

__all__ = [
    "ARCHITECTURES",
    "CAPABILITIES",
    "CONSTANTS",
    "DIRECT",
    "INTS",
    "PARAMETERS",
    "RISKY",
    "Architecture",
    "constant",
    "differ",
    "parameters",
]


class Architecture(NamedTuple):
    """One of the kernel's ABIs that hardsplice has a policy for."""

    name: str
    token: str  # the attribute of pyseccomp.Arch
    audit: int  # AUDIT_ARCH_* of linux/audit.h, what seccomp_data.arch holds
    bits: Literal[32, 64]
    byte_order: Literal["little", "big"]
    oci: str  # the name in the OCI runtime specification
    systemd: str  # the name in systemd's SystemCallArchitectures=


ARCHITECTURES: Final = {
    arch.name: arch
    for arch in (
        Architecture("x86_64", "X86_64", 0xC000003E, 64, "little", "SCMP_ARCH_X86_64", "x86-64"),
        Architecture("i686", "X86", 0x40000003, 32, "little", "SCMP_ARCH_X86", "x86"),
        Architecture("arm64", "AARCH64", 0xC00000B7, 64, "little", "SCMP_ARCH_AARCH64", "arm64"),
        Architecture("armhf", "ARM", 0x40000028, 32, "little", "SCMP_ARCH_ARM", "arm"),
        Architecture(
            "ppc64le", "PPC64LE", 0xC0000015, 64, "little", "SCMP_ARCH_PPC64LE", "ppc64-le"
        ),
        Architecture("s390x", "S390X", 0x80000016, 64, "big", "SCMP_ARCH_S390X", "s390x"),
        Architecture(
            "riscv64", "RISCV64", 0xC00000F3, 64, "little", "SCMP_ARCH_RISCV64", "riscv64"
        ),
    )
}

# Where socket calls can also be made through socketcall(2), with their arguments behind a pointer
# that no filter can follow, and which libseccomp widens its rules for them to: their own numbers,
# from Linux 4.3 on. arch/x86/entry/syscalls/syscall_32.tbl, and syscall.tbl in arch/s390/kernel/
# syscalls and arch/powerpc/kernel/syscalls. Those that are not here exist as sub-calls only.
_DIRECT_OF_TWO: Final = {
    "socket": 359, "socketpair": 360, "bind": 361, "connect": 362, "listen": 363, "accept4": 364,
    "getsockopt": 365, "setsockopt": 366, "getsockname": 367, "getpeername": 368, "sendto": 369,
    "sendmsg": 370, "recvfrom": 371, "recvmsg": 372, "shutdown": 373,
}  # fmt: skip
DIRECT: Final = {
    "i686": {**_DIRECT_OF_TWO, "recvmmsg": 337, "sendmmsg": 345},
    "ppc64le": {
        "socket": 326, "bind": 327, "connect": 328, "listen": 329, "accept": 330,
        "getsockname": 331, "getpeername": 332, "socketpair": 333, "send": 334, "sendto": 335,
        "recv": 336, "recvfrom": 337, "shutdown": 338, "setsockopt": 339, "getsockopt": 340,
        "sendmsg": 341, "recvmsg": 342, "recvmmsg": 343, "accept4": 344, "sendmmsg": 349,
    },
    "s390x": {**_DIRECT_OF_TWO, "recvmmsg": 357, "sendmmsg": 358},
}  # fmt: skip

# The names of parameters, in order, as the manual pages give them. Only calls with a parameter that
# holds a value: a pointer's target is out of a filter's reach.
PARAMETERS: Final = {
    "_llseek": ("fd", "offset_high", "offset_low", "result", "whence"),
    "accept4": ("fd", "addr", "addrlen", "flags"),
    "bind": ("fd", "addr", "addrlen"),
    "clone": ("flags", "stack", "parent_tid", "child_tid", "tls"),
    "clock_gettime": ("clockid", "tp"),
    "clock_gettime64": ("clockid", "tp"),
    "close": ("fd",),
    "close_range": ("first", "last", "flags"),
    "connect": ("fd", "addr", "addrlen"),
    "dup2": ("oldfd", "newfd"),
    "dup3": ("oldfd", "newfd", "flags"),
    "epoll_create1": ("flags",),
    "epoll_ctl": ("epfd", "op", "fd", "event"),
    "fcntl": ("fd", "op", "arg"),
    "fcntl64": ("fd", "op", "arg"),
    "ftruncate": ("fd", "length"),
    "ftruncate64": ("fd",),  # the length follows in two registers, aligned on armhf
    "getpriority": ("which", "who"),
    "getrandom": ("buf", "buflen", "flags"),
    "getsockname": ("fd", "addr", "addrlen"),
    "getsockopt": ("fd", "level", "optname", "optval", "optlen"),
    "ioctl": ("fd", "op", "arg"),
    "kill": ("pid", "sig"),
    "landlock_restrict_self": ("ruleset_fd", "flags"),
    "listen": ("fd", "backlog"),
    "lseek": ("fd", "offset", "whence"),
    "madvise": ("addr", "length", "advice"),
    "mmap": ("addr", "length", "prot", "flags", "fd", "offset"),
    "mmap2": ("addr", "length", "prot", "flags", "fd", "pgoffset"),
    "mprotect": ("addr", "length", "prot"),
    "mremap": ("old_address", "old_size", "new_size", "flags", "new_address"),
    "munmap": ("addr", "length"),
    "pidfd_getfd": ("pidfd", "targetfd", "flags"),
    "pidfd_open": ("pid", "flags"),
    "pidfd_send_signal": ("pidfd", "sig", "info", "flags"),
    "pipe2": ("pipefd", "flags"),
    "prctl": ("option", "arg2", "arg3", "arg4", "arg5"),
    "pread64": ("fd", "buf", "count", "offset"),
    "prlimit64": ("pid", "resource", "new_limit", "old_limit"),
    "read": ("fd", "buf", "count"),
    "recv": ("fd", "buf", "size", "flags"),
    "recvfrom": ("fd", "buf", "size", "flags", "addr", "addrlen"),
    "recvmmsg": ("fd", "msgvec", "vlen", "flags", "timeout"),
    "recvmmsg_time64": ("fd", "msgvec", "vlen", "flags", "timeout"),
    "recvmsg": ("fd", "msg", "flags"),
    "rt_sigprocmask": ("how", "set", "oldset", "sigsetsize"),
    "seccomp": ("operation", "flags", "args"),
    "send": ("fd", "buf", "size", "flags"),
    "sendmmsg": ("fd", "msgvec", "vlen", "flags"),
    "sendmsg": ("fd", "msg", "flags"),
    "sendto": ("fd", "buf", "size", "flags", "addr", "addrlen"),
    "setsockopt": ("fd", "level", "optname", "optval", "optlen"),
    "shutdown": ("fd", "how"),
    "socket": ("domain", "type", "protocol"),
    "socketpair": ("domain", "type", "protocol", "sv"),
    "splice": ("fd_in", "off_in", "fd_out", "off_out", "size", "flags"),
    "tgkill": ("tgid", "tid", "sig"),
    "timerfd_create": ("clockid", "flags"),
    "timerfd_settime": ("fd", "flags", "new_value", "old_value"),
    "timerfd_settime64": ("fd", "flags", "new_value", "old_value"),
    "wait4": ("pid", "status", "options", "rusage"),
    "waitid": ("idtype", "id", "info", "options", "rusage"),
    "write": ("fd", "buf", "count"),
    "writev": ("fd", "iov", "iovcnt"),
}

# Parameters of which the kernel takes the low 32 bits and no more.
INTS: Final = frozenset({"fd", "oldfd", "newfd", "targetfd", "first"})

_PARAMETERS_ELSEWHERE: Final = {
    # kernel/fork.c, CONFIG_CLONE_BACKWARDS2
    ("s390x", "clone"): ("stack", "flags", "parent_tid", "child_tid", "tls"),
}

# Calls for which a rule has to say what a taken-over process could do with it (`risk`).
RISKY: Final = frozenset(
    """
    bind bpf capset clone clone3 connect execve execveat fork io_uring_enter io_uring_register
    io_uring_setup ioctl kill listen memfd_create mmap mmap2 mount mprotect open openat openat2
    pidfd_getfd pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev ptrace read
    recv recvfrom recvmmsg recvmmsg_time64 recvmsg rt_sigqueueinfo rt_sigreturn seccomp send
    sendmmsg sendmsg sendto setns setsockopt sigreturn socket socketpair tgkill tkill unshare
    userfaultfd vfork write writev
    """.split()  # noqa: SIM905 - a table of words, not code
)

# Numbers that are the same on all seven architectures, by the header that gives them.
_SAME_EVERYWHERE: Final = {
    # linux/socket.h, asm/socket.h, linux/net.h
    "AF_UNIX": 1,
    "AF_INET": 2,
    "AF_INET6": 10,
    "SOCK_STREAM": 1,
    "SOCK_DGRAM": 2,
    "SOCK_SEQPACKET": 5,
    "SOCK_NONBLOCK": 0o4000,
    "SOCK_CLOEXEC": 0o2000000,
    "SOL_SOCKET": 1,
    "SO_REUSEADDR": 2,
    "SO_ERROR": 4,
    "SO_KEEPALIVE": 9,
    "SO_OOBINLINE": 10,
    "SO_LINGER": 13,
    "SO_NETNS_COOKIE": 71,
    "SO_BINDTODEVICE": 25,
    "SO_ACCEPTCONN": 30,
    "SO_PROTOCOL": 38,
    "SO_DOMAIN": 39,
    "SO_RXQ_OVFL": 40,
    "SHUT_WR": 1,
    "SHUT_RDWR": 2,
    "MSG_OOB": 0x1,
    "MSG_PEEK": 0x2,
    "MSG_DONTWAIT": 0x40,
    "MSG_ERRQUEUE": 0x2000,
    "MSG_NOSIGNAL": 0x4000,
    "MSG_CMSG_CLOEXEC": 0x40000000,
    # linux/in.h, linux/in6.h, linux/tcp.h, linux/udp.h
    "IPPROTO_IP": 0,
    "IPPROTO_TCP": 6,
    "IPPROTO_UDP": 17,
    "IPPROTO_IPV6": 41,
    "IP_PKTINFO": 8,
    "IP_MINTTL": 21,
    "IPV6_V6ONLY": 26,
    "IPV6_RECVPKTINFO": 49,
    "IPV6_MINHOPCOUNT": 73,
    "TCP_NODELAY": 1,
    "TCP_SYNCNT": 7,
    "TCP_NOTSENT_LOWAT": 25,
    "UDP_SEGMENT": 103,
    "UDP_GRO": 104,
    # linux/fcntl.h, asm/fcntl.h, linux/pipe_fs_i.h, linux/splice.h
    "O_NONBLOCK": 0o4000,
    "O_CLOEXEC": 0o2000000,
    "F_GETFD": 1,
    "F_SETFD": 2,
    "F_GETFL": 3,
    "F_SETFL": 4,
    "F_DUPFD_CLOEXEC": 1030,
    "F_SETPIPE_SZ": 1031,
    "F_GETPIPE_SZ": 1032,
    "SPLICE_F_MOVE": 1,
    "SPLICE_F_NONBLOCK": 2,
    # linux/eventpoll.h, linux/close_range.h, linux/timerfd.h, asm/sockios.h
    "EPOLL_CLOEXEC": 0o2000000,
    "CLOSE_RANGE_CLOEXEC": 4,
    "TFD_NONBLOCK": 0o4000,
    "TFD_CLOEXEC": 0o2000000,
    "SIOCATMARK": 0x8905,
    "SIOCGIFINDEX": 0x8933,
    # linux/mman.h, asm/mman.h
    "PROT_EXEC": 4,
    "MAP_PRIVATE": 2,
    "MAP_ANONYMOUS": 0x20,
    "MREMAP_MAYMOVE": 1,
    "MADV_DONTNEED": 4,
    "MADV_DONTFORK": 10,
    "MADV_DOFORK": 11,
    "MADV_HUGEPAGE": 14,
    # linux/sched.h, asm/signal.h, linux/wait.h
    "CLONE_CHILD_CLEARTID": 0x00200000,
    "CLONE_CHILD_SETTID": 0x01000000,
    "SIGKILL": 9,
    "SIGTERM": 15,
    "SIGCHLD": 17,
    "SIGTSTP": 20,
    "SIG_BLOCK": 0,
    "SIG_UNBLOCK": 1,
    "SIG_SETMASK": 2,
    "WNOHANG": 1,
    "WSTOPPED": 2,
    "WEXITED": 4,
    "WNOWAIT": 0x01000000,
    "PRIO_PGRP": 1,
    "SEEK_SET": 0,
    "P_ALL": 0,
    "P_PID": 1,
    # linux/prctl.h, linux/seccomp.h, linux/random.h, asm-generic/resource.h, linux/time.h
    "PR_SET_PDEATHSIG": 1,
    "PR_GET_DUMPABLE": 3,
    "PR_SET_DUMPABLE": 4,
    "PR_SET_NAME": 15,
    "PR_GET_SECCOMP": 21,
    "PR_SET_SECCOMP": 22,
    "PR_CAPBSET_READ": 23,
    "PR_CAPBSET_DROP": 24,
    "PR_GET_SECUREBITS": 27,
    "PR_SET_SECUREBITS": 28,
    "PR_SET_NO_NEW_PRIVS": 38,
    "PR_GET_NO_NEW_PRIVS": 39,
    "PR_CAP_AMBIENT": 47,
    "PR_SET_MDWE": 65,
    "PR_GET_MDWE": 66,
    "PR_CAP_AMBIENT_CLEAR_ALL": 4,
    "SECCOMP_MODE_FILTER": 2,
    "SECCOMP_SET_MODE_FILTER": 1,
    "SECCOMP_FILTER_FLAG_NEW_LISTENER": 8,
    "GRND_NONBLOCK": 1,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_CORE": 4,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "CLOCK_REALTIME": 0,
    "CLOCK_MONOTONIC": 1,
    # a pointer argument that is not used
    "NULL": 0,
}

# Numbers that differ: the usual one (asm-generic), then the exceptions.
_DIFFERENT: Final[dict[str, tuple[int, dict[str, int]]]] = {
    # asm/ioctls.h: PowerPC encodes direction and size in its requests, _IOW('f', 126, int)
    "FIONBIO": (0x5421, {"ppc64le": 0x8004667E}),
    "FIONREAD": (0x541B, {"ppc64le": 0x4004667F}),
    "SIOCGIFFLAGS": (0x8913, {}),
    "TIOCOUTQ": (0x5411, {"ppc64le": 0x40047473}),
    "TIOCGPGRP": (0x540F, {"ppc64le": 0x40047477}),
    "TIOCSPGRP": (0x5410, {"ppc64le": 0x80047476}),
    # asm/mman.h
    "MAP_NORESERVE": (0x4000, {"ppc64le": 0x40}),
    # linux/seccomp.h: _IOWR and _IOW
    "SECCOMP_IOCTL_NOTIF_RECV": (0xC0502100, {}),
    "SECCOMP_IOCTL_NOTIF_SEND": (0xC0182101, {}),
    "SECCOMP_IOCTL_NOTIF_ADDFD": (0x40182103, {"ppc64le": 0x80182103}),
    # asm/socket.h
    "SO_RCVLOWAT": (18, {"ppc64le": 16}),
    "SO_PEERCRED": (17, {"ppc64le": 21}),
}

CONSTANTS: Final = frozenset(_SAME_EVERYWHERE) | frozenset(_DIFFERENT)

# linux/capability.h, in the order of their numbers
CAPABILITIES: Final = tuple(
    f"CAP_{name}"
    for name in """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
    WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
    """.split()  # noqa: SIM905 - a table of words, not code
)


def constant(name: str, arch: str) -> int:
    """The number that ``name`` has on an architecture; KeyError where no table has it."""
    if name in _DIFFERENT:
        usual, exceptions = _DIFFERENT[name]
        return exceptions.get(arch, usual)
    return _SAME_EVERYWHERE[name]


def differ(call: str, names: Iterable[str]) -> bool:
    """Whether the parameters of a call or the numbers of constants depend on the architecture."""
    return any(call == other for _, other in _PARAMETERS_ELSEWHERE) or any(
        name in _DIFFERENT for name in names
    )


def parameters(call: str, arch: str) -> tuple[str, ...]:
    """The names of a call's parameters on an architecture; none where no table has the call."""
    return _PARAMETERS_ELSEWHERE.get((arch, call)) or PARAMETERS.get(call, ())
