# SPDX-License-Identifier: GPL-2.0-or-later
"""No function that runs after lock-down asks the kernel for something that no rule names.

This reads the sources: each call into the standard library's thin wrappers, or into the C library,
stands for a system call, by a table. A wrapper that the table lacks is a failure too, since nobody
has thought yet about what it asks the kernel for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from hardsplice.model.roles import UDP_POLICY
from tests.policy import oracle
from tests.policy.whose import DATAGRAM_MONITORS

# What a call in Python is to the kernel on x86_64; empty for nothing.
SYSTEM_CALLS = {
    "fcntl.fcntl": "fcntl",
    "fcntl.ioctl": "ioctl",
    "os.WEXITSTATUS": "",
    "os.WIFEXITED": "",
    "os.WIFSIGNALED": "",
    "os.WTERMSIG": "",
    "os._exit": "exit_group",
    "os.close": "close",
    "os.closerange": "close_range",
    "os.dup2": "dup2",
    "os.dup2 inheritable=False": "dup3",
    "os.fork": "clone",
    "os.ftruncate": "ftruncate",
    "os.fsdecode": "",
    "os.fsencode": "",
    "os.getpgid": "getpgid",
    "os.getpid": "getpid",
    "os.getppid": "getppid",
    "os.getpriority": "getpriority",
    "os.kill": "kill",
    "os.lseek": "lseek",
    "os.path.basename": "",
    "os.pidfd_open": "pidfd_open",
    "os.pipe2": "pipe2",
    "os.pread": "pread64",
    "os.read": "read",
    "os.setsid": "setsid",
    "os.strerror": "",
    "os.tcgetpgrp": "ioctl",
    "os.tcsetpgrp": "ioctl",
    "os.waitid": "waitid",
    "os.waitpid": "wait4",
    "os.write": "write",
    "prctl.set_name": "prctl",
    "prctl.set_pdeathsig": "prctl",
    "resource.getrlimit": "prlimit64",
    "resource.setrlimit": "prlimit64",
    "select.epoll": "epoll_create1",
    "select.poll": "",
    "signal.Signals": "",
    "signal.pidfd_send_signal": "pidfd_send_signal",
    "signal.pthread_sigmask": "rt_sigprocmask",
    "signal.signal": "rt_sigaction",
    "time.monotonic": "clock_gettime",
    "time.monotonic_ns": "clock_gettime",
    "time.time": "clock_gettime",
    # methods, whatever they are called on
    ".bind": "bind",
    ".getsockname": "getsockname",
    ".getsockopt": "getsockopt",
    ".listen": "listen",
    ".modify": "epoll_ctl",
    ".recvmsg": "recvmsg",
    ".register": "epoll_ctl",
    ".sendmsg": "sendmsg",
    ".setsockopt": "setsockopt",
    ".shutdown": "shutdown",
    ".splice": "splice",
    ".unregister": "epoll_ctl",
    "epoll.poll": "epoll_wait",
    "self.poll": "epoll_wait",
    "poller.poll": "poll",
    "poller.register": "",
    "poller.unregister": "",
    # the C library's own functions, in hardsplice/kernel: linux, socketcalls, datagrams, prepared,
    # scm and unotify
    "_accept4": "accept4",
    "_bind": "bind",
    "_connect": "connect",
    "_getpeername": "getpeername",
    "_getsockname": "getsockname",
    "_getsockopt": "getsockopt",
    "_ioctl": "ioctl",
    "_listen": "listen",
    "_madvise": "madvise",
    "_prctl": "prctl",
    "_python.PyOS_AfterFork_Child": "gettid",
    "_python.PyOS_AfterFork_Parent": "",
    "_python.PyOS_BeforeFork": "",
    "_python.fork": "clone",
    "_receive": "recvfrom",
    "_recv": "recvfrom",
    "_recvfrom": "recvfrom",
    "_recvmsg": "recvmsg",
    "_send": "sendto",
    "_sendmsg": "sendmsg",
    "_sendto": "sendto",
    "_setsockopt": "setsockopt",
    "_shutdown": "shutdown",
    "_sockatmark": "ioctl",
    "_socket": "socket",
    "_socketpair": "socketpair",
    "_writev": "writev",
    "_syscall _LANDLOCK_RESTRICT_SELF": "landlock_restrict_self",
    "_syscall RECVMMSG": "recvmmsg",
    "_syscall SENDMMSG": "sendmmsg",
    "_syscall c_long(_PIDFD_GETFD)": "pidfd_getfd",
    "_syscall c_long(numbers.get(MACHINE, 277))": "seccomp",
    # memory, and memory alone
    "ctypes.addressof": "",
    "ctypes.create_string_buffer": "",
    "ctypes.get_errno": "",
    "ctypes.byref": "",
    "ctypes.memmove": "",
    "ctypes.sizeof": "",
}
NO_MODULES = {"epoll", "poller", "self"}
MODULES = {name.split(".")[0] for name in SYSTEM_CALLS if "." in name[1:]} - NO_MODULES
MODULES.add("socket")  # none of whose functions is called, as the C library makes calls of its own


@dataclass(frozen=True)
class Part:
    """Functions of a module that run after lock-down: some, or all but some."""

    module: str
    only: frozenset[str] = frozenset()
    without: frozenset[str] = field(default=frozenset())

    def has(self, function: str) -> bool:
        return function in self.only if self.only else function not in self.without


def some(module: str, *names: str) -> Part:
    return Part(module, only=frozenset(names))


def all_but(module: str, *names: str) -> Part:
    return Part(module, without=frozenset(names))


# The relay's calls for connections, and what all of them go through.
CONNECTIONS = some(
    "kernel/socketcalls",
    *("accept4", "accept4_from", "accepted_from", "endpoint", "connect", "connected", "option"),
    "shutdown",
    *("abort", "keep_urgent_inline", "limit_unsent", "sockatmark", "receive_byte", "send_byte"),
)
# What relays of both protocols consist of.
EVERY_RELAY = (
    all_but("relay/pools"),
    all_but("relay/orders"),
    all_but("relay/main", "_live", "_leave_session"),
    all_but("telemetry/flow_table"),
    some("telemetry/counters", "count_latency"),
    some("sandbox/address_book", "Pointer.holds"),
    some("ipc/channel", "Channel.send", "Channel.receive"),
    all_but("kernel/scm", "packet_pair"),
)
RELAY = (
    all_but("relay/tcp/engine"),
    all_but("relay/tcp/connecting"),
    all_but("relay/tcp/moving"),
    all_but("relay/tcp/flows"),
    all_but("relay/tcp/pipes"),
    all_but("relay/tcp/seam"),
    all_but("relay/tcp/flow_writer"),
    *EVERY_RELAY,
    CONNECTIONS,
)
MADE_BY_MONITORS = ("plain_socket", "datagram_socket", "set_overflow", "set_pktinfo")
DATAGRAM_RELAY = (
    *(
        all_but(f"relay/udp/{path.stem}")
        for path in sorted((oracle.ROOT / "hardsplice" / "relay" / "udp").glob("*.py"))
    ),
    *EVERY_RELAY,
    all_but("kernel/datagrams", *MADE_BY_MONITORS, "_set"),
    all_but("kernel/mmsghdr"),
    all_but("kernel/packet_info"),
    all_but("kernel/prepared", "_with_reply"),
    some("kernel/socketcalls", "connect", "option", "endpoint"),
)
TERMINAL = some(
    "command/terminal",
    *(f"Terminal.{one}" for one in ("_front", "has_hung_up", "give_back", "stop")),
)
PARTS = {
    "relay": RELAY,
    "relay-ports": (*RELAY, some("kernel/unotify", "request_descriptor")),
    "relay-udp": DATAGRAM_RELAY,
    "relay-udp-ports": (*DATAGRAM_RELAY, some("kernel/unotify", "request_descriptor")),
    # A relay lives under its monitor's filter until it has its own.
    "monitor": (
        *RELAY,
        all_but("relay/main", "_leave_session"),
        all_but("telemetry/counters", "Stats.__init__"),
        all_but("ipc/channel"),
        all_but("ipc/messages"),
        all_but("ipc/child"),
        all_but("kernel/scm"),
        all_but("monitor/supervisor"),
        all_but("monitor/outbox"),
        all_but("monitor/reports"),
        all_but("monitor/supply"),
        all_but("ipc/dialogue"),
        all_but("monitor/backoff"),
        all_but("monitor/notes"),
        all_but("monitor/placing"),
        all_but("monitor/group"),
        all_but("ipc/loop"),
        all_but("monitor/host"),
        all_but("monitor/command"),
        all_but("monitor/readiness"),
        all_but("monitor/namespace", "main", "_live"),
        some(
            "telemetry/log",
            *("Log.line", "Log.limited", "Log.write", "Log._has_room", "Log._write"),
            *("as_json", "make_room"),
        ),
        all_but("telemetry/flow_log"),
        some(
            "ipc/sd_notify",
            "Notifier.say",
            "Notifier.status",
            "Notifier.reloading",
            "Watchdog.start",
        ),
        some("ipc/descriptors", "copy", "clear", "keep"),
        some("sandbox/steps", "die_with", "relay_steps", "_limit", "filter_step"),
        some(
            "kernel/linux",
            "set_seccomp_filter",
            "prctl",
            "set_name",
            "fork",
            "madvise",
            "landlock_restrict_self",
        ),
        some("kernel/prctl_fallback", "set_pdeathsig"),
        some("net/listeners", "is_sound", "has_ended"),
        some("kernel/socketcalls", "stream_socket", "set_nodelay", "_set"),
    ),
    "monitor-fixed": (
        all_but("monitor/host"),
        all_but("command/orphans"),
        TERMINAL,
        some("relay/main", "_leave_session"),
    ),
    "monitor-ports": (
        all_but("monitor/handover"),
        all_but("monitor/requests"),
        all_but("monitor/registry"),
        all_but("monitor/group"),
        all_but("monitor/supervisor"),
        all_but("monitor/placing"),
        all_but("kernel/unotify"),
        all_but("monitor/host"),
        all_but("monitor/namespace", "main", "_live"),
        some(
            "net/listeners",
            "open_listener",
            "bound_address",
            "is_listener",
            "is_sound",
            "has_ended",
        ),
        some("net/listeners", "Routing.routes", "Routing.listener", "cannot_listen"),
        some(
            "kernel/socketcalls",
            *("stream_socket", "set_reuse_address", "set_keepalive", "set_nodelay", "_set"),
            *("set_ipv6_only", "bind_to_device", "bind", "listen", "local_port", "option"),
        ),
        some("sandbox/steps", "notifying_filter_step"),
    ),
    "monitor-host": (
        some("relay/main", "_leave_session"),
        all_but("command/orphans"),
        TERMINAL,
        all_but("monitor/effects"),
        all_but("monitor/handover"),
        all_but("monitor/requests"),
        some(
            "sandbox/address_book",
            "Book.slot",
            "Book.add",
            "Book.remove",
            "Book._take",
            "Book._write",
        ),
        some("net/listeners", "write_bind_address", "open_listener", "targets"),
        some("kernel/pinned", "write_bind_address", "clear_bind_address"),
        all_but("net/retiring", "open_sink", "_bound", "_free_port"),
        some("kernel/socketcalls", "retire", "be_impatient", "peer_address", "local_address"),
        some("kernel/socketcalls", "listen", "option", "shutdown", "_set"),
        all_but("monitor/autoforward"),
        some("net/sockdiag", "request", "_is_last", "parse", "_listening", "_is_ipv6_only"),
    ),
    "monitor-control": (
        # All of the room but what is done during set-up.
        *(
            all_but(f"control/{path.stem}")
            for path in sorted((oracle.ROOT / "hardsplice" / "control").glob("*.py"))
            if path.stem != "socketfile"
        ),
        # A server of containers' ports is one, too.
        all_but("frontends/server", "Server.__init__", "_start_remover"),
        all_but("frontends/reload"),
        some("frontends/offers", "decode", "Answer.encode"),
        some("net/listeners", "is_listener", "is_sound", "is_bound_to"),
        some("kernel/socketcalls", "accept4", "namespace_cookie", "peer_user", "send", "receive"),
    ),
    "init": (
        some(
            "command/init",
            "reap",
            "_send_signal",
            "Charge.reap",
            "Charge.is_stopped",
            "_last_word",
            "_is_in_our_group",
        ),
        some("command/init", "ToGroup.read", "ToGroup.had"),
        some("ipc/channel", "Channel.send", "Channel.receive"),
        all_but("kernel/scm", "packet_pair"),
    ),
    "guard": (
        some("command/guard", "wait"),
        some("kernel/status", "exit_status"),
        some("ipc/messages", "encode"),
    ),
}

PARTS |= {
    role: (
        *PARTS[role.removesuffix(UDP_POLICY)],
        *DATAGRAM_RELAY,
        some("kernel/datagrams", *MADE_BY_MONITORS, "_set"),
    )
    for role in DATAGRAM_MONITORS
}


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            yield prefix + child.name, child


def asked_of_the_kernel(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Each call that means something to the kernel: its name, its system calls ("?": unknown)."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        name, arguments = ast.unparse(node.func), node.args
        if name == "partial":  # a call that is prepared, to be made by the same process
            name, arguments = ast.unparse(arguments[0]), arguments[1:]
        if name == "_syscall":  # the C library's syscall(2): its first argument says which
            name = f"_syscall {ast.unparse(arguments[0])}"
            yield name, SYSTEM_CALLS.get(name, "?")
            continue
        if name == "os.dup2":
            options = (f"{one.arg}={ast.unparse(one.value)}" for one in node.keywords)
            name = " ".join([name, *options])
        parts = name.split(".")
        for key in (name, ".".join(parts[-2:]).lstrip("_"), f".{parts[-1]}" if parts[1:] else ""):
            if key in SYSTEM_CALLS:
                yield name, SYSTEM_CALLS[key]
                break
        else:
            if parts[0] in MODULES and parts[1:]:
                yield name, "?"


def unnamed(source: str, part: Part, allowed: set[str]) -> list[str]:
    """What the functions of a part ask for that is not allowed."""
    return [
        f"{part.module}: {function} calls {python}: {call}"
        for function, body in functions(ast.parse(source))
        if part.has(function)
        for python, calls in asked_of_the_kernel(body)
        for call in calls.split()
        if call not in allowed
    ]


@pytest.mark.parametrize("role", oracle.ROLES)
def test_no_function_makes_a_call_that_no_rule_names(role: str) -> None:
    allowed = set(oracle.allowed(role, "x86_64"))
    found = []
    for part in PARTS[role]:
        path = oracle.ROOT / "hardsplice" / f"{part.module}.py"
        found += unnamed(path.read_text(encoding="utf-8"), part, allowed)
    assert found == []


@pytest.mark.parametrize("role", oracle.ROLES)
def test_the_functions_looked_at_exist(role: str) -> None:
    for part in PARTS[role]:
        path = oracle.ROOT / "hardsplice" / f"{part.module}.py"
        names = {name for name, _ in functions(ast.parse(path.read_text(encoding="utf-8")))}
        assert part.only | part.without <= names


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("os.close(fd)", []),
        ("os.read(fd, 1)", ["m: f calls os.read: read"]),
        ("os.sendfile(a, b, 0, 1)", ["m: f calls os.sendfile: ?"]),
        ("self.kernel.splice(a, b, 1)", []),
        ("peer.setsockopt(1, 2, 3)", ["m: f calls peer.setsockopt: setsockopt"]),
        ("self._epoll.poll(1)", ["m: f calls self._epoll.poll: epoll_wait"]),
        ("_recv(fd, buffer, 1, 0)", ["m: f calls _recv: recvfrom"]),
        ("_ioctl(fd, c_uint(_NOTIF_RECV), room)", ["m: f calls _ioctl: ioctl"]),
        (
            "_syscall(c_long(_PIDFD_GETFD), 0)",
            ["m: f calls _syscall c_long(_PIDFD_GETFD): pidfd_getfd"],
        ),
        ("_syscall(c_long(_NEW), 0)", ["m: f calls _syscall c_long(_NEW): ?"]),
        ("return partial(_syscall, _NEW, 0)", ["m: f calls _syscall _NEW: ?"]),
        ("return partial(_recv, fd, buffer)", ["m: f calls _recv: recvfrom"]),
        ("os.dup2(a, b)", ["m: f calls os.dup2: dup2"]),
        (
            "os.dup2(a, b, inheritable=False)",
            ["m: f calls os.dup2 inheritable=False: dup3"],
        ),
        ("ctypes.memmove(a, b, 2)", []),
        ("ctypes.CDLL('libevil.so')", ["m: f calls ctypes.CDLL: ?"]),
        ("len(fds)", []),
    ],
)
def test_a_call_that_is_not_allowed_is_found(body: str, found: list[str]) -> None:
    source = f"def f():\n    {body}\n"
    assert unnamed(source, all_but("m"), {"close", "splice"}) == found
