# SPDX-License-Identifier: GPL-2.0-or-later
"""A datagram relay's filter on this machine's kernel: what it must not do kills it, each beside the
same without the filter, where it must succeed; and what is conceded works with it.

The calls are made by their numbers, as machine code in a relay that was taken over would make them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from hardsplice.kernel.syscalls import DIRECT
from hardsplice.sandbox.seccomp import native_arch
from tests.policy import oracle
from tests.policy.test_kernel import filter_of

ARCH = native_arch()
BITS = oracle.BITS[ARCH]

# A listener at 10 and one that isn't bound to an address at 11, a TCP listener at 12, a place that
# is /dev/null at 13; a flow's socket, connected to a target, and one of the pool.
SCENE = f"""
import ctypes, errno, os, signal, socket, struct, sys, time
from ctypes import c_long
from ipaddress import ip_address
from hardsplice.ipc import descriptors
from hardsplice.kernel import linux, socketcalls
from hardsplice.sandbox import address_book
FLOWS = 16
NUMBERS = {dict(oracle.numbers(ARCH)) | DIRECT.get(ARCH, {})!r}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = c_long
DGRAM = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
SENT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
kept = []
def place(contents):
    kept.append(ctypes.create_string_buffer(contents, max(len(contents), 1)))
    return ctypes.addressof(kept[-1])
