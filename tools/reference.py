# SPDX-License-Identifier: GPL-2.0-or-later
"""The references of hardsplicectl(1), as mdoc: every metric, and every field of the JSON, from the
tables by which they are made.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hardsplice.control import portapi, report
from hardsplice.control.fields import Field
from hardsplice.control.metrics import EACH_RELAY, METRICS, PREFIX, Metric
from hardsplice.telemetry.counters import BY_MONITOR, BY_RELAY, GAUGES

# What an answer is called, and its fields; each answer of the control socket that is JSON.
ANSWERS: tuple[tuple[str, Sequence[Field[Any]]], ...] = (
    ("GET /v1/info", portapi.INFO),
    ("GET /v1/ports (an array), POST /v1/ports", portapi.PORT),
    ("The spec of a port, and the body of POST /v1/ports", portapi.SPEC),
    ("GET /v1/status", report.STATUS),
    ("A direction of the status", report.DIRECTION),
    ("GET /v1/flows", report.FLOWS),
    ("One of the flows", report.FLOW),
    ("GET /v1/audit", report.AUDIT),
)


def escape(text: str) -> str:
    """Text as mdoc has it."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")


def _list(items: Iterable[tuple[str, str]]) -> list[str]:
    lines = [".Bl -tag -width Ds"]
    for head, text in items:
        sentences = escape(text).replace("; ", ";\n").split("\n")
        lines += [f".It {head}", *(line for one in sentences for line in _wrapped(one))]
    return [*lines, ".El"]


def _wrapped(text: str) -> list[str]:
    """Lines of at most 80 bytes, as mandoc's -Tlint asks for."""
    return textwrap.wrap(text, 80, break_long_words=False, break_on_hyphens=False)


def metrics() -> list[str]:
    """The metrics: those of hardsplice, then those of each relay."""

    def listed(*, of_relays: bool) -> list[str]:
        return _list(
            (f"Li {PREFIX}{metric.name} Pq {metric.kind}", _about(metric))
            for metric in METRICS
            if (EACH_RELAY.keys() <= metric.labels.keys()) == of_relays
        )

    return [
        *listed(of_relays=False),
        ".Pp",
        "These are each relay's own, with two more labels:",
        *(line for name, text in EACH_RELAY.items() for line in (f".Li {name} ,", f"{text};")),
        "and with those that are named.",
        *listed(of_relays=True),
    ]


def _about(metric: Metric) -> str:
    own = {name: text for name, text in metric.labels.items() if not _is_common(metric, name)}
    return "\n".join([metric.help, *(f"Label {name}: {text}." for name, text in own.items())])


def _is_common(metric: Metric, name: str) -> bool:
    return EACH_RELAY.keys() <= metric.labels.keys() and name in EACH_RELAY


def answers() -> list[str]:
    """The answers in JSON, with what their counters and gauges are."""
    lines = []
    for title, fields in ANSWERS:
        lines += _titled(title, {field.name: field.help for field in fields})
    lines += _titled("The counters", {one.name: one.help for one in (*BY_RELAY, *BY_MONITOR)})
    lines += _titled("The gauges", GAUGES)
    return lines


def _titled(title: str, texts: Mapping[str, str]) -> list[str]:
    return [f".Ss {title}", *_list((f"Li {name}", text) for name, text in texts.items())]
