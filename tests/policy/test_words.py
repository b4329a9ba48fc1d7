# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of words, held against Python's modules, which were built with the headers."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import resource
import select
import signal
import socket
import termios
import time

import pytest

from hardsplice.command import init
from hardsplice.ipc import descriptors
from hardsplice.kernel import pinned, syscalls
from hardsplice.kernel.syscalls import (
    ARCHITECTURES,
    CONSTANTS,
    DIRECT,
    INTS,
    PARAMETERS,
    RISKY,
    constant,
    parameters,
)
from hardsplice.model.roles import POLICIES
from hardsplice.sandbox import address_book
from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.seccomp import native_arch
from tests.policy import oracle

MODULES = (socket, os, fcntl, select, signal, resource, termios, mmap, time)


def test_every_constant_that_python_has_is_the_same_in_the_table() -> None:
    arch = native_arch()
    known = {
        name: int(getattr(module, name))
        for name in CONSTANTS
        for module in MODULES
        if hasattr(module, name)
    }
    assert len(known) > 40
    assert {name: constant(name, arch) for name in known} == known


def test_an_unknown_constant_is_an_error() -> None:
    with pytest.raises(KeyError):
        constant("SO_NOTHING", "x86_64")


def test_constants_that_differ_do() -> None:
    assert constant("FIONBIO", "ppc64le") == 0x8004667E
    assert constant("TIOCOUTQ", "ppc64le") == 0x40047473
    assert {constant("FIONBIO", arch) for arch in ARCHITECTURES if arch != "ppc64le"} == {0x5421}


def test_memory_that_is_not_reserved_has_another_bit_on_powerpc() -> None:
    """asm/mman.h; elsewhere that bit is part of nothing that a policy names."""
    assert {arch: constant("MAP_NORESERVE", arch) for arch in ARCHITECTURES} == {
        arch: 0x40 if arch == "ppc64le" else 0x4000 for arch in ARCHITECTURES
    }


def test_an_ioctl_that_hands_something_over_has_another_direction_on_powerpc() -> None:
    """_IOW('!', 3, struct seccomp_notif_addfd): asm/ioctl.h."""
    name = "SECCOMP_IOCTL_NOTIF_ADDFD"
    assert constant(name, "ppc64le") == 0x80182103
    assert {constant(name, arch) for arch in ARCHITECTURES if arch != "ppc64le"} == {0x40182103}


def test_socket_calls_have_the_numbers_of_the_kernel_s_headers() -> None:
    for arch, numbers in DIRECT.items():
        known = oracle.numbers(arch)
        assert numbers == {call: known[call] for call in numbers}
    assert DIRECT.keys() == {arch for arch in ARCHITECTURES if "socketcall" in oracle.numbers(arch)}


def test_what_hardsplice_asks_by_number_has_a_number_wherever_the_c_library_goes_another_way() -> (
    None
):
    """Else an import of kernel/socketcalls.py or kernel/scm.py would end there."""
    made = set()
    for module in ("kernel/socketcalls", "kernel/scm"):
        text = (oracle.ROOT / "hardsplice" / f"{module}.py").read_text(encoding="utf-8")
        made |= set(re.findall(r'\bway\("(\w+)"\)', text))
    assert {"accept4", "connect", "sendmsg", "recvfrom"} <= made
    for arch in ("i686", "s390x"):
        assert made <= set(DIRECT[arch])


# Prototypes of the manual pages: parameters of these names are `int`, `unsigned int` (close_range).
def test_parameters_that_are_ints_are_descriptors_and_nothing_else() -> None:
    assert {"fd", "oldfd", "newfd", "targetfd", "first"} == INTS
    wide = {name for names in PARAMETERS.values() for name in names} - INTS
    for name in ("addr", "optval", "old_address", "length", "size"):
        assert name in wide, "a pointer or a size has all its bits"


# --- words that a policy has itself ---


