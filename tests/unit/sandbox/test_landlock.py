# SPDX-License-Identifier: GPL-2.0-or-later
"""What a Landlock ruleset denies and grants, by what the kernel is asked for."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

import pytest

from hardsplice.kernel import linux
from hardsplice.sandbox import landlock

BIND, CONNECT = 1, 2


@dataclass
class Kernel:
    """Writes down the rulesets."""

    handled: list[tuple[int, int, int]] = field(default_factory=list)
    granted: list[tuple[int, int]] = field(default_factory=list)

    def create(self, fs: int, net: int, scoped: int) -> int:
        self.handled.append((fs, net, scoped))
        return 77

    def add(self, ruleset: int, access: int, port: int) -> None:
        assert ruleset == 77
        self.granted.append((access, port))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(linux, "landlock_create_ruleset", made.create)
    monkeypatch.setattr(linux, "landlock_add_port", made.add)
    return made


def test_connections_to_the_given_ports_are_all_that_is_granted(kernel: Kernel) -> None:
    assert landlock.ruleset(6, {443, 80}) == 77
    assert kernel.handled == [((1 << 16) - 1, BIND | CONNECT, 3)]
    assert kernel.granted == [(CONNECT, 80), (CONNECT, 443)]


@pytest.mark.parametrize(
    ("connect", "bind", "handled", "granted"),
    [
        (None, (), BIND, []),
        ({80}, None, CONNECT, [(CONNECT, 80)]),
        (None, None, 0, []),
        ({80}, {8080}, BIND | CONNECT, [(CONNECT, 80), (BIND, 8080)]),
        ((), (), BIND | CONNECT, []),
    ],
)
def test_what_is_not_restricted_is_not_handled(
    kernel: Kernel, connect: object, bind: object, handled: int, granted: object
) -> None:
    landlock.ruleset(4, connect, bind)  # type: ignore[arg-type]
    assert kernel.handled[0][1:] == (handled, 0)
    assert kernel.granted == granted


def test_a_kernel_that_can_not_restrict_ports_is_not_asked_to(kernel: Kernel) -> None:
    landlock.ruleset(3, {80}, None)
    assert kernel.handled[0][1] == 0
    assert kernel.granted == []
    assert landlock.ruleset(0, {80}) is None


def test_a_layer_that_only_scopes(kernel: Kernel) -> None:
    """The host monitor's first: nothing else in it, and nothing at all where nothing is scoped."""
    assert landlock.scope(6) == 77
    assert kernel.handled == [(0, 0, 3)]
    assert landlock.scope(5) is None


def test_a_layer_that_leaves_signals_as_they_are(kernel: Kernel) -> None:
    """The host monitor's second, which its children are not under."""
    landlock.ruleset(6, {80}, scoped=False)
    assert kernel.handled == [((1 << 16) - 1, BIND | CONNECT, 0)]


def test_a_layer_that_denies_files_and_nothing_else(kernel: Kernel) -> None:
    assert landlock.no_files(7) == 77
    assert kernel.handled == [((1 << 16) - 1, 0, 0)]
    assert landlock.no_files(0) is None


@pytest.mark.parametrize("call", ["landlock_abi", "landlock_create_ruleset", "landlock_add_port"])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSYS, landlock.LACKED),
        (errno.EOPNOTSUPP, landlock.LACKED),
        (errno.EPERM, landlock.FORBIDDEN),
    ],
)
def test_why_there_is_none_is_told_by_the_error(
    call: str, code: int, reason: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(linux, "landlock_abi", lambda: 7)
    monkeypatch.setattr(os, "close", lambda fd: None)
    monkeypatch.setattr(linux, call, fail)
    found = landlock.support()
    assert found == landlock.Support(0, reason)
    assert len(found.lacking) == 3
    assert all(line.endswith(f": {reason}") for line in found.lacking)


def test_any_other_error_is_none_of_the_kernels_age(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(errno.ENOMEM, "")

    monkeypatch.setattr(linux, "landlock_abi", fail)
    with pytest.raises(OSError, match=f"Errno {errno.ENOMEM}"):
        landlock.support()
