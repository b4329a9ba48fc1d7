# SPDX-License-Identifier: GPL-2.0-or-later
"""What published ports cost real engines: python -m bench.engines [--quick]

Unmodified Podman (rootless, in bridge networks) and Docker, each once with our program and once
with its own, side by side in one run: how long `run` takes, and how much memory all the processes
hold that publish ports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.run import become_subreaper, machine, progress, say
from bench.usage import holding
from tests.support import procfs
from tests.support.docker import Docker
from tests.support.engines import IMAGE
from tests.support.netns import ordinary_user
from tests.support.product import Program, free_ports
from tests.support.published import runner

WHOSE = ("ours", "its own")
PATIENCE = 120.0  # seconds until a command of an engine's is given up
SETTLED = 0.3  # seconds that what a command leaves to be done in the background gets
QUIET = 30.0  # seconds in which what published a removed container's ports is to end
GOAL_MS = 100.0  # `podman run -p` with ours may take so many milliseconds more than with its own
# A shell that does what it is told, line by line, and says when a line is done.
_SHELL = """
while read -r line; do
    eval "$line" >/dev/null 2>>{errors} </dev/null
    echo "done $?"
done
"""


class EngineError(Exception):
    """An engine did not do what it was told."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What processes hold that publish ports."""

    pss_kib: int
    processes: Counter[str]

    def as_json(self) -> dict[str, Any]:
        return {"pss_mib": round(self.pss_kib / 1024, 2), "processes": dict(self.processes)}


class Session:
    """One engine that runs, with one program for its ports."""

    def __init__(self, process: subprocess.Popen[str], errors: Path, *, is_docker: bool) -> None:
        self._process = process
        self._errors = errors
        self.engine = "docker" if is_docker else "podman"
        self._image = "test" if is_docker else IMAGE
        self._others: set[str] = set()

    def do(self, command: str) -> float:
        """Have the shell do it: the seconds that it took. Raises EngineError if it fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        began = time.perf_counter()
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except OSError:
            raise EngineError(f"{self.engine} ended: {self._said()}") from None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        answer = self._process.stdout.readline() if ready else ""
        taken = time.perf_counter() - began
        if answer != "done 0\n":
            how = answer.strip() or ("it ended" if ready else f"nothing for {PATIENCE:.0f} s")
            raise EngineError(f"`{command}`: {how}; {self._said()}")
        return taken

    def run(self, name: str, ports: str = "") -> float:
        """Start a container: the seconds until `run` returns."""
        options = f"--detach --name {name} --network bridge --ulimit nofile=1024:1024 {ports}"
        return self.do(f"{self.engine} run {options} {self._image} httpd -f -p 8080 -h /bin")

    def remove(self, *names: str) -> None:
        self.do(f"{self.engine} kill --signal KILL {' '.join(names)}")
        self.do(f"{self.engine} rm --force {' '.join(names)}")
        time.sleep(SETTLED)

    def ready(self) -> None:
        """Have a container run without a port: the network is there then, for those with one. Its
        processes' names are those of everything that publishes no port.
        """
        self.run("quiet0")
        before = self._pids()
        self.run("quiet")
        time.sleep(SETTLED)
        self._others = set(self._names(self._pids() - before).values())
        self.remove("quiet")
        self._before = self._pids()

    def published(self) -> Memory:
        """What the processes hold that came for containers' ports since all was ready."""
        time.sleep(SETTLED)
        names = self._names(self._pids() - self._before)
        pids = [pid for pid, name in names.items() if name not in self._others]
        return Memory(holding(pids).pss_kib, Counter(names[pid] for pid in pids))

    def quiet(self) -> None:
        """Wait until nothing publishes ports any more: a server that many share stays a while."""
        deadline = time.monotonic() + QUIET
        while self.published().processes:
            if time.monotonic() > deadline:
                raise EngineError(f"{self.engine}: what published ports goes on without any")

    def _pids(self) -> set[int]:
        return {pid for pid in procfs.tree(self._process.pid) if procfs.alive(pid)}

    def _names(self, pids: set[int]) -> dict[int, str]:
        return procfs.each(lambda pid: procfs.status(pid)["Name"], pids)

    def _said(self) -> str:
        with contextlib.suppress(OSError):
            return " / ".join(self._errors.read_text().splitlines()[-3:])
        return ""


