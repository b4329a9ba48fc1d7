# SPDX-License-Identifier: GPL-2.0-or-later
"""The address book between processes: who can write and read it, and where it is."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import os
import signal
import sys

import pytest

from hardsplice.sandbox.address_book import (
    USUAL,
    Book,
)
from tests.support import fresh

pytestmark = pytest.mark.usefixtures("nothing_left_open")


written = pytest.mark.parametrize("is_written", [True, False])


def test_the_view_that_can_be_written_is_not_passed_on() -> None:
    book = Book(USUAL, [], 0, is_written=True)
    assert book.view is not None
    assert ctypes.string_at(book.view, 1)
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        ctypes.string_at(book.view, 1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] & 0x7F == signal.SIGSEGV
    book.close()


# What each of the programs below starts with.
BEGIN = """
import ctypes, mmap, os, signal, socket, sys
from ipaddress import ip_address
from hardsplice.kernel import linux
from hardsplice.kernel import pinned
from hardsplice.kernel import socketcalls
from hardsplice.sandbox.address_book import LARGE, NO_ADDRESS, SLOT, USUAL, VALUES_SIZE
from hardsplice.sandbox.address_book import Book, Area, Pointer
from hardsplice.model.errors import HardspliceError
from hardsplice.relay.tcp import seam
libc = ctypes.CDLL(None, use_errno=True)
def target(number):
    return socketcalls.sockaddr(ip_address("127.0.0.1"), number)
def ended(function):
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    return os.waitpid(pid, 0)[1]
"""


def run(program: str) -> str:
    """What a program prints that is started afresh."""
    return fresh.output(BEGIN + program)


def test_it_is_where_the_filter_looks_for_it_and_all_of_its_place_is_taken() -> None:
    program = """
book = Book(PLACE, [target(80)], 0, is_written=False)
book.open()
book.close()
for line in open("/proc/self/maps"):
    if "memfd:targets" in line:
        first, last = (int(one, 16) for one in line.split()[0].split("-"))
        print(f"{first:#x} {last:#x}", line.split()[1])
"""
    lines = run(program.replace("PLACE", "USUAL")).splitlines()
    # The values and the slots are neighbours there, and may be shown as one.
    assert lines[0].startswith("0x1c0000 ")
    assert lines[-1].split()[1:] == ["0x400000", "r--s"]
    lines = run(program.replace("PLACE", "LARGE")).splitlines()
    assert lines[0].startswith("0x6ffc0000 ")
    assert lines[-1].split()[1:] == ["0x70400000", "r--s"]


def test_it_can_be_read_and_not_written() -> None:
    shown = run("""
book = Book(USUAL, [target(80)], 4, is_written=True)
book.open()
at = USUAL.address + SLOT * book.slot(target(80))
print(ctypes.string_at(at, 16) == target(80))
print(ctypes.string_at(USUAL.address + SLOT, SLOT) == NO_ADDRESS)
for where in (at, USUAL.values):
    print(ended(lambda: ctypes.memmove(where, b"x", 1)) == signal.SIGSEGV)
for where in (at & ~0xfff, USUAL.values):
    print(libc.mprotect(ctypes.c_void_p(where), 4096, 3) != 0)
""")
    assert set(shown.split()) == {"True"}


def test_another_process_sees_what_the_writer_adds_and_takes_out() -> None:
    shown = run("""
book = Book(USUAL, [], 4, is_written=True)
there, here = socket.socketpair()
pid = os.fork()
if pid == 0:
    book.open()
    there.send(b"ready")
    for _ in range(3):
        number = there.recv(8)[0]
        one = Pointer(USUAL, number, 0, target(80))
        there.send(bytes([one.holds()]))
    os._exit(0)
here.recv(8)
def asked():
    here.send(bytes([0]))
    return here.recv(1)[0]
said = [asked()]
assert book.add(target(80)) == 0
said.append(asked())
book.remove(target(80))
said.append(asked())
os.waitpid(pid, 0)
print(said)
""")
    assert shown == "[0, 1, 0]\n"


def test_a_target_that_was_given_up_is_refused_without_a_connect() -> None:
    """A flow may have waited for a socket while its port was removed, and its slot used again."""
    shown = run("""
