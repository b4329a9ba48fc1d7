# SPDX-License-Identifier: GPL-2.0-or-later
"""typing.NamedTuple for classes whose annotations nobody evaluates. That one compiles each of them,
which takes as long as a tenth of a start; type checkers see no difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["NamedTuple"]

if TYPE_CHECKING:
    from typing import NamedTuple
else:
    import collections

    _OWN = frozenset({"__annotations__", "__module__", "__qualname__", "__classcell__"})

    class _Maker(type):
        def __new__(cls, name, _, namespace):
            """A class of collections.namedtuple, with what else is in the class's body."""
            fields = namespace["__annotations__"]
            made = collections.namedtuple(
                name,
                fields,
                defaults=[namespace[field] for field in fields if field in namespace],
                module=namespace["__module__"],
            )
            made.__annotations__ = fields
            made.__qualname__ = namespace["__qualname__"]
            for key, value in namespace.items():
                if key not in _OWN and key not in fields:
                    setattr(made, key, value)
            return made

    NamedTuple = type.__new__(_Maker, "NamedTuple", (), {})
