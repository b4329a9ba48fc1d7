# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a listener: what becomes of it for whoever has it, by each way in which it may be
bound. One that nobody answers is in sandbox/test_retired.py: the kernel takes three seconds to give
it up.
"""

from __future__ import annotations

import pytest

from tests.support.retiring import run


@pytest.mark.parametrize(
    ("family", "address"),
    [
        ("AF_INET", "127.0.0.1"),
        ("AF_INET", "0.0.0.0"),
        ("AF_INET", "127.9.9.9"),
        ("AF_INET6", "::1"),
        ("AF_INET6", "::"),
        ("AF_INET6", "::ffff:127.0.0.1"),
    ],
)
@pytest.mark.parametrize("has_ipv6", [True, False])
def test_it_is_used_up_at_once(family: str, address: str, *, has_ipv6: bool) -> None:
    if not has_ipv6 and address == "::1":
        pytest.skip("there is no such address without IPv6")
    words = run(f"""
if not {has_ipv6}:
    close_all([sink.fds.pop(1)])
made = listener(socket.{family}, "{address}")
free = len(book._free)
one.end(os.dup(made.fileno()), "it")
print(code_of(made.listen), code_of(made.connect, ("{address}", 9)), len(book._free) == free)
print(timers.due, told, misused)
""")
    assert words == ["EINVAL", "EISCONN", "True", "None", "[]", "[]"]


def test_what_can_not_be_connected_is_told_in_the_end() -> None:
    words = run("""
close_all(sink.fds.values())
sink.fds.clear()
made = listener(socket.AF_INET, "127.0.0.1")
one.end(os.dup(made.fileno()), "it")
tries = 1
while timers.due:
    due, timers.due = timers.due, None
    due()
    tries += 1
print(tries == retiring.TRIES, [failure.verb for failure in told], misused)
print(made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), len(one._late))
""")
    assert words == ["True", "['free']", "[]", "0", "0"]


@pytest.mark.parametrize("full", [True, False])
def test_a_book_that_is_full_is_no_reason_to_leave_it(*, full: bool) -> None:
    words = run(f"""
from ipaddress import ip_address
if {full}:
    while book._free:
        book.add(socketcalls.sockaddr(ip_address("192.0.2.1"), len(book._free)))
made = listener(socket.AF_INET, "127.0.0.1")
one.end(os.dup(made.fileno()), "it")
print(timers.due is not None, code_of(made.listen))
if {full}:
    book.remove(socketcalls.sockaddr(ip_address("192.0.2.1"), 1))
    go_on(lambda: not one._late)
print(code_of(made.listen))
""")
    assert words == ["True", "done", "EINVAL"] if full else ["False", "EINVAL", "EINVAL"]


@pytest.mark.parametrize("use", ["listen", "connect"])
def test_who_uses_it_meanwhile_is_found_out_if_it_is_certain(use: str) -> None:
    """A connection that is not answered can be ours: of that it is no sign."""
    words = run(f"""
made = listener(socket.AF_INET, "127.0.0.1")
silent = listener(socket.AF_INET, "127.0.0.1")  # which sends with 64 hops: it is not heard
ended, tries = socketcalls.shutdown, [0]
def interfered(fd, how):
    code = ended(fd, how)
    if fd not in sink.fds.values():
        tries[0] += 1
        made.listen() if {use!r} == "listen" else made.connect_ex(silent.getsockname())
    return code
socketcalls.shutdown = interfered
one.end(os.dup(made.fileno()), "it")
print(set(misused), tries[0] >= retiring.ATTEMPTS)
""")
    assert words[-1] == "True"
    assert ("uses" in words) == (use == "listen")


def test_the_port_is_for_those_who_share() -> None:
    words = run("""
made = listener(socket.AF_INET, "127.0.0.1")
port = made.getsockname()[1]
one.end(os.dup(made.fileno()), "it")
with socket.socket() as other:
    print(code_of(other.bind, ("127.0.0.1", port)))
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    print(code_of(other.bind, ("127.0.0.1", port)), code_of(other.listen))
""")
    assert words == ["EADDRINUSE", "done", "done"]


def test_the_sink_keeps_nobody_from_its_port() -> None:
    words = run("""
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    print(code_of(listener, family, address, sink.port))
""")
    assert words == ["done", "done"]