def call(name, *arguments):
    result = libc.syscall(c_long(NUMBERS[name]), *map(c_long, arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{{name}}: {{os.strerror(ctypes.get_errno())}}")
    return result
def datagram(address="127.0.0.1", family=socket.AF_INET):
    one = socket.socket(family, DGRAM)
    if address:
        one.bind((address, 0))
    return one
def at(address, port):
    return socketcalls.sockaddr(ip_address(address), port)
def words(*values):
    return struct.pack("@%dP" % len(values), *values)
payload = place(b"of its own choice")
iovec = place(words(payload, 17))
def message(name=b"", control=b"", vector=iovec):
    where, more = place(name) if name else 0, place(control) if control else 0
    return words(where, len(name), vector, 1, more, len(control), 0)
def messages(name=b"", control=b"", vector=iovec):
    # struct mmsghdr
    return place(message(name, control, vector) + words(0))
def cmsg(level, kind, data):
    size, long = struct.calcsize("@Nii") + len(data), struct.calcsize("@N")
    whole = struct.pack("@Nii", size, level, kind) + data
    return whole.ljust(-(-size // long) * long, b"\\0")
def pktinfo(source, index=0):
    return cmsg(0, 8, struct.pack("=i", index) + socket.inet_aton(source) + bytes(4))
RECEIVE = {"recvmmsg" if BITS == 64 else "recvmmsg_time64"!r}
room = ctypes.create_string_buffer(4096)
into = place(words(ctypes.addressof(room), 4096))
def receive(fd, flags=socket.MSG_DONTWAIT, timeout=0):
    return call(RECEIVE, fd, messages(vector=into), 1, flags, timeout)
def send_from(fd, address, port, control=b"", flags=SENT):
    return call("sendmmsg", fd, messages(at(address, port), control), 1, flags)
def send(fd, flags=SENT, address=0, length=0):
    if address == 0 and "send" in NUMBERS and {ARCH!r} in ("armhf", "ppc64le"):
        return call("send", fd, payload, 17, flags)
    return call("sendto", fd, payload, 17, flags, address, length)
def option(fd, level, name, value, size=4):
    return call("setsockopt", fd, level, name, place(value), size)
far, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
made = [near, datagram(), datagram("0.0.0.0"), socket.create_server(("127.0.0.1", 0))]
channel, *listeners = (descriptors.above(one.detach(), FLOWS, "a socket") for one in made)
far = socket.socket(fileno=descriptors.above(far.detach(), FLOWS, "the monitor's side"))
descriptors.reserve(FLOWS, ())
for fd, number in zip((channel, *listeners), (3, 10, 11, 12)):
    descriptors.move(fd, number)
other, target = datagram(), datagram()
port = struct.unpack_from("!H", socketcalls.local_address(10), 2)[0]
wide = struct.unpack_from("!H", socketcalls.local_address(11), 2)[0]
elsewhere, there = other.getsockname()[1], target.getsockname()[1]
client = datagram()
client.connect(("127.0.0.1", port))
client.send(b"asked")
targets = address_book.Book(address_book.USUAL, [at("127.0.0.1", there)], 0, is_written=False)
targets.open()
targets.pin(is_writer=False)
targets.close()
slot = address_book.USUAL.address
flow, pooled = (descriptors.above(datagram(None).detach(), FLOWS, "a flow") for _ in range(2))
call("connect", flow, slot, 16)
unix = descriptors.above(socket.socket(socket.AF_UNIX, DGRAM).detach(), FLOWS, "another socket")
near_other = descriptors.above(os.dup(other.fileno()), FLOWS, "a receiver")
def receive_from(fd):
    name = place(bytes(16))
    got = place(words(name, 16, into, 1, 0, 0, 0) + words(0))
    assert call(RECEIVE, fd, got, 1, socket.MSG_DONTWAIT, 0) == 1
    raw = ctypes.string_at(name, 16)
    return socket.inet_ntoa(raw[4:8]), int.from_bytes(raw[2:4], "big")
linux.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
program = sys.stdin.buffer.read()
if program:
    linux.set_seccomp_filter(program)
"""

FORBIDDEN = {
    # leaving for another address
    "connect elsewhere": "call('connect', pooled, place(at('127.0.0.1', elsewhere)), 16)",
    "connect a connected socket elsewhere": (
        "call('connect', flow, place(at('127.0.0.1', elsewhere)), 16)"
    ),
    "disconnect by AF_UNSPEC": "call('connect', flow, place(bytes(32)), 16)",
    "disconnect a listener": "call('connect', 10, place(bytes(32)), 16)",
    "connect a listener to a target": "call('connect', 10, slot, 16)",
    "connect between two slots": "call('connect', pooled, slot + 8 - 8 * 33, 16)",
    "send to an address from a flow": (
        "call('sendto', flow, payload, 17, SENT, place(at('127.0.0.1', elsewhere)), 16)"
    ),
    "send to an address from the pool": (
        "call('sendto', pooled, payload, 17, SENT, place(at('127.0.0.1', elsewhere)), 16)"
    ),
    "send many from a flow": "send_from(flow, '127.0.0.1', elsewhere)",
    "send a message from a flow": (
        "call('sendmsg', flow, place(message(at('127.0.0.1', elsewhere))), SENT)"
    ),
    "send a message from a listener": (
        "call('sendmsg', 10, place(message(at('127.0.0.1', elsewhere))), SENT)"
    ),
    "send to an address from a listener by sendto": (
        "call('sendto', 10, payload, 17, SENT, place(at('127.0.0.1', elsewhere)), 16)"
    ),
    "send many at a descriptor of 64 bits": "send_from((1 << 32) | flow, '127.0.0.1', elsewhere)",
    # flags
    "hold a listener back (MSG_MORE)": "send_from(10, '127.0.0.1', elsewhere, flags=0xC040)",
    "hold a flow back (MSG_MORE)": "send(flow, SENT | 0x8000)",
    "confirm a neighbour (MSG_CONFIRM)": "send_from(10, '127.0.0.1', elsewhere, flags=0x4840)",
    "probe a path (MSG_PROBE)": "send_from(10, '127.0.0.1', elsewhere, flags=SENT | 0x10)",
    "past routers (MSG_DONTROUTE)": "send_from(10, '127.0.0.1', elsewhere, flags=SENT | 4)",
    "send without a copy (MSG_ZEROCOPY)": (
        "send_from(10, '127.0.0.1', elsewhere, flags=SENT | 0x4000000)"
    ),
    "fast open (MSG_FASTOPEN)": "send_from(10, '127.0.0.1', elsewhere, flags=SENT | 0x20000000)",
    "receive without taking (MSG_PEEK)": "receive(10, socket.MSG_DONTWAIT | 2)",
    "an error that a flow was sent (MSG_ERRQUEUE)": (
        "try: receive(flow, socket.MSG_DONTWAIT | 0x2000)\nexcept BlockingIOError: pass"
    ),
    "receive with a timeout": "receive(10, timeout=place(bytes(16)))",
    "wait for one (MSG_WAITFORONE)": "receive(10, socket.MSG_DONTWAIT | 0x10000)",
    "descriptors by a listener (MSG_CMSG_CLOEXEC)": "receive(10, socket.MSG_DONTWAIT | 0x40000000)",
    # other descriptors
    "write to the channel": "call('writev', 3, iovec, 1)",
    "write into a listener's place": "call('writev', 13, iovec, 1)",
    "receive at the channel's number": (
        "far.send(b'x'); call(RECEIVE, 3, messages(vector=into), 1, socket.MSG_DONTWAIT, 0)"
    ),
    "send many at the channel's number": "call('sendmmsg', 3, messages(), 1, SENT)",
    "accept on a TCP listener": (
        "socket.create_connection(socket.socket(fileno=os.dup(12)).getsockname());"
        "call('accept4', 12, 0, 0, 0)"
    ),
    "end a TCP listener": "call('shutdown', 12, 2)",
    "close a listener": "os.close(10)",
    "close the channel": "os.close(3)",
    "a listener at another number": "call('dup', 10)",
    "a flow at a listener's number": "call('dup3', flow, 10, 0)",
    # options
    "a filter of its own on a listener (SO_ATTACH_FILTER)": (
        "option(10, 1, 26, struct.pack('@HP', 1, place(struct.pack('=HBBI', 6, 0, 0, 1))), "
        "struct.calcsize('@HP'))"
    ),
    "a filter of its own on a flow": (
        "option(flow, 1, 26, struct.pack('@HP', 1, place(struct.pack('=HBBI', 6, 0, 0, 1))), "
        "struct.calcsize('@HP'))"
    ),
    "lock it (SO_LOCK_FILTER)": "option(10, 1, 44, struct.pack('i', 1))",
    "options of IP on a listener (IP_OPTIONS)": "option(10, 0, 4, bytes([148, 4, 0, 0]))",
    "no longer told addresses (IP_PKTINFO)": "option(10, 0, 8, struct.pack('i', 0))",
    "segments of a listener": "option(10, 17, 103, struct.pack('i', 8))",
    "broadcasts (SO_BROADCAST)": "option(10, 1, 6, struct.pack('i', 1))",
    "broadcasts of a flow": "option(flow, 1, 6, struct.pack('i', 1))",
    "join a group": (
        "option(10, 0, 35, socket.inet_aton('224.1.1.1') + socket.inet_aton('127.0.0.1') +"
        " struct.pack('i', socket.if_nametoindex('lo')), 12)"
    ),
    "reuse a port (SO_REUSEPORT)": "option(10, 1, 15, struct.pack('i', 1))",
    "a flow's cork (UDP_CORK)": "option(flow, 17, 1, struct.pack('i', 1))",
    "encapsulation (UDP_ENCAP)": "option(flow, 17, 100, struct.pack('i', 2))",
    "no checksums": "option(flow, 17, 101, struct.pack('i', 1))",
    "errors with payload (IP_RECVERR)": "option(flow, 0, 11, struct.pack('i', 1))",
    "any source (IP_FREEBIND)": "option(flow, 0, 15, struct.pack('i', 1))",
    "an interface of its own (IP_UNICAST_IF)": (
        "option(flow, 0, 50, struct.pack('!i', socket.if_nametoindex('lo')))"
    ),
    "send times (SO_TXTIME)": "option(flow, 1, 61, struct.pack('iI', 1, 0), 8)",
    "ask for an option": (
        "call('getsockopt', 10, 1, 3, place(bytes(4)), place(struct.pack('i', 4)))"
    ),
    # new sockets, and other calls
    "a socket": "call('socket', socket.AF_INET, DGRAM, 0)",
    "a TCP socket": "call('socket', socket.AF_INET, socket.SOCK_STREAM, 0)",
    "a pair of sockets": "socket.socketpair()",
    "bind a socket of the pool": "call('bind', pooled, place(at('127.0.0.1', 0)), 16)",
    "bind it to a UNIX name": "call('bind', unix, place(b'\\1\\0'), 2)",
    "which address a socket has": (
        "call('getsockname', flow, place(bytes(16)), place(struct.pack('i', 16)))"
    ),
    "which address its peer has": (
        "call('getpeername', flow, place(bytes(16)), place(struct.pack('i', 16)))"
    ),
    "shut a flow down": "call('shutdown', flow, 2)",
    "read": "client.send(b'x'); call('read', 10, place(bytes(8)), 8)",
    "readv": "client.send(b'x'); call('readv', 10, into, 1)",
    "recvfrom": "call('recvfrom', 10, place(bytes(8)), 8, 0, 0, 0)",
    "recvmsg": "call('recvmsg', 10, place(message(vector=into)), 0)",
    "write": "call('write', flow, payload, 17)",
    "a pipe": "call('pipe2', place(bytes(8)), 0)",
    "open": "os.open('/dev/null', os.O_RDONLY)",
    "fork": "os.fork() or os._exit(0)",
    "pid": "os.getpid()",
}

# What SECURITY.md concedes, and what a relay needs.
ALLOWED = {
    "send from a listener to any port": (
        "send_from(10, '127.0.0.1', elsewhere); assert receive(near_other) == 1"
    ),
    "with another local source": (
        "send_from(11, '127.0.0.1', elsewhere, pktinfo('127.7.7.7'));"
        "assert receive_from(near_other) == ('127.7.7.7', wide)"
    ),
    "with another local source than the address it is bound to": (
        "send_from(10, '127.0.0.1', elsewhere, pktinfo('127.7.7.7'));"
        "assert receive_from(near_other) == ('127.7.7.7', port)"
    ),
    "answer in segments": (
        "send_from(10, '127.0.0.1', elsewhere, cmsg(17, 103, struct.pack('=H', 9)));"
        "assert [receive(near_other), receive(near_other)] == [1, 1]"
    ),
    "receive what clients send": "assert receive(10) == 1",
    "what it sent with a wish to know when (SO_TIMESTAMPING), from its error queue": (
        "send_from(10, '127.0.0.1', elsewhere, cmsg(1, 37, struct.pack('=I', 2)));"
        "assert receive(10, socket.MSG_DONTWAIT | 0x2000) == 1"
    ),
    "send to the target": "assert send(flow) == 17",
    "send several to the target": (
        "option(flow, 17, 103, struct.pack('i', 9)); assert call('writev', flow, iovec, 1) == 17"
    ),
    "connect to the target": "call('connect', pooled, slot, 16); assert send(pooled) == 17",
    "connect a flow again": "call('connect', flow, slot, 16)",
    "end a flow": "os.close(flow)",
    "take an error": (
        "call('getsockopt', flow, 1, 4, place(bytes(4)), place(struct.pack('i', 4)))"
    ),
}
# What gets through the filter, and the kernel refuses: to an ordinary user, which relays are.
REFUSED = {
    "a source that isn't local": (
        "send_from(11, '127.0.0.1', elsewhere, pktinfo('192.0.2.1'))|EINVAL ENETUNREACH"
    ),
    "a broadcast": "send_from(11, '127.255.255.255', elsewhere)|EACCES",
    "a mark (SO_MARK)": "send_from(10, '127.0.0.1', elsewhere, cmsg(1, 36, bytes(4)))|EPERM",
    "a priority of the system's": (
        "send_from(10, '127.0.0.1', elsewhere, cmsg(1, 12, struct.pack('=I', 7)))|EPERM EINVAL"
    ),
    "a time to send (SCM_TXTIME)": (
        "send_from(10, '127.0.0.1', elsewhere, cmsg(1, 61, bytes(8)))|EINVAL"
    ),
    "a source route": (
        "send_from(10, '127.0.0.1', elsewhere,"
        " cmsg(0, 7, bytes([131, 7, 4, 127, 0, 0, 1, 0])))|EPERM"
    ),
    "write into a listener": "call('sendmmsg', 10, messages(), 1, SENT)|EDESTADDRREQ",
    "write to a socket that isn't connected": "call('writev', pooled, iovec, 1)|EDESTADDRREQ",
    "send from a socket that isn't connected": "send(pooled)|EDESTADDRREQ",
    "read a TCP listener": "receive(12)|ENOTCONN",
    "send from a TCP listener": "send_from(12, '127.0.0.1', elsewhere)|EPIPE",
    "receive in the place of a listener that isn't its own": "receive(13)|ENOTSOCK",
    "send in that place": "send_from(13, '127.0.0.1', elsewhere)|ENOTSOCK",
    "connect to an unused slot": "call('connect', pooled, slot + 32, 16)|EAFNOSUPPORT EINVAL",
}


def run(code: str, program: bytes, *, as_root: bool = True, before: str = "", own: str = "") -> int:
    """The status of a process that runs ``code`` in the scene, under a filter if there is one; as
    an ordinary user unless ``as_root``, if the tests run as root. ``before`` it does what the
    filter would forbid; ``own`` is what it does first, in a network namespace of its own.
    """
    drop = (
        ""
        if as_root
        else "os.geteuid() or (os.setresgid(*[65534] * 3), os.setresuid(*[65534] * 3))\n"
    )
    scene = own + SCENE.replace("linux.prctl(38", f"{before}{drop}linux.prctl(38")
    done = subprocess.run(
        [
            *(["unshare", "-Urn"] if own else []),
            *(sys.executable, "-c", f"{scene}{code}\nos._exit(0)\n"),
        ],
        input=program,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(oracle.ROOT), *sys.path])},
        capture_output=True,
        check=False,
        timeout=60,
    )
    if done.returncode > 0:
        print(done.stderr.decode())
    return done.returncode


@pytest.fixture(scope="module")
def relay_filter() -> bytes:
    return filter_of("relay-udp")


@pytest.mark.parametrize("attempt", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_a_datagram_relay_must_not_do_kills_it(relay_filter: bytes, attempt: str) -> None:
    assert [run(attempt, program) for program in (b"", relay_filter)] == [0, -signal.SIGSYS]


@pytest.mark.parametrize("act", ALLOWED.values(), ids=ALLOWED)
def test_what_it_does_and_what_is_conceded_is_allowed(relay_filter: bytes, act: str) -> None:
    assert [run(act, program) for program in (b"", relay_filter)] == [0, 0]


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_what_the_filter_does_not_see_the_kernel_refuses(relay_filter: bytes, row: str) -> None:
    attempt, _, codes = row.rpartition("|")
    code = f"""
try:
    {attempt}
except OSError as error:
    assert errno.errorcode[error.errno] in {codes.split()}, error
else:
    raise AssertionError("it was done")
"""
    assert run(code, relay_filter, as_root=False) == 0


def test_a_monitor_s_filter_takes_a_datagram_relay_s_on_top(relay_filter: bytes) -> None:
    """A relay is forked by a monitor that is locked down, and inherits its filter."""
    code = f"linux.set_seccomp_filter(bytes.fromhex('{relay_filter.hex()}'))\n"
    for act in ALLOWED.values():
        assert run(code + act, filter_of("monitor-udp")) == 0
    assert run(code + FORBIDDEN["pid"], filter_of("monitor-udp")) == -signal.SIGSYS


def test_under_a_filter_without_udp_there_is_none_of_it() -> None:
    for act in (
        "receive(10)",
        "send_from(10, '127.0.0.1', elsewhere)",
        "call('writev', flow, iovec, 1)",
    ):
        assert run(act, filter_of("monitor")) == -signal.SIGSYS


def test_a_monitor_sends_datagrams_to_any_address() -> None:
    """By sendmsg, which it needs for its channels, whose numbers aren't fixed."""
    message = "call('sendmsg', {}, place(message(at('127.0.0.1', elsewhere))), SENT)"
    for act in (
        f"{message.format('pooled')}; assert receive(near_other) == 1",
        f"{message.format(10)}; assert receive(near_other) == 1",
        "call('socket', socket.AF_INET, DGRAM | socket.SOCK_CLOEXEC, 0)",
    ):
        assert run(act, filter_of("monitor-udp"), as_root=False) == 0
    assert run(message.format("unix"), filter_of("monitor-udp")) != 0


# Two interfaces besides lo, of which a listener is bound to lo.
INTERFACES = """
import subprocess
for words in ("link add d0 type veth peer name d1", "link set lo up", "link set d0 up",
              "link set d1 up", "addr add 10.77.0.1/24 dev d0", "addr add fd77::1/64 dev d0 nodad",
              "neigh add 10.77.0.2 lladdr 02:00:00:00:00:02 dev d0",
              "neigh add fd77::2 lladdr 02:00:00:00:00:02 dev d0"):
    subprocess.run(["ip", *words.split()], check=True)
"""


@pytest.mark.parametrize(("family", "leaves"), [("AF_INET", True), ("AF_INET6", False)])
def test_the_interface_of_a_listener_holds_in_ipv6_alone(
    relay_filter: bytes, family: str, leaves: bool
) -> None:
    """in_pktinfo names an interface to send by, and in IPv4 the kernel doesn't hold that against
    SO_BINDTODEVICE (ip_cmsg_send; ip6_datagram_send_ctl does).
    """
    source, there = ("10.77.0.1", "10.77.0.2") if leaves else ("fd77::1", "fd77::2")
    before = f"""
index = socket.if_nametoindex("d0")
one = socket.socket(socket.{family}, DGRAM)
one.setsockopt(1, 25, b"lo\\0")  # SO_BINDTODEVICE
one.bind(({"127.0.0.1" if leaves else "::1"!r}, 0))
descriptors.move(descriptors.above(one.detach(), FLOWS, "a listener"), 10)
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.ntohs(3))
wire.bind(("d1", 0))
wire = descriptors.above(wire.detach(), FLOWS, "the wire")
"""
    packed = f"socket.inet_pton(socket.{family}, {source!r})"
    control = (
        f"cmsg(0, 8, struct.pack('=i', index) + {packed} + bytes(4))"
        if leaves
        else f"cmsg(41, 50, {packed} + struct.pack('=i', index))"
    )
    code = f"""
try:
    send_from(10, {there!r}, 53, {control})
    left = False
    while not left and receive(wire):
        left = b"of its own choice" in room.raw
except OSError as error:
    assert error.errno in (errno.EINVAL, errno.EAGAIN), error
    left = False
assert left == {leaves}
"""
    assert run(code, relay_filter, before=before, own=INTERFACES) == 0


def test_a_listener_that_was_shut_down_sends_no_more(relay_filter: bytes) -> None:
    """The host monitor does that where a port is removed (monitor/effects.py). shutdown(2) answers
    ENOTCONN, and takes effect all the same (inet_shutdown, net/ipv4/af_inet.c).
    """
    before = """
assert socketcalls.shutdown(10, socket.SHUT_RDWR) == -errno.ENOTCONN
client.send(b"late")
"""
    code = """
assert receive(10) == receive(10) == 1
try:
    send_from(10, "127.0.0.1", elsewhere)
except OSError as error:
    assert error.errno == errno.EPIPE, error
else:
    raise AssertionError("it was sent")
"""
    assert run(code, relay_filter, before=before) == 0
