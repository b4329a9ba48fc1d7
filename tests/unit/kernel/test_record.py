# SPDX-License-Identifier: GPL-2.0-or-later
"""Records are what typing's would be."""

from __future__ import annotations

import copy
import pickle
import typing
from typing import Any

import pytest

from hardsplice.kernel import record


class Ours(record.NamedTuple):
    """A text."""

    name: str
    port: int = 0

    @property
    def where(self) -> str:
        """A property."""
        return f"{self.name}:{self.port}"

    @classmethod
    def of(cls, name: str) -> Ours:
        """Another way to make one."""
        return cls(name)


class Theirs(typing.NamedTuple):
    """A text."""

    name: str
    port: int = 0


def test_it_is_made_and_compared_and_shown_as_theirs() -> None:
    assert Ours("a") == Ours.of("a") == ("a", 0) == tuple(Theirs("a"))
    assert repr(Ours("a", port=1)) == "Ours(name='a', port=1)"
    assert Ours("a")._replace(port=2).where == "a:2"


def test_it_takes_what_theirs_takes() -> None:
    kind: Any
    for given, named in (((), {}), (("a", 1, 2), {}), (("a",), {"name": "b"}), ((), {"host": 1})):
        for kind in (Ours, Theirs):
            with pytest.raises(TypeError):
                kind(*given, **named)
    for kind in (Ours, Theirs):
        # theirs raises a TypeError from Python 3.13 on
        with pytest.raises((TypeError, ValueError), match="host"):
            kind("a")._replace(host=1)
        with pytest.raises(TypeError, match="Expected 2 arguments, got 1"):
            kind._make(["a"])
    assert Ours._make(["a", 1])._asdict() == {"name": "a", "port": 1}


def test_it_is_copied_and_passed_on_and_matched() -> None:
    one = Ours("a", 1)
    for again in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert again == one
        assert type(again) is Ours
    match one:
        case Ours("a", port=port):
            assert port == 1
        case _:
            raise AssertionError


def test_it_says_the_same_of_itself() -> None:
    for name in (
        "_fields",
        "_field_defaults",
        "__match_args__",
        "__doc__",
        "__module__",
        "__mro__",
    ):
        ours, theirs = getattr(Ours, name), getattr(Theirs, name)
        assert ours == theirs or name == "__mro__"
    assert Ours.__mro__[1:] == Theirs.__mro__[1:]
    assert Ours.__annotations__ == {"name": "str", "port": "int"}
    assert Ours.__qualname__ == "Ours"


def test_a_value_is_not_changed() -> None:
    with pytest.raises(AttributeError):
        Ours("a").name = "b"  # type: ignore[misc]
    assert not hasattr(Ours("a"), "__dict__")