@pytest.mark.parametrize("role", POLICIES)
def test_descriptors_have_the_numbers_that_the_code_gives_them(role: str) -> None:
    names = {
        "LOG": descriptors.LOG_FD,
        "CHANNEL": descriptors.CHANNEL_FD,
        "READY": descriptors.READY_FD,
        "NOTIFY": descriptors.NOTIFY_FD,
        "RULESET": descriptors.RULESET_FD,
        "SIGNALS": descriptors.SIGNALS_FD,
        "REASON": init.REASON_FD,
        "REPORT": descriptors.CHANNEL_FD,
        "WATCH": descriptors.WATCH_FD,
        "LIFELINE": descriptors.LIFELINE_FD,
        "LISTENERS": descriptors.FIRST_LISTENER,
        "NONE": 2**64 - 1,  # -1, as a register has it
    }
    found = dict(load_policy(role).descriptors)
    flows = found.pop("FLOWS", descriptors.FIRST_LISTENER)
    assert flows >= descriptors.FIRST_LISTENER, "set-up decides; as it is written it is for six"
    assert found == {name: names[name] for name in found}


@pytest.mark.parametrize("role", POLICIES)
def test_addresses_are_those_where_the_code_puts_things(role: str) -> None:
    expected = dict(address_book.USUAL.words)
    steps = (len(pinned.UNSENT_SIZES) - 1) * 32
    expected["UNSENT_SLOTS"] = 2**64 - 1 - steps
    expected["TAG"] = 0xFF << 56
    found = load_policy(role).addresses
    assert found == {name: expected[name] for name in found}


@pytest.mark.parametrize("area", address_book.AREAS)
@pytest.mark.parametrize("role", POLICIES)
def test_set_up_moves_every_address_with_the_book(role: str, area: address_book.Area) -> None:
    found = dict(load_policy(role).settled(area.words).addresses)
    for mask in ("UNSENT_SLOTS", "TAG"):
        found.pop(mask, None)
    assert found == {name: area.words[name] for name in found}


@pytest.mark.parametrize("area", address_book.AREAS)
def test_a_masked_comparison_finds_the_beginnings_of_slots_and_nothing_else(
    area: address_book.Area,
) -> None:
    words = area.words
    assert area.size & (area.size - 1) == 0
    assert area.address % area.size == 0
    assert words["BOOK_END"] == area.address + area.size
    slots = range(area.address, area.address + area.size, 32)
    around = (*slots[:3], *slots[-3:], *(one + 1 for one in slots[:64]), slots.start - 32)
    for address in (*around, slots.stop, slots.stop + 32, slots.start + 2**32, 0):
        assert (address & words["BOOK_SLOTS"] == words["BOOK"]) == (address in slots)


def test_the_values_lie_where_no_pointer_to_a_slot_can_point() -> None:
    assert {area.address - area.values for area in address_book.AREAS} == {address_book.VALUES_SIZE}
    assert max(pinned.PINNED.values()) < address_book.VALUES_SIZE


def test_clone_has_its_arguments_the_other_way_round_on_s390x() -> None:
    assert [parameters("clone", arch).index("flags") for arch in ("x86_64", "s390x")] == [0, 1]


def test_the_architectures_are_those_of_the_kernel_s_headers() -> None:
    assert {arch.name: arch.audit for arch in ARCHITECTURES.values()} == oracle.AUDIT
    assert {arch.name: arch.bits for arch in ARCHITECTURES.values()} == oracle.BITS
    assert {arch.name: arch.byte_order for arch in ARCHITECTURES.values()} == oracle.BYTE_ORDER


def test_every_call_in_the_tables_is_one() -> None:
    real = {name for arch in ARCHITECTURES for name in oracle.numbers(arch)}
    assert (set(PARAMETERS) | RISKY) - real == set()


def test_what_does_not_differ_is_checked_for_one_architecture_instead_of_all() -> None:
    for name in syscalls.CONSTANTS:
        numbers = {syscalls.constant(name, arch) for arch in syscalls.ARCHITECTURES}
        assert len(numbers) == 1 or syscalls.differ("close", [name]), name
    for call in syscalls.PARAMETERS:
        names = {syscalls.parameters(call, arch) for arch in syscalls.ARCHITECTURES}
        assert len(names) == 1 or syscalls.differ(call, []), call
    assert not syscalls.differ("close", ["AF_UNIX"])
