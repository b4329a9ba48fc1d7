# SPDX-License-Identifier: GPL-2.0-or-later
"""What hardsplice answers, in words and tables for people. Pure: values in, lines out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from hardsplice.kernel.hints import Any
from hardsplice.model.direction import Direction
from hardsplice.model.errors import printable

CELL_LIMIT = 80  # characters of a cell; an address with its interface and port takes less
# The counters that a direction's line has, beside RESTARTS and what was moved.
COUNTED = ("accepted", "refused", "reset")
MOVED = ("bytes_to_target", "bytes_to_client")
_UNITS = ("", "K", "M", "G", "T", "P", "E")
_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, each as wide as it has to be."""
    shown = [heads, *(tuple(printable(cell, CELL_LIMIT) for cell in row) for row in rows)]
    widths = [max(len(row[at]) for row in shown) for at in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    ]


def ends(port: Mapping[str, Any]) -> tuple[str, str]:
    """Where a port listens, and where it leads."""
    spec = port["spec"]
    parent = str(spec.get("parentIP", "")), spec["parentPort"]
    child = str(spec.get("childIP", "")), spec["childPort"]
    here, there = (parent, child) if port["direction"] == Direction.INBOUND else (child, parent)
    return _end(here, "*"), _end(there, "loopback")


def _end(end: tuple[str, int], without: str) -> str:
    address, number = end
    if ":" in address:
        host, percent, interface = address.partition("%")
        address = f"[{host}]{percent}{interface}"
    return f"{address or without}:{number}"


def ports(listed: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ports, one a line."""
    rows = [
        (str(port["id"]), port["direction"], port["spec"]["proto"], *ends(port), port["source"])
        for port in listed
    ]
    return table(("ID", "DIRECTION", "PROTO", "LISTENS ON", "LEADS TO", "SOURCE"), rows)


def duration(seconds: float) -> str:
    """A length of time, short: "3.2 s", "12:05", "3 d 04:00"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    hours, minutes = rest // 3600, rest % 3600 // 60
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    if hours:
        return f"{hours}:{minutes:02}:{whole % 60:02}"
    return f"{minutes}:{whole % 60:02}"


def size(count: float) -> str:
    """Bytes with a unit of 1024 and its powers."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.{0 if not unit or count >= 100 else 1}f}{_UNITS[unit]}"


def flows(answer: Mapping[str, Any]) -> list[str]:
    """The flows, one a line."""
    listed = answer["flows"]
    rows = [
        (
            flow["direction"], flow["protocol"], flow["state"], flow["client"], flow["target"],
            duration(flow["seconds"]), size(flow["bytesToTarget"]), size(flow["bytesToClient"]),
        )
        for flow in listed
    ]  # fmt: skip
    heads = ("DIRECTION", "PROTO", "STATE", "CLIENT", "TARGET", "AGE", "TO TARGET", "TO CLIENT")
    left_out = answer["total"] - len(listed)
    more = [f"and {left_out} more"] if left_out > 0 else []
    return [*table(heads, rows), *more]


def heading(answer: Mapping[str, Any]) -> str:
    """Who answers, and for how long it has run."""
    up = duration(answer["uptimeSeconds"])
    return printable(f"hardsplice {answer['version']}, process {answer['pid']}, up for {up}")


def status(answer: Mapping[str, Any]) -> list[str]:
    """The state, a few lines."""
    lines = [heading(answer), f"serves {answer['namespace']}"]
    lines += [f"not in force: {layer}" for layer in answer["lacking"]]
    for what, count in answer["denied"].items():
        if count:
            lines.append(f"denied: {count} x {what}")
    lines.append("")
    rows = [
        (name, *_numbers(of))
        for direction in Direction
        for name, of in _by_protocol(direction, answer["directions"][direction])
    ]
    heads = ("", "PORTS", "RELAYS", "RESTARTS", "FLOWS", *map(str.upper, COUNTED))
    return [*map(printable, lines), *table((*heads, "TO TARGET", "TO CLIENT"), rows)]


def _by_protocol(
    direction: Direction, answer: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A direction; its protocols one by one where there is more than TCP."""
    protocols = answer.get("protocols", {})
    udp = protocols.get("udp")
    if udp and (udp["ports"] or udp["relays"]):
        yield from ((f"{direction} {name}", of) for name, of in protocols.items())
    else:
        yield direction, answer


def _numbers(answer: Mapping[str, Any]) -> tuple[str, ...]:
    counters = answer["counters"]
    return (
        str(answer["ports"]),
        str(answer["relays"]),
        str(counters.get("restarts", 0)),
        str(sum(answer["flows"].values())),
        *(str(counters.get(name, 0)) for name in COUNTED),
        *(size(counters.get(name, 0)) for name in MOVED),
    )


def metrics(text: str) -> list[dict[str, object]]:
    """The samples in Prometheus' text, for --json."""
    found: list[dict[str, object]] = []
    for line in text.split("\n"):
        match = _SAMPLE.fullmatch(line)
        if match is None:
            continue  # a comment
        labels = {
            name: re.sub(r"\\.", lambda escape: _ESCAPES.get(escape[0], escape[0]), value)
            for name, value in _LABEL.findall(match[2] or "")
        }
        found.append({"name": match[1], "labels": labels, "value": float(match[3])})
    return found
