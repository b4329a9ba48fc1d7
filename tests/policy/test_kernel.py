# SPDX-License-Identifier: GPL-2.0-or-later
"""The filters on this machine's kernel: what a relay needs works, what it must not do kills it.

Each attempt is run twice, without the filter and with it: without, it must succeed, or the filter
would get the credit for somebody else's refusal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from hardsplice.sandbox.address_book import USUAL
from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.seccomp import compile_policy, native_arch
from tests.policy import oracle

# What an attempt finds: descriptors as in a relay, connected sockets with a byte to read.
SCENE = """
import ctypes, fcntl, gc, mmap, os, resource, select, signal, socket, sys, time
from ipaddress import ip_address
from hardsplice.sandbox import address_book
from hardsplice.ipc import descriptors
from hardsplice.kernel import linux
from hardsplice.kernel import scm
from hardsplice.kernel import socketcalls
from hardsplice.kernel import unotify
from hardsplice.relay.tcp import seam
FLOWS = 16
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(4096)
made = [*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
made.append(socket.create_server(("127.0.0.1", 0)))
channel, far, listener = (descriptors.above(one.detach(), FLOWS, "a socket") for one in made)
descriptors.reserve(FLOWS, ())
for fd, number in ((channel, 3), (listener, 10)):
    descriptors.move(fd, number)
channel, far, listener = (socket.socket(fileno=number) for number in (3, far, 10))
messages = scm.Messages(100, 4)
listener.setblocking(False)
client = socket.create_connection(listener.getsockname())
target = socket.create_server(("127.0.0.1", 0))
address = socketcalls.sockaddr(ip_address("127.0.0.1"), target.getsockname()[1])
elsewhere = socketcalls.sockaddr(ip_address("127.0.0.1"), listener.getsockname()[1])
targets = address_book.Book(address_book.USUAL, [address, elsewhere], 0, is_written=False)
targets.open()
targets.pin(is_writer=False)
targets.close()
place = address_book.Pointer(address_book.USUAL, targets.slot(address), 0, address)
own = ctypes.create_string_buffer(bytes(32), 32)
def connect(fd, where, length=16):
    code = socketcalls.connect(fd, ctypes.c_void_p(where), length)
    return 0 if code == -115 else code
def option(fd, level, name, where, size=4):
    ok(libc.setsockopt(fd, level, name, ctypes.c_void_p(where), size))
pooled = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
stream, other = socket.socketpair()
other.send(b"payload")
client.send(b"payload")
pipe = os.pipe2(os.O_NONBLOCK)
page = mmap.mmap(-1, 4096)
epoll = select.epoll()
here = ctypes.addressof(ctypes.c_char.from_buffer(page))
def ok(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
prctl = libc.prctl
prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
def map_memory(address, flags, size=4096):
    pointer = ctypes.c_void_p(address)
    return libc.mmap(pointer, ctypes.c_size_t(size), 3, flags, -1, ctypes.c_long(0))
low = map_memory(0x180000, FLAGS | linux.MAP_FIXED_NOREPLACE)
assert low == 0x180000
program = sys.stdin.buffer.read()
if program:
    linux.set_seccomp_filter(program)
"""

# What a relay does, in its own words: the engine's calls, and what the interpreter does beside.
ROUTINE = """
epoll.register(listener.fileno(), select.EPOLLIN)
assert epoll.poll(1)
fd = socketcalls.accept4(listener.fileno())
assert fd > 0, fd
assert socketcalls.accept4(listener.fileno()) < 0
epoll.register(fd, select.EPOLLIN); epoll.modify(fd, 0); epoll.unregister(fd)
read, write = seam.open_pipe()
assert seam.resize_pipe(write, 65536) >= 4096
assert seam.resize_pipe(write, 1 << 40) >= 4096
assert seam.connect(pooled.fileno(), place) in (0, -115)
while socketcalls.connected(pooled.fileno()) == -115: pass
moved = os.splice(fd, write, 65536, flags=seam.SPLICE_FLAGS)
assert os.splice(read, pooled.fileno(), moved, flags=seam.SPLICE_FLAGS) == moved == 7
try:
    os.splice(fd, write, 65536, flags=seam.SPLICE_FLAGS)
except BlockingIOError as error:
    assert str(error)
assert socketcalls.limit_unsent(pooled.fileno(), 65536) == 0
assert socketcalls.keep_urgent_inline(fd) == 0
socketcalls.sockatmark(fd)
assert socketcalls.receive_byte(fd, socket.MSG_PEEK | socket.MSG_DONTWAIT) < 0
assert socketcalls.send_byte(pooled.fileno(), b"!", socket.MSG_OOB) == 1
seam.unsent(pooled.fileno())
assert socketcalls.shutdown(pooled.fileno(), socket.SHUT_WR) == 0
assert socketcalls.abort(fd) == 0
os.close(fd)
messages.sendmsg(3, b"report", (), socket.MSG_NOSIGNAL)
try:
    messages.recvmsg(3, socket.MSG_DONTWAIT)
except BlockingIOError as error:
    assert repr(error)
time.monotonic()
try:
    bytearray(1 << 60)
except MemoryError:
    pass
block = bytearray(1 << 20); block.extend(bytes(1 << 22)); del block
heap = [[number] for number in range(200_000)]; del heap
gc.collect()
os._exit(0)
"""

FORBIDDEN = {
    "open": "os.open('/dev/null', os.O_RDONLY)",
    "stat": "os.stat('/')",
    "exec": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork() or os._exit(0)",
    "socket": "socket.socket()",
    "unix socket": "socket.socketpair()",
    "listen": "listener.listen()",
    "bind": "pooled.bind(('127.0.0.1', 0))",
    "connect by an address of its own": "pooled.connect_ex(target.getsockname())",
    "connect to no address": "connect(client.fileno(), ctypes.addressof(own))",
    "connect between two slots": "connect(pooled.fileno(), place.where.value + 8)",
    "connect into the values": "connect(pooled.fileno(), address_book.USUAL.values)",
    "connect behind the book": "connect(pooled.fileno(), 0x400000)",
    "connect a listener": "connect(10, place.where.value)",
    "shut a listener down": "libc.shutdown(10, socket.SHUT_WR)",
    "close a listener": "os.close(10)",
    "close the channel": "os.close(3)",
    "close what is no descriptor, by its low half": "libc.syscall("
    f"{oracle.numbers(native_arch())['close']}, ctypes.c_long((1 << 32) + 3))",
    "a listener's linger": "option(10, 1, 13, address_book.USUAL.values, 8)",
    "a linger of its own": "option(client.fileno(), 1, 13, ctypes.addressof(own), 8)",
    "an urgent byte of its own": "option(client.fileno(), 1, 10, ctypes.addressof(own))",
    "another slot's value": (
        "option(client.fileno(), 6, 25, address_book.USUAL.values + 0xA0 - 32 * 3)"
    ),
    # From Linux 6.10 on these would be refused anyway (mseal); what lies below is not sealed.
    "the book taken away": "libc.munmap(ctypes.c_void_p(0x200000), 4096)",
    "the values taken away": "libc.munmap(ctypes.c_void_p(0x1c0000), 4096)",
    "low memory taken away": "ok(libc.munmap(ctypes.c_void_p(low), 4096))",
    "low memory's protection": "ok(libc.mprotect(ctypes.c_void_p(low), 4096, 1))",
    "low memory moved": "libc.mremap(ctypes.c_void_p(low), 4096, 8192, 1)",
    "memory in the place of the book": "map_memory(0x200000, FLAGS | 0x10)",
    "memory in a free place": "map_memory(0x600000, FLAGS | 0x100000)",
    "memory that grows down": "map_memory(None, FLAGS | 0x100)",
    "shared memory": "map_memory(None, 0x21)",
    "the book moved": "libc.mremap(ctypes.c_void_p(0x200000), 4096, 4096, 1)",
    "memory moved to a fixed place": "libc.mremap(ctypes.c_void_p(here), 4096, 4096, 3, "
    "ctypes.c_void_p(0x200000))",
    "the book's protection": "libc.mprotect(ctypes.c_void_p(0x200000), 4096, 1)",
    "a listener that nobody gives": "unotify.request_descriptor(11)",
    "unshare": "linux.unshare(0)",
    "signal to itself": "os.kill(os.getpid(), 0)",
    "pid": "os.getpid()",
    "read": "os.read(stream.fileno(), 1)",
    "pread": "os.pread(os.open('/proc/self/stat', os.O_RDONLY), 1, 0)",
    "receive two bytes": "ok(libc.recv(stream.fileno(), buffer, 2, 0))",
    "receive a message elsewhere": "stream.recvmsg(1)",
    "send one ordinary byte": "ok(libc.send(stream.fileno(), b'x', 1, 0x4000))",
    "send two urgent bytes": "ok(libc.send(client.fileno(), b'xx', 2, 0x4001))",
    "send a message elsewhere": "stream.sendmsg([b'x'])",
    "write to the channel": "os.write(3, b'x')",
    "write to standard error": "os.write(2, b'')",
    "accept by the older call": "ok(libc.accept(listener.fileno(), None, None))",
    "shut reading down": "client.shutdown(socket.SHUT_RD)",
    "other option": "client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)",
    "other option of TCP": "client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)",
    "ask for an option": "client.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)",
    "non-blocking by ioctl": "client.setblocking(False)",
    "descriptor flags": "fcntl.fcntl(pipe[0], fcntl.F_GETFL)",
    "executable mapping": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "executable protection": "ok(libc.mprotect(ctypes.c_void_p(here), 4096, 5))",
    "another filter": "linux.set_seccomp_filter(bytes.fromhex('060000000000ff7f'))",
    "name": "ok(prctl(15, here, 0, 0, 0))",
    "limits": "resource.getrlimit(resource.RLIMIT_NOFILE)",
    "duplicate": "os.dup(0)",
    "handler": "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
    "other random numbers": "os.getrandom(1)",
}


def run(code: str, program: bytes) -> int:
    """The status of a process that runs ``code`` in the scene, under a filter if there is one."""
    return subprocess.run(
        [sys.executable, "-c", SCENE + code],
        input=program,
        env={"PYTHONPATH": os.pathsep.join([str(oracle.ROOT), *sys.path])},
        stdout=subprocess.DEVNULL,
        check=False,
        timeout=60,
    ).returncode


def filter_of(role: str) -> bytes:
    """As set-up settles it: for six places of listeners, and the book at its usual place."""
    words = {"FLOWS": 16, **USUAL.words}
    return compile_policy(load_policy(role).settled(words), native_arch())


@pytest.fixture(scope="module")
def relay_filter() -> bytes:
    return filter_of("relay")


def test_what_a_relay_does_is_allowed(relay_filter: bytes) -> None:
    assert [run(ROUTINE, program) for program in (b"", relay_filter)] == [0, 0]


@pytest.mark.parametrize("attempt", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_a_relay_must_not_do_kills_it(relay_filter: bytes, attempt: str) -> None:
    code = f"{attempt}\nos._exit(0)\n"
    assert [run(code, program) for program in (b"", relay_filter)] == [0, -signal.SIGSYS]


@pytest.mark.skipif(native_arch() != "x86_64", reason="x32 belongs to x86_64")
def test_an_x32_call_kills_even_where_its_number_is_allowed(relay_filter: bytes) -> None:
    close = 0x40000000 + oracle.numbers("x86_64")["close"]
    code = f"libc.syscall({close}, -1)\nos._exit(0)\n"  # ENOSYS where the kernel lacks x32
    assert [run(code, program) for program in (b"", relay_filter)] == [0, -signal.SIGSYS]


def test_a_monitor_s_filter_takes_a_relay_s_on_top(relay_filter: bytes) -> None:
    """A relay is forked by a monitor that is locked down, and inherits its filter."""
    monitor = filter_of("monitor")
    code = f"linux.set_seccomp_filter(bytes.fromhex('{relay_filter.hex()}'))\n"
    assert run(code + ROUTINE, monitor) == 0
    assert run(code + "os.getpid()\nos._exit(0)\n", monitor) == -signal.SIGSYS
