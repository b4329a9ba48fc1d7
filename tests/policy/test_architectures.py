# SPDX-License-Identifier: GPL-2.0-or-later
"""How the architectures differ, as a table that a person has looked through.

A difference that isn't here is a mistake until somebody has understood it; then it goes here with
its reason. The names are those that the compiled filters let through, not those in the policies.
"""

from __future__ import annotations

import pytest

from tests.policy import oracle
from tests.policy.test_filters import allowed_calls
from tests.policy.whose import DATAGRAM_MONITORS, DATAGRAM_RELAYS, MONITORS, RELAYS

# Against x86_64: what an architecture has more, and what it lacks.
#   epoll_pwait, ppoll           newer architectures never had epoll_wait and poll; and ppoll starts
#                                over by itself, where poll needs restart_syscall
#   mmap2, fcntl64, ftruncate64  32 bits: offsets need more than a register
#   clock_gettime64              32 bits: so does the time after 2038
#   _llseek                      the same; ppc64le has kept it, and its C library takes it
#   recv, send                   calls of their own on armhf and ppc64le
#   recvmmsg_time64              32 bits: its time is one after 2038; hardsplice makes it by its
#                                number, since C libraries try one of the two and then the other
#   sigreturn                    what a handler without SA_SIGINFO returns by, where there are two
DIFFERENCES: dict[str, dict[str, tuple[str, str]]] = {
    "relay": {
        "i686": ("clock_gettime64 fcntl64 mmap2", "clock_gettime fcntl mmap"),
        "arm64": ("epoll_pwait", "epoll_wait"),
        "armhf": (
            "clock_gettime64 fcntl64 mmap2 recv send",
            "clock_gettime fcntl mmap recvfrom sendto",
        ),
        "ppc64le": ("recv send", "recvfrom sendto"),
        "s390x": ("", ""),
        "riscv64": ("epoll_pwait", "epoll_wait"),
    },
    "monitor": {
        "i686": (
            "_llseek clock_gettime64 fcntl64 ftruncate64 mmap2",
            "clock_gettime fcntl ftruncate lseek mmap",
        ),
        "arm64": ("epoll_pwait ppoll", "epoll_wait poll restart_syscall"),
        "armhf": (
            "_llseek clock_gettime64 fcntl64 ftruncate64 mmap2 recv send",
            "clock_gettime fcntl ftruncate lseek mmap recvfrom sendto",
        ),
        "ppc64le": ("_llseek recv send", "lseek recvfrom sendto"),
        "s390x": ("", ""),
        "riscv64": ("epoll_pwait ppoll", "epoll_wait poll restart_syscall"),
    },
    "relay-udp": {
        "i686": ("clock_gettime64 mmap2 recvmmsg_time64", "clock_gettime mmap recvmmsg"),
        "arm64": ("epoll_pwait", "epoll_wait"),
        "armhf": (
            "clock_gettime64 mmap2 recv recvmmsg_time64 send",
            "clock_gettime mmap recvfrom recvmmsg sendto",
        ),
        "ppc64le": ("recv send", "recvfrom sendto"),
        "s390x": ("", ""),
        "riscv64": ("epoll_pwait", "epoll_wait"),
    },
    "init": {
        "i686": ("clock_gettime64 mmap2 sigreturn", "clock_gettime mmap"),
        "arm64": ("ppoll", "poll restart_syscall"),
        "armhf": ("clock_gettime64 mmap2 sigreturn", "clock_gettime mmap"),
        "ppc64le": ("", ""),
        "s390x": ("sigreturn", ""),
        "riscv64": ("ppoll", "poll restart_syscall"),
    },
    "guard": {
        "i686": ("clock_gettime64 mmap2", "clock_gettime mmap"),
        "arm64": ("", ""),
        "armhf": ("clock_gettime64 mmap2", "clock_gettime mmap"),
        "ppc64le": ("", ""),
        "s390x": ("", ""),
        "riscv64": ("", ""),
    },
}
# What others of the same kind have besides is the same everywhere.
DIFFERENCES |= dict.fromkeys(RELAYS, DIFFERENCES["relay"])
DIFFERENCES |= dict.fromkeys(DATAGRAM_RELAYS, DIFFERENCES["relay-udp"])
DIFFERENCES |= dict.fromkeys(MONITORS, DIFFERENCES["monitor"])


def with_datagrams(arch: str, more: str, less: str) -> tuple[str, str]:
    """What a monitor differs by whose relays are of both kinds."""
    if arch in ("i686", "armhf"):
        return f"{more} recvmmsg_time64", f"{less} recvmmsg"
    return more, less


DIFFERENCES |= {
    role: {arch: with_datagrams(arch, *both) for arch, both in DIFFERENCES["monitor"].items()}
    for role in DATAGRAM_MONITORS
}


@pytest.mark.parametrize("role", oracle.ROLES)
@pytest.mark.parametrize("arch", [arch for arch in oracle.ARCHES if arch != "x86_64"])
def test_an_architecture_differs_from_x86_64_as_the_reviewed_table_says(
    role: str, arch: str
) -> None:
    usual, here = allowed_calls(role, "x86_64"), allowed_calls(role, arch)
    more, less = DIFFERENCES[role][arch]
    assert (set(here - usual), set(usual - here)) == (set(more.split()), set(less.split()))
