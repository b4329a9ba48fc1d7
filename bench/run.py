# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark's command: `make bench`, or python -m bench.run --help.

Rounds are interleaved: in each, every peer does the row's work once, one after the other, so that
whatever changes on the machine meanwhile changes for all. bench/README.md says what the rows mean
and how fairness is kept.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.forwarder import Forwarder
from bench.load import Kit, LoadError, Pinning
from bench.peer import THIS_USER, Peer
from bench.peers import KINDS
from bench.report import goal_lines, goals, summarise, table
from bench.rows import ROWS, Numbers, Row, Timing
from bench.usage import TraceError
from tests.support.netns import Identity, can_make, ordinary_user

RESULTS = Path(__file__).with_name("results")
FULL = Timing(seconds=1.0, warmup=0.25), 7
QUICK = Timing(seconds=0.3, warmup=0.1), 3
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.run", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="3 rounds of 0.3 s: that it works, not how fast")
    add("--rounds", type=int, help="interleaved rounds (7)")
    add("--seconds", type=float, help="seconds of each measurement (1)")
    add("--rows", nargs="+", metavar="PATTERN", default=["*"], help="rows by name, * as in a shell")
    add("--peers", nargs="+", metavar="NAME", help="only these; hardsplice is always there")
    add(
        "--add",
        nargs="+",
        metavar="PEER.LABEL=PROGRAM",
        default=[],
        help="one more of a kind, another build of it; PEER=PROGRAM replaces the usual one",
    )
    add("--as", dest="user", choices=["user", "root"], help="who runs the forwarders (user)")
    add(
        "--cores",
        choices=["apart", "one", "any"],
        default="apart",
        help="forwarder and load on cores of their own (apart), all on one, or wherever",
    )
    add("--no-strace", action="store_true", help="leave the pass out that counts system calls")
    add("--json", type=Path, metavar="FILE", help="where to write (bench/results/TIME.json)")
    add("--list", action="store_true", help="rows, and peers that are here; measure nothing")
    return parser.parse_args(arguments)


def chosen_peers(
    options: argparse.Namespace, wanted: Identity
) -> tuple[list[Peer], dict[str, str]]:
    """The peers to measure, and why others are not."""
    programs = dict(entry.partition("=")[::2] for entry in options.add)
    labels = [*KINDS, *(label for label in programs if label not in KINDS)]
    here, absent = [], {}
    for label in labels:
        kind, _, variant = label.partition(".")
        if kind not in KINDS:
            raise SystemExit(f"bench: no such peer: {kind} (there are {', '.join(KINDS)})")
        if options.peers and not {label, kind} & {*options.peers, "hardsplice"}:
            continue
        peer = KINDS[kind](variant, programs.get(label, ""))
        if reason := peer.obstacle(wanted):
            absent[label] = reason
        else:
            here.append(peer)
    return here, absent


