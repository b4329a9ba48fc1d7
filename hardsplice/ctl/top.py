# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl top: the flows with the most traffic, again and again.

A frame is made from two samples by a pure function and written in one piece, with no more of a
terminal's language than every terminal has: go to the corner, clear to the end. Where the output is
no terminal there is one frame.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from hardsplice.ctl import show
from hardsplice.ctl.client import Client
from hardsplice.kernel.hints import Any
from hardsplice.model.direction import Direction
from hardsplice.model.errors import printable

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another screen, no cursor
_CORNER, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"
_KEYS_TO_LEAVE = b"q\x03\x04"
_COLUMNS, _LINES = 100, 1 << 16  # where there is no terminal


@dataclass(frozen=True, slots=True)
class Sample:
    """All that a frame shows, at one moment."""

    at: float  # CLOCK_MONOTONIC seconds
    status: Mapping[str, Any]
    flows: Mapping[str, Any]


def take(client: Client) -> Sample:
    """Ask for a sample."""
    return Sample(time.monotonic(), client.get("/v1/status"), client.get("/v1/flows"))


def frame(before: Sample, now: Sample, columns: int, lines: int) -> list[str]:
    """What there is to see: the state of both directions with their rates, then the flows, those
    that move most first.
    """
    seconds = max(0.001, now.at - before.at)
    text = [
        show.heading(now.status),
        "",
        *_directions(before, now, seconds),
        "",
        *_flows(before, now, seconds),
    ]
    return [printable(line)[:columns] for line in text[:lines]]


def _directions(before: Sample, now: Sample, seconds: float) -> list[str]:
    rows = []
    for name in Direction:
        old, new = (sample.status["directions"][name] for sample in (before, now))
        accepted, to_target, to_client = (
            max(0, new["counters"].get(counter, 0) - old["counters"].get(counter, 0)) / seconds
            for counter in ("accepted", *show.MOVED)
        )
        rows.append(
            (
                name, str(new["ports"]), str(sum(new["flows"].values())), f"{accepted:.1f}",
                show.size(to_target), show.size(to_client), str(new["counters"].get("restarts", 0)),
            )
        )  # fmt: skip
    heads = ("", "PORTS", "FLOWS", "NEW/S", "TO TARGET/S", "TO CLIENT/S", "RESTARTS")
    return show.table(heads, rows)


def _key(flow: Mapping[str, Any]) -> tuple[str, str, int]:
    return flow["direction"], flow["client"], flow["port"]


def _flows(before: Sample, now: Sample, seconds: float) -> list[str]:
    past = {_key(flow): flow for flow in before.flows["flows"]}
    rates = []
    for flow in now.flows["flows"]:
        old = past.get(_key(flow), {})
        each = [
            max(0, flow[name] - old.get(name, 0)) / seconds
            for name in ("bytesToTarget", "bytesToClient")
        ]
        rates.append((each, flow))
    rates.sort(key=lambda pair: -sum(pair[0]))
    rows = [
        (
            flow["direction"], flow["protocol"], flow["state"], flow["client"], flow["target"],
            show.duration(flow["seconds"]), *map(show.size, each),
        )
        for each, flow in rates
    ]  # fmt: skip
    heads = ("DIRECTION", "PROTO", "STATE", "CLIENT", "TARGET", "AGE", "TO TARGET/S", "TO CLIENT/S")
    return show.table(heads, rows)


def once(client: Client, seconds: float) -> tuple[Sample, Sample]:
    """Two samples, so that there are rates."""
    before = take(client)
    time.sleep(seconds)
    return before, take(client)


def run(client: Client, seconds: float) -> None:
    """Show frames until q or Ctrl-C; just one where the output is no terminal."""
    if not sys.stdout.isatty():
        print("\n".join(frame(*once(client, seconds), _COLUMNS, _LINES)))
        return
    before = now = take(client)
    with _screen():
        while True:
            size = os.get_terminal_size(sys.stdout.fileno())
            columns, lines = size.columns or 80, size.lines or 24  # a serial line has no size
            text = (_CLEAR_LINE + "\n").join(frame(before, now, columns, lines - 1))
            sys.stdout.write(_CORNER + text + _CLEAR_REST)
            sys.stdout.flush()
            if _is_over(seconds):
                return
            before, now = now, take(client)


def _is_over(seconds: float) -> bool:
    """Wait for a key, or for the next frame's time; whether the key says to leave."""
    deadline = time.monotonic() + seconds
    source = [sys.stdin] if sys.stdin.isatty() else []
    while (left := deadline - time.monotonic()) > 0:
        if select.select(source, (), (), left)[0]:
            key = os.read(sys.stdin.fileno(), 1)
            if not key or key in _KEYS_TO_LEAVE:
                return True
    return False


@contextmanager
def _screen() -> Iterator[None]:
    """The terminal, for a while: keys come at once and aren't echoed."""
    settings = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    sys.stdout.write(_ENTER)
    try:
        if settings is not None:
            tty.setcbreak(sys.stdin)
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        if settings is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
