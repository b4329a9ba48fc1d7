# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics in Prometheus' text format, version 0.0.4. Pure.

A family of metrics is written whole: its help, its type, then its samples, each with its labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hardsplice.kernel.hints import Literal

Kind = Literal["counter", "gauge", "histogram"]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LABEL_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_HELP_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One value. ``suffix`` is what a histogram adds to the family's name."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all its samples. The name of a counter ends in _total."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[Sample]


def histogram(
    labels: Mapping[str, str], bounds: Sequence[float], counts: Sequence[int], total: float
) -> list[Sample]:
    """The samples of one histogram: ``counts`` says how many were not above each bound, and then
    how many there were in all; ``total`` is the sum of what was observed.
    """
    edges = (*map(_number, bounds), "+Inf")
    return [
        *(
            Sample({**labels, "le": edge}, count, "_bucket")
            for edge, count in zip(edges, counts, strict=True)
        ),
        Sample(labels, total, "_sum"),
        Sample(labels, counts[-1], "_count"),
    ]


def render(families: Iterable[Family], common: Mapping[str, str]) -> str:
    """The text; each sample has the ``common`` labels too. A family without samples is left out."""
    lines = []
    for family in families:
        if not family.samples:
            continue
        lines.append(f"# HELP {family.name} {family.help.translate(_HELP_ESCAPES)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [_line(family.name, sample, common) for sample in family.samples]
    return "\n".join([*lines, ""])


def _line(name: str, sample: Sample, common: Mapping[str, str]) -> str:
    labels = ",".join(
        f'{key}="{value.translate(_LABEL_ESCAPES)}"'
        for key, value in {**common, **sample.labels}.items()
    )
    inside = f"{{{labels}}}" if labels else ""
    return f"{name}{sample.suffix}{inside} {_number(sample.value)}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(value)
