# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of words, held against Python's modules, which were built with the headers."""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import termios
import time

import pytest

from hardsplice.seccomp import native_arch
from hardsplice.syscalls import ARCHITECTURES, CONSTANTS, PARAMETERS, RISKY, constant, parameters
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


def test_clone_has_its_arguments_the_other_way_round_on_s390x() -> None:
    assert [parameters("clone", arch).index("flags") for arch in ("x86_64", "s390x")] == [0, 1]


def test_the_architectures_are_those_of_the_kernel_s_headers() -> None:
    assert {arch.name: arch.audit for arch in ARCHITECTURES.values()} == oracle.AUDIT
    assert {arch.name: arch.bits for arch in ARCHITECTURES.values()} == oracle.BITS
    assert {arch.name: arch.byte_order for arch in ARCHITECTURES.values()} == oracle.BYTE_ORDER


def test_every_call_in_the_tables_is_one() -> None:
    real = {name for arch in ARCHITECTURES for name in oracle.numbers(arch)}
    assert (set(PARAMETERS) | RISKY) - real == set()