class Run:
    """One run: everything it has found out, written down after each row."""

    def __init__(self, options: argparse.Namespace, kit: Kit) -> None:
        """Decide who takes part."""
        self.options = options
        self.kit = kit
        timing, rounds = QUICK if options.quick else FULL
        seconds = options.seconds or timing.seconds
        self.timing = Timing(seconds, min(timing.warmup, seconds / 3))
        self.rounds = options.rounds or rounds
        self.ordinary = ordinary_user()
        self.wanted = THIS_USER if options.user == "root" else self.ordinary
        if not can_make(self.wanted):
            raise SystemExit(f"bench: {self.wanted.name} may not create namespaces here")
        self.peers, absent = chosen_peers(options, self.wanted)
        self.rows = [row for row in ROWS if any(fnmatch.fnmatch(row.name, p) for p in options.rows)]
        self.record: dict[str, Any] = {
            "machine": machine(),
            "settings": {
                "rounds": self.rounds,
                "seconds": self.timing.seconds,
                "warmup": self.timing.warmup,
                "cores": options.cores,
                "processors": {
                    side: list(getattr(kit.pinning, side))
                    for side in ("forwarder", "client", "server")
                },
            },
            "peers": {
                peer.label: {
                    "version": peer.version(),
                    "user": "root" if peer.owner(self.wanted).is_root else "ordinary",
                }
                for peer in self.peers
            },
            "absent": absent,
            "rows": [],
        }

    def all_rows(self) -> None:
        """Measure everything and say how each row went."""
        self.write()  # better to fail now than after the first row
        for number, row in enumerate(self.rows, 1):
            result = self._row(row, f"[{number}/{len(self.rows)}] {row.name}")
            self.record["rows"].append(result)
            say("\n".join(table(row, result)))
            self.write()
        reached = goals({result["name"]: result for result in self.record["rows"]})
        self.record["goals"] = reached
        say("\n".join(goal_lines(reached)))
        self.write()

    def _row(self, row: Row, label: str) -> dict[str, Any]:
        rounds: dict[str, list[Numbers]] = {}
        failed: dict[str, str] = {}
        taking_part = [peer for peer in self.peers if self._takes_part(peer, row)]
        number_of_rounds = 1 if row.once else self.rounds
        for number in range(1, number_of_rounds + 1):
            for peer in taking_part:
                if peer.label in failed:
                    continue
                progress(f"{label}: round {number}/{number_of_rounds}, {peer.label}")
                try:
                    with Forwarder(self.kit, peer, self._identity(row), row.protocol) as forwarder:
                        numbers = row.measure(forwarder, self.timing)
                except (LoadError, OSError) as error:
                    failed[peer.label] = str(error)
                    rounds.pop(peer.label, None)
                else:
                    rounds.setdefault(peer.label, []).append(numbers)
        result = summarise(row, rounds)
        result["failed"] = failed
        if not self.options.no_strace:
            self._count(row, label, taking_part, result)
        progress("")
        return result

    def _takes_part(self, peer: Peer, row: Row) -> bool:
        if peer.label == "direct" and not hasattr(row, "mode"):
            return False  # there is nothing that could start, or hold anything
        if row.protocol not in peer.protocols:
            return False
        return not (row.ordinary_only and peer.owner(self.ordinary).is_root)

    def _identity(self, row: Row) -> Identity:
        return self.ordinary if row.ordinary_only else self.wanted

    def _count(self, row: Row, label: str, peers: list[Peer], result: dict[str, Any]) -> None:
        """The pass under strace, whose times mean nothing."""
        for peer in peers:
            if peer.label not in result["peers"] or peer.label == "direct":
                continue
            progress(f"{label}: system calls, {peer.label}")
            try:
                with Forwarder(self.kit, peer, self._identity(row), row.protocol) as forwarder:
                    calls = row.calls(forwarder)
            except (LoadError, TraceError, OSError) as error:
                result["failed"][peer.label] = f"system calls: {error}"
            else:
                if calls:
                    result["peers"][peer.label]["calls"] = calls

    def close(self) -> None:
        """Leave nothing behind."""
        for peer in self.peers:
            peer.close()

    def write(self) -> Path:
        """Keep what there is so far."""
        name = self.record["machine"]["time"].replace(":", "").replace("-", "")
        path: Path = self.options.json or RESULTS / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.record, indent=1) + "\n")
        return path


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = "?"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "processor": model,
        "processors": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def become_subreaper() -> None:
    """What a forwarder leaves behind becomes ours, to be ended and waited for."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def say(text: str) -> None:
    """To whoever reads the figures."""
    print(text, flush=True)


def progress(text: str) -> None:
    """To whoever waits for them: one line that is written over, or, in a log, nothing."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, or list."""
    options = parse()
    become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with Kit(Pinning.named(options.cores)) as kit:
            run = Run(options, kit)
            try:
                say(describe(run))
                if not options.list:
                    run.all_rows()
                    say(f"\nwritten to {run.write()}")
            finally:
                run.close()
    except (LoadError, PermissionError, pytest.skip.Exception) as error:
        raise SystemExit(f"bench: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("bench: stopped; finished rows are written") from None


def describe(run: Run) -> str:
    """Who takes part, and on what."""
    facts = run.record["machine"]
    lines = [f"{facts['processor']}, {facts['processors']} processors, {facts['kernel']}"]
    if facts["load_average"] > 0.5:
        lines.append(f"load average {facts['load_average']:.1f}: others use this machine now")
    processors = run.record["settings"]["processors"]
    lines.append(
        f"{run.rounds} rounds of {run.timing.seconds:g} s; processors: "
        + ", ".join(f"{side} {cpus or 'any'}" for side, cpus in processors.items())
    )
    for label, peer in run.record["peers"].items():
        lines.append(f"  {label:22} {peer['user']:9} {peer['version']}")
    lines += [f"  {label:22} left out: {why}" for label, why in run.record["absent"].items()]
    if run.options.list:
        lines += ["rows:", *(f"  {row.name:22} {row.title}" for row in run.rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
