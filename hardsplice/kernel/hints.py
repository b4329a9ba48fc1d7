# SPDX-License-Identifier: GPL-2.0-or-later
"""typing, for modules whose annotations nobody evaluates: importing that takes as long as ten of
ours. Type checkers see what it has; here there are names that stand for anything.
"""

from __future__ import annotations

__all__ = [
    "TYPE_CHECKING",
    "Any",
    "ClassVar",
    "Final",
    "Generic",
    "Literal",
    "NoReturn",
    "Protocol",
    "TypeVar",
    "cast",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import (
        Any,
        ClassVar,
        Final,
        Generic,
        Literal,
        NoReturn,
        Protocol,
        TypeVar,
        cast,
    )
else:

    class _Hint:
        """What annotations are made of, and a base of classes that describe others."""

        __slots__ = ()

        def __class_getitem__(cls, _):
            return cls

    Any = ClassVar = Final = Generic = Literal = NoReturn = Protocol = _Hint

    def TypeVar(name, **_):  # noqa: N802 - its name
        """A name in annotations."""
        return name

    def cast(_, value):
        """The value as it is."""
        return value
