# SPDX-License-Identifier: GPL-2.0-or-later
"""The fields of answers: each declared once, with its name, its meaning, and where its value comes
from. hardsplicectl(1) lists them; that list is made from these tables (tools/generate.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hardsplice.kernel.hints import Generic, TypeVar

Of = TypeVar("Of")


@dataclass(frozen=True, slots=True)
class Field(Generic[Of]):
    """One field of a JSON object that tells of an ``Of``."""

    name: str
    help: str
    value: Callable[[Of], object]  # None where the object has no such field


def build(fields: Iterable[Field[Of]], of: Of) -> dict[str, object]:
    """The object."""
    found = ((field.name, field.value(of)) for field in fields)
    return {name: value for name, value in found if value is not None}
