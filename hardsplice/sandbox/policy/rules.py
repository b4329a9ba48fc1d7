# SPDX-License-Identifier: GPL-2.0-or-later
"""What filters depend on of the files of policies, file by file, for sandbox/policy/table.py."""

from __future__ import annotations

__all__ = ["FILES", "Line"]

# A call, whether the monitor serves it, the architectures (none: all of them), and in which ways it
# may be made (none: in any).
Line = tuple[str, bool, str, tuple[str, ...]]
_File = tuple[str, str, dict[str, int], dict[str, int], tuple[Line, ...]]

# Of each file: the others that it includes, the capabilities, its own words for descriptors and for
# addresses, and its own rules.
# fmt: off
FILES: dict[str, _File] = {
    # From here on made by tools/generate.py: policies
    "guard": (
        "runtime",
        "", {"REPORT": 0x3}, {},
        (
            ("write", False, "", ("fd == REPORT",)),
            ("wait4", False, "", ()),
        ),
    ),
    "init": (
        "runtime",
        "CAP_KILL", {"CHANNEL": 0x3, "SIGNALS": 0x7, "REASON": 0x8}, {},
        (
            ("poll", False, "armhf i686 ppc64le s390x x86_64", ()),
            ("restart_syscall", False, "armhf i686 ppc64le s390x x86_64", ()),
            ("read", False, "", ("fd == SIGNALS", "fd == REASON",)),
            ("wait4", False, "", ()),
            ("waitid", False, "", ("idtype == P_PID and options == WNOHANG|WSTOPPED|WNOWAIT",)),
            ("kill", False, "", ("pid >= 2 and pid < 2147483648",)),
            ("getpgid", False, "", ()),
            ("recvmsg", False, "", ("fd == CHANNEL",)),
            ("sendmsg", False, "", ("fd == CHANNEL",)),
            ("rt_sigreturn", False, "", ()),
            ("sigreturn", False, "i686", ()),
            ("ppoll", False, "arm64", ()),
            ("sigreturn", False, "armhf", ()),
            ("sigreturn", False, "s390x", ()),
            ("ppoll", False, "riscv64", ()),
        ),
    ),
    "monitor-control-udp": (
        ("monitor-control monitor-host-udp monitor-host monitor-ports-udp monitor-ports "
        "monitor-udp monitor relay-udp-ports relay-udp relay-ports relay runtime"),
        "", {}, {},
        (),
    ),
    "monitor-control": (
        "monitor-host monitor-ports monitor relay-ports relay runtime",
        "", {}, {},
        (
            ("getsockopt", False, "", ("level == SOL_SOCKET and optname == SO_PEERCRED",)),
            ("recvfrom", False, "arm64 i686 riscv64 s390x x86_64", (
                "fd >= FLOWS and flags == MSG_DONTWAIT and addr == NULL",)),
            ("sendto", False, "arm64 i686 riscv64 s390x x86_64", (
                "fd >= FLOWS and flags == MSG_NOSIGNAL|MSG_DONTWAIT and addr == NULL",)),
            ("recv", False, "armhf", ("fd >= FLOWS and flags == MSG_DONTWAIT",)),
            ("send", False, "armhf", ("fd >= FLOWS and flags == MSG_NOSIGNAL|MSG_DONTWAIT",)),
            ("recv", False, "ppc64le", ("fd >= FLOWS and flags == MSG_DONTWAIT",)),
            ("send", False, "ppc64le", ("fd >= FLOWS and flags == MSG_NOSIGNAL|MSG_DONTWAIT",)),
        ),
    ),
    "monitor-fixed-udp": (
        "monitor-fixed monitor-udp monitor relay-udp relay runtime",
        "", {}, {},
        (),
    ),
    "monitor-fixed": (
        "monitor relay runtime",
        "", {}, {},
        (
            ("setsid", False, "", ()),
            ("ioctl", False, "", ("op == TIOCGPGRP", "op == TIOCSPGRP",)),
            ("getpriority", False, "", ("which == PRIO_PGRP",)),
            ("kill", False, "", ("pid == 0 and sig == SIGTSTP",)),
            ("waitid", False, "", ("idtype == P_ALL and options == WNOHANG|WEXITED|WNOWAIT",)),
        ),
    ),
    "monitor-host-udp": (
        ("monitor-host monitor-ports-udp monitor-ports monitor-udp monitor relay-udp-ports "
        "relay-udp relay-ports relay runtime"),
        "", {}, {},
        (),
    ),
    "monitor-host": (
        "monitor-ports monitor relay-ports relay runtime",
        "", {}, {"MOST": 0x1c0060},
        (
            ("getsockopt", False, "", ("level == SOL_SOCKET and optname == SO_NETNS_COOKIE",)),
            ("fcntl", False, "arm64 ppc64le riscv64 s390x x86_64", ("op == F_GETFL",)),
            ("setsockopt", False, "", (
                ("fd >= FLOWS and level == IPPROTO_IP and optname == IP_MINTTL and optval == "
                "MOST"),
                ("fd >= FLOWS and level == IPPROTO_IPV6 and optname == IPV6_MINHOPCOUNT and "
                "optval == MOST"),
                ("fd >= FLOWS and level == IPPROTO_TCP and optname == TCP_SYNCNT and optval "
                "== ONE"),)),
            ("shutdown", False, "", ("fd >= FLOWS and how == SHUT_RDWR",)),
            ("setsid", False, "", ()),
            ("ioctl", False, "", ("op == TIOCGPGRP", "op == TIOCSPGRP",)),
            ("getpriority", False, "", ("which == PRIO_PGRP",)),
            ("kill", False, "", ("pid == 0 and sig == SIGTSTP",)),
            ("waitid", False, "", ("idtype == P_ALL and options == WNOHANG|WEXITED|WNOWAIT",)),
            ("fcntl64", False, "i686", ("op == F_GETFL",)),
            ("fcntl64", False, "armhf", ("op == F_GETFL",)),
        ),
    ),
    "monitor-ports-udp": (
        ("monitor-ports monitor-udp monitor relay-udp-ports relay-udp relay-ports relay "
        "runtime"),
        "", {}, {},
        (
            ("setsockopt", False, "", (
                ("fd >= FLOWS and level == IPPROTO_IP and optname == IP_PKTINFO and optval == "
                "ONE"),
                ("fd >= FLOWS and level == IPPROTO_IPV6 and optname == IPV6_RECVPKTINFO and "
                "optval == ONE"),)),
        ),
    ),
    "monitor-ports": (
        "monitor relay-ports relay runtime",
        "", {}, {"BIND_IPV4": 0x1cfffe, "BIND_IPV6": 0x1efffe, "DEVICE": 0x1d0020},
        (
            ("setsockopt", False, "", (
                ("fd >= FLOWS and level == SOL_SOCKET and optname == SO_REUSEADDR and optval "
                "== ONE"),
                ("fd >= FLOWS and level == SOL_SOCKET and optname == SO_BINDTODEVICE and "
                "optval == DEVICE"),
                ("fd >= FLOWS and level == IPPROTO_IPV6 and optname == IPV6_V6ONLY and optval "
                "== ONE"),
                ("fd >= FLOWS and level == IPPROTO_IPV6 and optname == IPV6_V6ONLY and optval "
                "== ZERO"),)),
            ("bind", False, "", (
                "fd >= FLOWS and addr == BIND_IPV4",
                "fd >= FLOWS and addr == BIND_IPV6",)),
            ("listen", False, "", ("fd >= FLOWS and backlog == 65535",)),
            ("seccomp", False, "", (
                ("operation == SECCOMP_SET_MODE_FILTER and flags == "
                "SECCOMP_FILTER_FLAG_NEW_LISTENER"),)),
            ("ioctl", False, "", (
                "op == SECCOMP_IOCTL_NOTIF_RECV",
                "op == SECCOMP_IOCTL_NOTIF_SEND",
                "op == SECCOMP_IOCTL_NOTIF_ADDFD",)),
            ("getsockopt", False, "", (
                "level == SOL_SOCKET and optname == SO_DOMAIN",
                "level == SOL_SOCKET and optname == SO_PROTOCOL",)),
            ("getsockname", False, "", ()),
        ),
    ),
    "monitor-udp": (
        "monitor relay-udp relay runtime",
        "", {}, {},
        (
            ("socket", False, "", (
                ("domain == AF_INET and type == SOCK_DGRAM|SOCK_NONBLOCK|SOCK_CLOEXEC and "
                "protocol == 0"),
                ("domain == AF_INET6 and type == SOCK_DGRAM|SOCK_NONBLOCK|SOCK_CLOEXEC and "
                "protocol == 0"),)),
            ("setsockopt", False, "", (
                ("fd >= FLOWS and level == SOL_SOCKET and optname == SO_RXQ_OVFL and optval "
                "== ONE"),)),
            ("getsockopt", False, "", (
                "level == SOL_SOCKET and optname == SO_DOMAIN",
                "level == SOL_SOCKET and optname == SO_RXQ_OVFL",
                "level == IPPROTO_IP and optname == IP_PKTINFO",
                "level == IPPROTO_IPV6 and optname == IPV6_RECVPKTINFO",)),
        ),
    ),
    "monitor": (
        "relay runtime",
        "", {"LOG": 0x2, "READY": 0x4, "NOTIFY": 0x5, "RULESET": 0x6, "SIGNALS": 0x7, "WATCH": 0x8,
        "LIFELINE": 0x9}, {},
        (
            ("read", False, "", ("fd == SIGNALS",)),
            ("poll", False, "armhf i686 ppc64le s390x x86_64", ()),
            ("restart_syscall", False, "armhf i686 ppc64le s390x x86_64", ()),
            ("write", False, "", ("fd == LOG",)),
            ("write", False, "", ("fd == READY",)),
            ("write", False, "", ("fd == NOTIFY",)),
            ("pread64", False, "", ("fd == WATCH",)),
            ("pread64", False, "", ("fd == LOG",)),
            ("lseek", False, "arm64 riscv64 s390x x86_64", ("fd == LOG",)),
            ("ftruncate", False, "arm64 ppc64le riscv64 s390x x86_64", ("fd == LOG",)),
            ("recvmsg", False, "", ()),
            ("sendmsg", False, "", ("flags == MSG_NOSIGNAL|MSG_DONTWAIT",)),
            ("shutdown", False, "", ("fd >= LISTENERS and fd < FLOWS and how == SHUT_RDWR",)),
            ("socketpair", False, "", (
                "domain == AF_UNIX and type == SOCK_SEQPACKET|SOCK_CLOEXEC",)),
            ("socket", False, "", (
                ("domain == AF_INET and type == SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC and "
                "protocol == 0"),
                ("domain == AF_INET6 and type == SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC and "
                "protocol == 0"),)),
            ("setsockopt", False, "", (
                ("fd >= FLOWS and level == IPPROTO_TCP and optname == TCP_NODELAY and optval "
                "== ONE"),)),
            ("ioctl", False, "", ("op == SIOCGIFFLAGS",)),
            ("getsockopt", False, "", (
                "level == SOL_SOCKET and optname == SO_ACCEPTCONN",
                "level == SOL_SOCKET and optname == SO_LINGER",
                "level == SOL_SOCKET and optname == SO_OOBINLINE",
                "level == SOL_SOCKET and optname == SO_KEEPALIVE",
                "level == IPPROTO_TCP and optname == TCP_NODELAY",)),
            ("clone", False, "", ("flags == CLONE_CHILD_SETTID|CLONE_CHILD_CLEARTID|SIGCHLD",)),
            ("set_robust_list", False, "", ()),
            ("gettid", False, "", ()),
            ("rt_sigprocmask", False, "", ()),
            ("rt_sigaction", False, "", ()),
            ("getpid", False, "", ()),
            ("getppid", False, "", ()),
            ("pidfd_open", False, "", ()),
            ("pidfd_send_signal", False, "", ("sig == SIGKILL",)),
            ("wait4", False, "", ()),
            ("dup3", False, "", (
                "newfd >= 1 and newfd < LIFELINE",
                "newfd >= LISTENERS and newfd < FLOWS",)),
            ("close_range", False, "", ("first >= FLOWS",)),
            ("epoll_create1", False, "", ("flags == EPOLL_CLOEXEC",)),
            ("prlimit64", False, "", ("pid == 0",)),
            ("prctl", False, "", ("option == PR_SET_NAME",)),
            ("prctl", False, "", ("option == PR_SET_PDEATHSIG and arg2 == SIGKILL",)),
            ("landlock_restrict_self", False, "", ("ruleset_fd == RULESET and flags == 0",)),
            ("prctl", False, "", ("option == PR_SET_SECCOMP and arg2 == SECCOMP_MODE_FILTER",)),
            ("madvise", False, "", (
                "addr & TAG == 0 and addr >= BOOK_END and advice == MADV_DOFORK",
                "addr & TAG == 0 and addr >= BOOK_END and advice == MADV_DONTFORK",)),
            ("_llseek", False, "i686", ("fd == LOG",)),
            ("ftruncate64", False, "i686", ("fd == LOG",)),
            ("ppoll", False, "arm64", ()),
            ("_llseek", False, "armhf", ("fd == LOG",)),
            ("ftruncate64", False, "armhf", ("fd == LOG",)),
            ("_llseek", False, "ppc64le", ("fd == LOG",)),
            ("ppoll", False, "riscv64", ()),
        ),
    ),
    "relay-ports": (
        "relay runtime",
        "", {"NONE": 0xffffffffffffffff}, {},
        (
            ("pidfd_getfd", True, "", (
                "pidfd == NONE and targetfd >= LISTENERS and targetfd < FLOWS and flags == 0",)),
        ),
    ),
    "relay-udp-ports": (
        "relay-udp runtime",
        "", {"NONE": 0xffffffffffffffff}, {},
        (
            ("getsockopt", False, "", ("level == SOL_SOCKET and optname == SO_DOMAIN",)),
            ("pidfd_getfd", True, "", (
                "pidfd == NONE and targetfd >= LISTENERS and targetfd < FLOWS and flags == 0",)),
        ),
    ),
    "relay-udp": (
        "runtime",
        "", {"CHANNEL": 0x3, "LISTENERS": 0xa, "FLOWS": 0x10}, {"ONE": 0x1c0020, "BOOK": 0x200000,
        "BOOK_SLOTS": 0xffffffffffe0001f},
        (
            ("recvmmsg", False, "arm64 ppc64le riscv64 s390x x86_64", (
                "fd >= LISTENERS and flags == MSG_DONTWAIT and timeout == NULL",
                ("fd >= LISTENERS and fd < FLOWS and flags == MSG_DONTWAIT|MSG_ERRQUEUE and "
                "timeout == NULL"),)),
            ("recvfrom", False, "arm64 i686 riscv64 s390x x86_64", (
                "fd >= FLOWS and flags == MSG_DONTWAIT",)),
            ("sendmmsg", False, "", (
                "fd >= LISTENERS and fd < FLOWS and flags == MSG_DONTWAIT|MSG_NOSIGNAL",)),
            ("writev", False, "", ("fd >= FLOWS",)),
            ("sendto", False, "arm64 i686 riscv64 s390x x86_64", (
                "fd >= FLOWS and flags == MSG_DONTWAIT|MSG_NOSIGNAL and addr == NULL",)),
            ("setsockopt", False, "", (
                "fd >= FLOWS and level == IPPROTO_UDP and optname == UDP_SEGMENT",
                ("fd >= FLOWS and level == IPPROTO_UDP and optname == UDP_GRO and optval == "
                "ONE"),)),
            ("epoll_wait", False, "armhf i686 ppc64le s390x x86_64", ()),
            ("epoll_ctl", False, "", ()),
            ("connect", False, "", ("fd >= FLOWS and addr & BOOK_SLOTS == BOOK",)),
            ("getsockopt", False, "", ("level == SOL_SOCKET and optname == SO_ERROR",)),
            ("close", False, "", ("fd >= FLOWS",)),
            ("recvmsg", False, "", ("fd == CHANNEL",)),
            ("sendmsg", False, "", (
                "fd == CHANNEL and flags == MSG_NOSIGNAL",
                "fd == CHANNEL and flags == MSG_NOSIGNAL|MSG_DONTWAIT",)),
            ("recvmmsg_time64", False, "i686", (
                "fd >= LISTENERS and flags == MSG_DONTWAIT and timeout == NULL",
                ("fd >= LISTENERS and fd < FLOWS and flags == MSG_DONTWAIT|MSG_ERRQUEUE and "
                "timeout == NULL"),)),
            ("epoll_pwait", False, "arm64", ()),
            ("recvmmsg_time64", False, "armhf", (
                "fd >= LISTENERS and flags == MSG_DONTWAIT and timeout == NULL",
                ("fd >= LISTENERS and fd < FLOWS and flags == MSG_DONTWAIT|MSG_ERRQUEUE and "
                "timeout == NULL"),)),
            ("recv", False, "armhf", ("fd >= FLOWS and flags == MSG_DONTWAIT",)),
            ("send", False, "armhf", ("fd >= FLOWS and flags == MSG_DONTWAIT|MSG_NOSIGNAL",)),
            ("recv", False, "ppc64le", ("fd >= FLOWS and flags == MSG_DONTWAIT",)),
            ("send", False, "ppc64le", ("fd >= FLOWS and flags == MSG_DONTWAIT|MSG_NOSIGNAL",)),
            ("epoll_pwait", False, "riscv64", ()),
        ),
    ),
    "relay": (
        "runtime",
        "", {"CHANNEL": 0x3, "LISTENERS": 0xa, "FLOWS": 0x10}, {"BOOK": 0x200000, "BOOK_SLOTS":
        0xffffffffffe0001f, "LINGER": 0x1c0000, "ONE": 0x1c0020, "ZERO": 0x1c0040, "UNSENT":
        0x1c0080, "UNSENT_SLOTS": 0xffffffffffffff9f},
        (
            ("epoll_wait", False, "armhf i686 ppc64le s390x x86_64", ()),
            ("epoll_ctl", False, "", ()),
            ("accept4", False, "", ()),
            ("connect", False, "", ("fd >= FLOWS and addr & BOOK_SLOTS == BOOK",)),
            ("getpeername", False, "", ()),
            ("getsockopt", False, "", ("level == SOL_SOCKET and optname == SO_ERROR",)),
            ("splice", False, "", ()),
            ("shutdown", False, "", ("fd >= FLOWS and how == SHUT_WR",)),
            ("setsockopt", False, "", (
                ("fd >= FLOWS and level == SOL_SOCKET and optname == SO_LINGER and optval == "
                "LINGER"),
                ("fd >= FLOWS and level == SOL_SOCKET and optname == SO_LINGER and optval == "
                "ZERO"),)),
            ("setsockopt", False, "", (
                ("fd >= FLOWS and level == SOL_SOCKET and optname == SO_OOBINLINE and optval "
                "== ONE"),)),
            ("setsockopt", False, "", (
                ("fd >= FLOWS and level == SOL_SOCKET and optname == SO_KEEPALIVE and optval "
                "== ONE"),)),
            ("setsockopt", False, "", (
                ("fd >= FLOWS and level == IPPROTO_TCP and optname == TCP_NOTSENT_LOWAT and "
                "optval & UNSENT_SLOTS == UNSENT"),)),
            ("ioctl", False, "", ("op == SIOCATMARK",)),
            ("ioctl", False, "", ("op == TIOCOUTQ",)),
            ("recvfrom", False, "arm64 i686 riscv64 s390x x86_64", ("fd >= FLOWS and size == 1",)),
            ("sendto", False, "arm64 i686 riscv64 s390x x86_64", (
                ("fd >= FLOWS and size == 1 and flags == MSG_OOB|MSG_NOSIGNAL and addr == "
                "NULL"),)),
            ("pipe2", False, "", ()),
            ("fcntl", False, "arm64 ppc64le riscv64 s390x x86_64", (
                "op == F_SETPIPE_SZ",
                "op == F_GETPIPE_SZ",)),
            ("close", False, "", ("fd >= FLOWS",)),
            ("recvmsg", False, "", ("fd == CHANNEL",)),
            ("sendmsg", False, "", (
                "fd == CHANNEL and flags == MSG_NOSIGNAL",
                "fd == CHANNEL and flags == MSG_NOSIGNAL|MSG_DONTWAIT",)),
            ("fcntl64", False, "i686", ("op == F_SETPIPE_SZ", "op == F_GETPIPE_SZ",)),
            ("epoll_pwait", False, "arm64", ()),
            ("recv", False, "armhf", ("fd >= FLOWS and size == 1",)),
            ("send", False, "armhf", (
                "fd >= FLOWS and size == 1 and flags == MSG_OOB|MSG_NOSIGNAL",)),
            ("fcntl64", False, "armhf", ("op == F_SETPIPE_SZ", "op == F_GETPIPE_SZ",)),
            ("recv", False, "ppc64le", ("fd >= FLOWS and size == 1",)),
            ("send", False, "ppc64le", (
                "fd >= FLOWS and size == 1 and flags == MSG_OOB|MSG_NOSIGNAL",)),
            ("epoll_pwait", False, "riscv64", ()),
        ),
    ),
    "runtime": (
        "",
        "", {}, {"BOOK_END": 0x400000, "TAG": 0xff00000000000000},
        (
            ("exit_group", False, "", ()),
            ("brk", False, "", ()),
            ("mmap", False, "arm64 ppc64le riscv64 x86_64", (
                "prot & PROT_EXEC == 0 and flags == MAP_PRIVATE|MAP_ANONYMOUS",
                "prot & PROT_EXEC == 0 and flags == MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE",)),
            ("munmap", False, "", ("addr & TAG == 0 and addr >= BOOK_END",)),
            ("mremap", False, "", (
                ("old_address & TAG == 0 and old_address >= BOOK_END and flags == "
                "MREMAP_MAYMOVE"),)),
            ("madvise", False, "", ("advice == MADV_DONTNEED", "advice == MADV_HUGEPAGE",)),
            ("mprotect", False, "", (
                "addr & TAG == 0 and addr >= BOOK_END and prot & PROT_EXEC == 0",)),
            ("getrandom", False, "", ("flags == GRND_NONBLOCK",)),
            ("clock_gettime", False, "arm64 ppc64le riscv64 s390x x86_64", ()),
            ("mmap2", False, "i686", (
                "prot & PROT_EXEC == 0 and flags == MAP_PRIVATE|MAP_ANONYMOUS",
                "prot & PROT_EXEC == 0 and flags == MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE",)),
            ("clock_gettime64", False, "i686", ()),
            ("mmap2", False, "armhf", (
                "prot & PROT_EXEC == 0 and flags == MAP_PRIVATE|MAP_ANONYMOUS",
                "prot & PROT_EXEC == 0 and flags == MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE",)),
            ("clock_gettime64", False, "armhf", ()),
            ("mmap", False, "s390x", ()),
        ),
    ),
    # As far as here.
}