with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
    port = server.getsockname()[1]
    book = Book(USUAL, [], 4, is_written=True)
    book.open()
    slot = book.add(target(port))
    one = Pointer(USUAL, slot, 0, target(port))
    client.setblocking(False)
    book.remove(target(port))
    book._write(slot, target(port + 1).ljust(SLOT, bytes(1)))
    print(seam.connect(client.fileno(), one))
    book._write(slot, target(port).ljust(SLOT, bytes(1)))
    print(seam.connect(client.fileno(), one) in (0, -115), socketcalls.connected(client.fileno()))
""")
    assert shown == f"-{errno.ECONNREFUSED}\nTrue 0\n"


def test_the_values_of_options_are_taken_from_there() -> None:
    shown = run("""
a, b = (socket.socket() for _ in range(2))
book = Book(USUAL, [], 4, is_written=True)
book.open()
book.pin(is_writer=True)
assert socketcalls.abort(a.fileno()) == 0
print(a.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8).hex())
for size in pinned.UNSENT_SIZES:
    assert socketcalls.limit_unsent(a.fileno(), size) == 0
    print(a.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == size)
""").split()
    on = (1).to_bytes(4, sys.byteorder).hex()
    assert shown == [on + "00000000", *["True"] * 4]


@written
def test_only_the_writer_writes_down_where_to_listen(is_written: bool) -> None:
    """Anybody else would have to have a view for that, and there is none."""
    shown = run(f"""
book = Book(USUAL, [], 4, is_written=True)
book.open()
book.pin(is_writer={is_written})
try:
    pinned.write_bind_address(target(80), b"lo")
    print(ctypes.string_at(USUAL.values + pinned.BIND_IPV4, 16) == target(80))
    print(ctypes.string_at(USUAL.values + pinned.DEVICE, 3) == b"lo" + bytes(1))
    pinned.clear_bind_address()
except AssertionError:
    print("no")
nowhere = pinned.NOWHERE[socket.AF_INET]
print(ctypes.string_at(USUAL.values + pinned.BIND_IPV4 + 2, 14) == nowhere)
""").split()
    assert shown == (["True"] * 3 if is_written else ["no", "True"])


LAST = "USUAL.address + USUAL.size - 4096"


@pytest.mark.parametrize("at", ["USUAL.values", "USUAL.address", LAST])
def test_what_is_in_its_place_already_is_not_mapped_over(at: str) -> None:
    shown = run(f"""
fd = os.memfd_create("mine")
os.ftruncate(fd, 65536)
linux.map_shared(fd, 4096, mmap.PROT_READ, address={at})
try:
    Book(USUAL, [], 4, is_written=True).open()
except HardspliceError as failure:
    print(failure)
print(ctypes.string_at({at}, 4) == bytes(4))
""")
    line, untouched = shown.splitlines()
    assert line == "cannot map the address book at 0x200000: File exists"
    assert untouched == "True"


def test_it_stays_when_its_file_is_closed_and_is_inherited() -> None:
    shown = run("""
book = Book(USUAL, [target(80)], 0, is_written=False)
book.open()
book.close()
book.close()
one = Pointer(USUAL, 0, 0, target(80))
print(one.holds())
print(ended(lambda: os._exit(0 if one.holds() else 1)))
""")
    assert shown == "True\n0\n"


def test_it_is_sealed_where_the_kernel_can_do_that() -> None:
    shown = run("""
import errno
book = Book(USUAL, [target(80)], 0, is_written=False)
try:
    page = mmap.mmap(-1, 4096)
    linux.mseal(ctypes.addressof(ctypes.c_char.from_buffer(page)), 4096)
    can = True
except OSError as error:
    can = False
print((book.open() is None) == can)
for where in (USUAL.values, USUAL.address):
    print((libc.munmap(ctypes.c_void_p(where), 4096) == -1) == can)
""")
    assert set(shown.split()) == {"True"}
