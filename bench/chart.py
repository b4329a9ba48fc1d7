# SPDX-License-Identifier: GPL-2.0-or-later
"""The README's picture, drawn from a result: python -m bench.chart [RESULT.json [CHART.svg]].

A panel for each kind of work, a bar for each forwarder, hardsplice's in colour. The SVG is written
by hand: text, rectangles, and two sets of colours, of which the viewer's scheme, light or dark,
chooses one. The page is painted, since around the picture another scheme may be in force.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
WIDTH = 960
MARGIN = 24
COLUMNS = 2
GAP = 40  # between columns
NAME = 128  # pixels for a forwarder's name
FIGURE = 76  # and for its figure
BAR = 15
PITCH = 21
HEAD = 40  # of a panel
FOOT = 22

NAMES = {"systemd-socket-proxyd": "socket-proxyd", "direct": "no forwarder"}
LEFT_OUT = ("direct",)

STYLE = """
  .page { fill: #ffffff; }
  text { font: 12.5px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
  .title { font-size: 17px; font-weight: 600; }
  .head { font-size: 13.5px; font-weight: 600; }
  .quiet { fill: #656d76; }
  .ours { font-weight: 600; }
  .track { fill: #eaeef2; }
  .bar { fill: #8c959f; }
  .bar.ours { fill: #0969da; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; }
    text { fill: #e6edf3; }
    .quiet { fill: #8d96a0; }
    .track { fill: #21262d; }
    .bar { fill: #6e7681; }
    .bar.ours { fill: #4493f8; }
  }
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One kind of work: which row, which number of it, and what to write above."""

    row: str
    head: str
    unit: str
    key: str = "rate"
    less_is_better: bool = False


PANELS = (
    Panel("bulk-1-up", "Bulk, 1 connection", "GiB/s"),
    Panel("bulk-1-up", "CPU for it", "µs/MiB", "cpu_us", less_is_better=True),
    Panel("bulk-200-up", "Bulk, 200 connections, ordinary user", "GiB/s"),
    Panel("idle-1000", "Memory with 1,000 idle connections", "MiB", "pss_mib", less_is_better=True),
    Panel("ping-pong-1b-1", "Ping-pong, 1 connection", "round trips/s"),
    Panel("ping-pong-1b-32", "Ping-pong, 32 connections", "round trips/s"),
    Panel("connect-1", "Short connections, in sequence", "connections/s"),
    Panel("connect-32", "Short connections, 32 at once", "connections/s"),
)


def figures(result: dict[str, Any], panel: Panel) -> list[tuple[str, float]]:
    """Each forwarder's figure in a panel, the best first; empty where the row wasn't measured."""
    rows = [row for row in result["rows"] if row["name"] == panel.row]
    if not rows:
        return []
    found = [
        (name, peer["median"][panel.key])
        for name, peer in rows[0]["peers"].items()
        if name not in LEFT_OUT and peer["median"].get(panel.key)
    ]
    return sorted(found, key=lambda pair: pair[1], reverse=not panel.less_is_better)


def number(value: float) -> str:
    """Three digits, or thousands."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def text(x: int, y: int, words: str, kind: str, anchor: str = "start") -> str:
    """One line of text."""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def bar(x: int, y: int, width: int, kind: str) -> str:
    """One bar, or the track behind it."""
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{BAR}" rx="3"/>'


def panel_lines(panel: Panel, bars: list[tuple[str, float]], left: int, top: int) -> list[str]:
    """The SVG of one panel."""
    start = left + NAME
    room = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS - NAME - FIGURE
    longest = max(value for _, value in bars)
    better = "less" if panel.less_is_better else "more"
    lines = [
        text(left, top + 16, panel.head, "head"),
        text(start + room + FIGURE, top + 16, f"{panel.unit}, {better} is better", "quiet", "end"),
    ]
    for place, (name, value) in enumerate(bars):
        y = top + HEAD - 12 + place * PITCH
        ours = " ours" if name.startswith("hardsplice") else ""
        lines += [
            text(start - 8, y + 12, NAMES.get(name, name), f"name{ours}", "end"),
            bar(start, y, room, "track"),
            bar(start, y, max(2, round(room * value / longest)), f"bar{ours}"),
            text(start + room + 8, y + 12, number(value), f"figure{ours}"),
        ]
    return lines


def svg(result: dict[str, Any]) -> str:
    """The whole picture."""
    drawn = [(panel, bars) for panel in PANELS if (bars := figures(result, panel))]
    if not drawn:
        raise ValueError("the result has none of the chart's rows")
    facts, settings = result["machine"], result["settings"]
    caption = (
        f"Medians of {settings['rounds']} interleaved rounds on {facts['processor']}, "
        f"{facts['kernel']}, Python {facts['python']}"
    )
    lines = [
        text(MARGIN, MARGIN + 12, "hardsplice and its peers", "title"),
        text(MARGIN, MARGIN + 34, caption, "quiet"),
    ]
    top = MARGIN + 56
    step = (WIDTH - 2 * MARGIN + GAP) // COLUMNS
    for first in range(0, len(drawn), COLUMNS):
        pair = drawn[first : first + COLUMNS]
        for column, (panel, bars) in enumerate(pair):
            lines += panel_lines(panel, bars, MARGIN + column * step, top)
        top += HEAD + max(len(bars) for _, bars in pair) * PITCH + FOOT
    size = f'viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    page = f'<rect class="page" width="{WIDTH}" height="{top}" rx="8"/>'
    return "\n".join([opening, f"<style>{STYLE}</style>", page, *lines, "</svg>\n"])


def main() -> None:
    """Draw."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results" / "reference.json"
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "chart.svg"
    try:
        target.write_text(svg(json.loads(source.read_text())))
    except (OSError, ValueError) as error:
        raise SystemExit(f"chart: cannot draw {source}: {error}") from None
    print(f"chart: {target}")


if __name__ == "__main__":
    main()