@contextlib.contextmanager
def session(name: str, program: Program | None, *, by_pip: bool = False) -> Iterator[Session]:
    """An engine by its name, as tests name it, with our program or, without one, with its own."""
    with runner(name, ordinary_user(), program, by_pip=by_pip) as engine:
        errors = engine.folder / "home" / "errors"
        is_docker = isinstance(engine, Docker)
        if is_docker:
            errors.parent.mkdir()
        process = subprocess.Popen(
            engine.words(_SHELL.format(errors=errors)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            made = Session(process, errors, is_docker=is_docker)
            made.ready()
            yield made
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                process.communicate(timeout=PATIENCE)  # at the end of its input it tidies up
            process.kill()
            process.communicate()
            procfs.reap()


class Comparison:
    """One engine with both programs."""

    def __init__(self, sessions: dict[str, Session], options: argparse.Namespace) -> None:
        self.sessions = sessions
        self.options = options
        self.record: dict[str, Any] = {"start_ms": {}, "memory": {}}

    def starts(self) -> None:
        """Both in each round, one after the other; who is first changes."""
        for row, port in (
            ("no port", False), ("the first port", True), ("a port beside another's", True),
        ):  # fmt: skip
            rounds: list[dict[str, float]] = []
            if row.startswith("a port beside"):
                for one in self.sessions.values():
                    one.run("another", _port(free_ports()))
            for number in range(self.options.rounds):
                taken = {}
                for whose in WHOSE if number % 2 else reversed(WHOSE):
                    if row == "the first port":
                        self.sessions[whose].quiet()
                    ports = _port(free_ports()) if port else ""
                    taken[whose] = self.sessions[whose].run("one", ports) * 1e3
                    self.sessions[whose].remove("one")
                rounds.append(taken)
                progress(f"{row}: round {number + 1} of {self.options.rounds}")
            self.record["start_ms"][row] = rounds
        for one in self.sessions.values():
            one.remove("another")

    def instances(self) -> None:
        """Many containers with a port each."""
        number = self.options.containers
        for whose, one in self.sessions.items():
            one.quiet()
            names = [f"c{at}" for at in range(number)]
            first = free_ports(number)
            for at, name in enumerate(names):
                progress(f"{number} containers with a port each: {whose}, {at + 1}")
                one.run(name, _port(first + at))
            self._keep(f"{number} containers, a port each", whose, one.published())
            one.remove(*names)

    def ports(self) -> None:
        """One container with many ports."""
        number = self.options.ports
        for whose, one in self.sessions.items():
            one.quiet()
            progress(f"a container with {number} ports: {whose}")
            first = free_ports(number)
            seconds = one.run("many", _port(first, number))
            label = f"a container, {number} ports"
            self._keep(label, whose, one.published(), run_ms=round(seconds * 1e3))
            one.remove("many")

    def _keep(self, label: str, whose: str, memory: Memory, **more: Any) -> None:
        self.record["memory"].setdefault(label, {})[whose] = memory.as_json() | more

    def lines(self) -> list[str]:
        """The record as a table."""
        lines = [f"{'':28}{'ours':>12}{'its own':>12}  ours more"]
        for row, rounds in self.record["start_ms"].items():
            ours, own = ([one[whose] for one in rounds] for whose in WHOSE)
            more = [one["ours"] - one["its own"] for one in rounds]
            spread = f"{statistics.median(more):.0f} ({min(more):.0f} to {max(more):.0f}) ms"
            lines.append(f"{row:28}{_median(ours)}{_median(own)}  {spread}")
        for row, held in self.record["memory"].items():
            ours, own = (held[whose]["pss_mib"] for whose in WHOSE)
            part = f"{ours / own:.2f} times" if own else "-"
            lines.append(f"{row:28}{ours:8.1f} MiB{own:8.1f} MiB  {part}")
            for whose in WHOSE:
                counted = held[whose]["processes"].items()
                text = ", ".join(f"{number} {name}" for name, number in sorted(counted))
                took = f"; run took {held[whose]['run_ms']} ms" if "run_ms" in held[whose] else ""
                lines.append(f"    {whose}: {text or 'no process'}{took}")
        return lines

    def goals(self, name: str) -> list[str]:
        """Which are held: `podman run -p` within GOAL_MS; less memory than many of its own."""
        lines, of_many = [], "a container, "
        if name.startswith("podman"):
            of_many = f"{self.options.containers} containers, "
            for row, rounds in self.record["start_ms"].items():
                more = statistics.median(one["ours"] - one["its own"] for one in rounds)
                if row != "no port":
                    said = "held" if more <= GOAL_MS else "MISSED"
                    lines.append(f"{said}: {row}, at most {GOAL_MS:.0f} ms more: {more:.0f}")
        for row, held in self.record["memory"].items():
            if row.startswith(of_many):
                ours, own = (held[whose]["pss_mib"] for whose in WHOSE)
                said = "held" if ours < own else "MISSED"
                lines.append(f"{said}: {row}, less than its own: {ours:.1f}, {own:.1f} MiB")
        return lines


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):9.0f} ms"


