# SPDX-License-Identifier: GPL-2.0-or-later
"""From numbers of rounds to medians, ratios and tables.

A ratio is hardsplice's number over the peer's in the same round, so what slowed a whole round
cancels; its spread over the rounds says how far to trust it.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from bench.rows import Idle, Load, Row

OURS = "hardsplice"
NOT_PEERS = ("direct", OURS)
RATIOS = ("rate", "cpu_us", "p99_us", "ready_ms", "pss_mib")

Result = dict[str, Any]


def summarise(row: Row, rounds: dict[str, list[dict[str, float]]]) -> Result:
    """Medians of all, and ratios to each peer, out of each peer's rounds."""
    peers: Result = {}
    ours = rounds.get(OURS, [])
    for name, numbers in rounds.items():
        keys = numbers[0].keys() if numbers else ()
        peers[name] = {
            "rounds": numbers,
            "median": {key: median(one[key] for one in numbers) for key in keys},
        }
        if name != OURS:
            peers[name]["ratio"] = ratios(ours, numbers)
    result: Result = {"name": row.name, "title": row.title, "peers": peers}
    if isinstance(row, Load):
        result |= {"unit": row.unit, "per": row.per}
    return result


def ratios(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> Result:
    """Ours to theirs, round by round: lowest, median, highest."""
    found: Result = {}
    for key in RATIOS:
        pairs = [
            mine[key] / other[key]
            for mine, other in zip(ours, theirs, strict=False)
            if mine.get(key) and other.get(key)
        ]
        if pairs:
            found[key] = {"min": min(pairs), "median": median(pairs), "max": max(pairs)}
    return found


def table(row: Row, result: Result) -> list[str]:
    """The row's lines for a terminal."""
    heads, cells = _columns(row, result)
    lines = [heads, *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    text = [f"\n{result['title']}"]
    for line in lines:
        first = line[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        text.append("  " + "  ".join([first, *rest]))
    for name, reason in result.get("failed", {}).items():
        text.append(f"  {name}: {reason}")
    return text


def _columns(row: Row, result: Result) -> tuple[list[str], list[list[str]]]:
    if isinstance(row, Load):
        columns = {
            result["unit"]: "rate", "p50 µs": "p50_us", "p99 µs": "p99_us",
            f"CPU µs/{row.per}": "cpu_us", "busy": "busy", "load busy": "load_busy",
        }  # fmt: skip
        compared = {"rate ratio": "rate", "CPU ratio": "cpu_us"}
    elif isinstance(row, Idle):
        columns = {
            "held": "connections", "files each": "descriptors_each", "processes": "processes",
            "PSS MiB": "pss_mib", "KiB each": "kib_each", "pipe pages": "pipe_pages",
            "busy": "busy",
        }  # fmt: skip
        compared = {}
    else:
        columns, compared = {"ms": "ready_ms"}, {"ratio": "ready_ms"}
    traced = any("calls" in peer for peer in result["peers"].values())
    heads = ["", *columns, *([f"calls/{row.per}"] if traced and isinstance(row, Load) else [])]
    cells = []
    for name, peer in result["peers"].items():
        line = [name, *(_number(peer["median"].get(key)) for key in columns.values())]
        if traced:
            line.append(_number(sum(peer["calls"].values()) if "calls" in peer else None))
        cells.append(line + [_ratio(peer.get("ratio", {}).get(key)) for key in compared.values()])
    return heads + list(compared), cells


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _ratio(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "-"
    return f"{spread['median']:.2f} ({spread['min']:.2f}-{spread['max']:.2f})"


# Each goal: row, the number, whose to compare with, and how the ratio's median must be. "best" is
# the peer with the highest rate in that row; None compares the number itself.
GOALS: tuple[tuple[str, str, str | None, str, float], ...] = (
    *(
        goal
        for number in (1, 8)
        for way in ("up", "down")
        for goal in (
            (f"bulk-{number}-{way}", "rate", "pasta", ">=", 1.05),
            (f"bulk-{number}-{way}", "cpu_us", "pasta", "<=", 1.0),
        )
    ),
    *(
        (f"bulk-{number}-{way}", "rate", "pasta", ">=", 1.5)
        for number in (64, 200)
        for way in ("up", "down")
    ),
    *(
        (f"ping-pong-{size}-{number}", "rate", "pasta", ">=", 1.0)
        for size in ("1b", "4k")
        for number in (1, 32)
    ),
    *(
        goal
        for work in (
            "rounds-1",
            "rounds-32",
            "stream-1-up",
            "stream-1-down",
            "stream-8-up",
            "stream-8-down",
            "gso-1-up",
            "gso-1-down",
        )
        for goal in (
            (f"udp-{work}", "rate", "rootlesskit", ">=", 1.0),
            (f"udp-{work}", "rate", "docker-proxy", ">=", 1.0),
            (f"udp-{work}", "rate", "pasta", ">=", 0.9),
        )
    ),
    ("connect-1", "rate", "best", ">=", 1.0),
    ("connect-32", "rate", "best", ">=", 1.0),
    ("connect-32", "rate", "pasta", ">=", 1.3),
    ("connect-1", "calls", None, "<=", 22),
    ("connect-32", "calls", None, "<=", 18),
    ("ping-pong-1b-1", "calls", None, "<=", 6),
    ("idle-1000", "descriptors_each", None, "<=", 2),
    ("idle-1000", "pss_mib", None, "<=", 40),
)


def goals(results: dict[str, Result]) -> list[Result]:
    """Each goal whose row was measured, with what was reached."""
    found = []
    for name, key, whose, relation, bound in GOALS:
        peers = results.get(name, {}).get("peers", {})
        against = _best(peers) if whose == "best" else whose
        reached = _reached(peers, key, against)
        if reached is None:
            continue
        # A hair of tolerance for numbers that are counts divided by other counts.
        held = reached >= bound if relation == ">=" else reached <= bound * 1.002
        what = f"{key} to {against}'s" if against else key
        found.append(
            {"row": name, "what": what, "reached": reached, "goal": f"{relation} {bound:g}",
             "held": held}
        )  # fmt: skip
    return found


def _best(peers: Result) -> str:
    rated = {
        name: peer["median"]["rate"]
        for name, peer in peers.items()
        if name.split(".")[0] not in NOT_PEERS and peer["rounds"]
    }
    return max(rated, key=lambda name: rated[name], default="")


def _reached(peers: Result, key: str, against: str | None) -> float | None:
    if against:
        spread = peers.get(against, {}).get("ratio", {}).get(key)
        return spread["median"] if spread else None
    ours = peers.get(OURS, {})
    if key == "calls":
        return sum(ours["calls"].values()) if "calls" in ours else None
    number: float | None = ours.get("median", {}).get(key)
    return number


def goal_lines(reached: list[Result]) -> list[str]:
    """The goals for a terminal."""
    if not reached:
        return []
    lines = ["\ngoals"]
    for goal in reached:
        word = "held  " if goal["held"] else "MISSED"
        lines.append(
            f"  {word}  {goal['row']:16} {goal['what']:38} {goal['reached']:8.2f}  {goal['goal']}"
        )
    return lines
