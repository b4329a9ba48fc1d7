# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands for typing has all that is asked of it; tests/integration/frontends/test_imports.py
holds that nothing loads typing itself.
"""

from __future__ import annotations

import typing

from hardsplice.kernel import hints


def test_each_of_its_names_is_one_of_typing_s() -> None:
    for name in hints.__all__:
        assert hasattr(hints, name)
        assert hasattr(typing, name)


Of = hints.TypeVar("Of")


class Says(hints.Protocol):
    def say(self) -> hints.Any: ...


class Holds(hints.Generic[Of]):
    kinds: hints.ClassVar[hints.Literal["one", "two"]] = "one"


def test_names_can_be_used_in_annotations_and_as_bases() -> None:
    class Speaker(Says):
        def say(self) -> hints.Any:
            return self

    speaker = Speaker()
    assert speaker.say() is speaker
    assert Holds[str]().kinds == "one"
    assert hints.cast("object", speaker) is speaker