def _port(first: int, number: int = 1) -> str:
    """The option that publishes ports at one address, which is one docker-proxy each."""
    if number == 1:
        return f"-p 127.0.0.1:{first}:8080"
    return f"-p 127.0.0.1:{first}-{first + number - 1}:8080-{8080 + number - 1}"


def measure(name: str, options: argparse.Namespace, program: Program) -> dict[str, Any]:
    """One engine. Raises EngineError; pytest's Skipped where it can't be had here."""
    with contextlib.ExitStack() as stack:
        made = {
            whose: stack.enter_context(
                session(name, program if whose == "ours" else None, by_pip=options.pip)
            )
            for whose in WHOSE
        }
        comparison = Comparison(made, options)
        comparison.starts()
        if name.startswith("podman"):
            comparison.instances()
        comparison.ports()
        progress("")
        goals = comparison.goals(name)
        say("\n".join([f"--- {name}", *comparison.lines(), *goals]))
        return {**comparison.record, "goals": goals}


def main() -> int:
    """Measure each; 1 if one could not be measured."""
    parser = argparse.ArgumentParser(prog="bench.engines", description=__doc__.split("\n\n")[1])
    add = parser.add_argument
    add("--engines", nargs="+", metavar="NAME", default=["podman", "docker"],
        help="podman, docker, and those of trees: podman@trixie, docker@sid")  # fmt: skip
    add("--rounds", type=int, help="of starts (11)")
    add("--containers", type=int, help="of Podman, with a port each (50)")
    add("--ports", type=int, help="of one container (100)")
    add("--pip", action="store_true", help="our programs as pip installs them, not packages")
    add("--quick", action="store_true", help="3 rounds, 3 containers, 10 ports: that it works")
    add("--json", type=Path, metavar="FILE", help="where to write")
    options = parser.parse_args()
    for name, full, quick in (("rounds", 11, 3), ("containers", 50, 3), ("ports", 100, 10)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    if os.geteuid() != 0:
        raise SystemExit("bench: root starts engines, and looks at their processes")
    become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    record: dict[str, Any] = {"machine": machine(), "engines": {}}
    program = Program()
    status = 0
    for name in options.engines:
        try:
            record["engines"][name] = measure(name, options, program)
        except (EngineError, pytest.skip.Exception) as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            status = 1
    program.close()
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
