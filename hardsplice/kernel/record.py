# SPDX-License-Identifier: GPL-2.0-or-later
"""typing.NamedTuple for classes whose annotations nobody evaluates. That one compiles code for each
of them, which takes as long as a tenth of a start; here it is compiled once for each number of
fields. Type checkers see no difference.
"""

from __future__ import annotations

from hardsplice.kernel.hints import TYPE_CHECKING

__all__ = ["NamedTuple"]

if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from _collections import _tuplegetter
    from functools import cache
    from types import FunctionType

    _OWN = frozenset({"__annotations__", "__module__", "__qualname__", "__classcell__"})
    _GLOBALS = {"_tuple_new": tuple.__new__, "__builtins__": {}}

    @cache
    def _code_for(number):
        """The code of __new__ with so many fields, by whatever names."""
        words = "".join(f"_{at}, " for at in range(number))
        return eval(f"lambda _cls, {words}: _tuple_new(_cls, ({words}))", _GLOBALS).__code__  # noqa: S307

    def _new(fields, defaults):
        code = _code_for(len(fields)).replace(co_name="__new__", co_varnames=("_cls", *fields))
        return FunctionType(code, _GLOBALS, "__new__", tuple(defaults))

    def _make(cls, values):
        made = tuple.__new__(cls, values)
        if len(made) != len(cls._fields):
            raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
        return made

    def _replace(self, /, **given):
        made = self._make(map(given.pop, self._fields, self))
        if given:
            raise TypeError(f"Got unexpected field names: {list(given)!r}")
        return made

    def _asdict(self):
        return dict(zip(self._fields, self, strict=True))

    def _getnewargs(self):
        return tuple(self)

    def _repr(self):
        shown = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
        return f"{type(self).__name__}({shown})"

    _METHODS = {
        "_make": classmethod(_make),
        "_replace": _replace,
        "_asdict": _asdict,
        "__repr__": _repr,
        "__getnewargs__": _getnewargs,
    }

    class _Maker(type):
        def __new__(cls, name, _, namespace):
            """A class as of collections.namedtuple, with what else is in the class's body."""
            annotations = namespace["__annotations__"]
            fields = tuple(annotations)
            defaults = {field: namespace[field] for field in fields if field in namespace}
            getters = {field: _tuplegetter(at, "") for at, field in enumerate(fields)}
            body = {key: value for key, value in namespace.items() if key not in _OWN}
            return type(
                name,
                (tuple,),
                {
                    **_METHODS,
                    **body,
                    **getters,
                    "__slots__": (),
                    "__new__": _new(fields, defaults.values()),
                    "__match_args__": fields,
                    "_fields": fields,
                    "_field_defaults": defaults,
                    "__annotations__": annotations,
                    "__module__": namespace["__module__"],
                    "__qualname__": namespace["__qualname__"],
                },
            )

    NamedTuple = type.__new__(_Maker, "NamedTuple", (), {})
