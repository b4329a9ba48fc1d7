# SPDX-License-Identifier: GPL-2.0-or-later
"""A process tree as /proc has it now: who lives in which namespace, and what each may still do.

Nothing here is taken from hardsplice itself: what a process says about itself is worth nothing as
evidence, what the kernel says is. proc(5) describes every field.

hardsplice's processes are not dumpable, so that their namespaces and descriptors are hidden from
everybody but root, their own user included (ptrace(2), "Ptrace access mode checking"). What is
hidden is None, and said to be. Of Landlock and MDWE /proc shows nothing to anybody: of these,
`--audit` repeats what lock-down reported.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
import textwrap
from itertools import zip_longest
from pathlib import Path

PROC = Path("/proc")
NAMESPACES = ("net", "user", "pid", "mnt", "ipc", "uts")
# What the processes are called, their policy, and what that comes to.
ROLES = {
    "hs-host": ("monitor", "keeps the outbound relay; makes TCP sockets here; writes the log"),
    "hs-target": ("monitor", "keeps the inbound relay; makes TCP sockets in the namespace"),
    "hs-guard": ("guard", "waits for hs-init to end; hs-init ends with it"),
    "hs-init": ("init", "reaps COMMAND's processes and passes signals on to it"),
    "hs-relay-in": ("relay", "accepts on its listeners, connects to the targets, moves bytes"),
    "hs-relay-out": ("relay", "accepts on its listeners, connects to the targets, moves bytes"),
}
# The kernel's order in /proc/PID/status.
CAPABILITY_SETS = ("Inh", "Prm", "Eff", "Bnd", "Amb")
WIDTH = 98  # columns; the demonstration indents by two


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """One process; `namespaces` and `descriptors` are None where the kernel hides them."""

    pid: int
    started: int  # clock ticks since boot: with the pid, unique while the machine is up
    depth: int
    comm: str
    uid: int
    gid: int
    capabilities: dict[str, int]
    no_new_privs: int
    seccomp: int
    filters: int
    namespaces: dict[str, int] | None
    descriptors: dict[str, int] | None

    @property
    def is_own(self) -> bool:
        """Whether this is hardsplice itself, rather than the command that it runs."""
        return self.comm in ROLES

    @property
    def may(self) -> str:
        """What it may do, in a line."""
        return ROLES[self.comm][1] if self.is_own else "whatever its user may: it is not ours"

    def faults(self, kept: int) -> list[str]:
        """What is missing from the lock-down that every process of hardsplice owes: nothing.

        `kept` has a bit for each capability that the process may use, and no more than use.
        """
        allowed = {"Prm": kept, "Eff": kept}
        faults = [
            f"Cap{name} is {bits:#x}"
            for name, bits in self.capabilities.items()
            if bits & ~allowed.get(name, 0)
        ]
        if self.no_new_privs != 1:
            faults.append(f"NoNewPrivs is {self.no_new_privs}")
        if self.seccomp != 2:
            faults.append(f"Seccomp is {self.seccomp}")
        return faults


def stat_fields(pid: int) -> tuple[str, int, int]:
    """A process's state, its parent, and its start in clock ticks since boot (proc(5), stat)."""
    # The second field is the command's name in parentheses and may hold anything, ")" too.
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[19])


def is_alive(process: Process) -> bool:
    """Whether this very process, not a later one of the same number, still runs."""
    try:
        state, _, started = stat_fields(process.pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX" and started == process.started


def host_namespaces() -> dict[str, int]:
    """The namespaces of the process that asks."""
    return {name: (PROC / "self" / "ns" / name).stat().st_ino for name in NAMESPACES}


def read_tree(root: int) -> list[Process]:
    """The process `root` and all its descendants, with what this user may see of them."""
    children: dict[int, list[int]] = collections.defaultdict(list)
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                children[stat_fields(int(entry.name))[1]].append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
    found: list[Process] = []
    pending = [(root, 0)]
    while pending:
        pid, depth = pending.pop()
        found.append(read_process(pid, depth))
        pending += [(child, depth + 1) for child in sorted(children[pid], reverse=True)]
    return found


def read_process(pid: int, depth: int) -> Process:
    """What /proc says about one process."""
    folder = PROC / str(pid)
    lines = (folder / "status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return Process(
        pid=pid,
        started=stat_fields(pid)[2],
        depth=depth,
        comm=status["Name"],
        uid=int(status["Uid"].split()[1]),
        gid=int(status["Gid"].split()[1]),
        capabilities={name: int(status[f"Cap{name}"], 16) for name in CAPABILITY_SETS},
        no_new_privs=int(status["NoNewPrivs"]),
        seccomp=int(status["Seccomp"]),
        filters=int(status["Seccomp_filters"]),
        namespaces=read_namespaces(folder),
        descriptors=read_descriptors(folder),
    )


def read_namespaces(folder: Path) -> dict[str, int] | None:
    """The inode numbers that name a process's namespaces."""
    try:
        return {name: (folder / "ns" / name).stat().st_ino for name in NAMESPACES}
    except PermissionError:
        return None


def read_descriptors(folder: Path) -> dict[str, int] | None:
    """How many descriptors of each kind a process holds."""
    kinds: collections.Counter[str] = collections.Counter()
    try:
        for entry in (folder / "fd").iterdir():
            try:
                kinds[descriptor_kind(str(entry.readlink()))] += 1
            except FileNotFoundError:
                continue  # closed while we looked
    except PermissionError:
        return None
    return dict(kinds.most_common())


def descriptor_kind(target: str) -> str:
    """A word for what a /proc/PID/fd link points to: `socket:[123]` is a socket."""
    if target.startswith("/memfd:"):
        return "memfd"
    if target.startswith("/"):
        return target if target.startswith("/dev/") else "file"
    kind, _, name = target.partition(":")
    if kind == "anon_inode":
        name = name.strip("[]")
        return {"eventpoll": "epoll"}.get(name, name)
    return f"{kind} namespace" if kind in NAMESPACES else kind


def tables(processes: list[Process]) -> list[str]:
    """Tables, at most WIDTH columns wide: where each process lives, what it holds, what it may."""
    host = host_namespaces()
    names = [("  " * process.depth + process.comm)[:18] for process in processes]
    lines = [f"{'process':18} {'pid':>8} {'uid':>6}" + "".join(f"  {n:9}" for n in NAMESPACES)]
    for name, process in zip(names, processes, strict=True):
        cells = [describe_namespace(process, kind, host[kind]) for kind in NAMESPACES]
        lines.append(
            f"{name:18} {process.pid:8} {process.uid:6}" + "".join(f"  {c:9}" for c in cells)
        )
    lines += ["the last digits of each namespace's number; * differs from yours", ""]

    heads = "".join(f"{head.lower():>6}" for head in CAPABILITY_SETS)
    lines.append(f"{'':18} capabilities in each set         no new   seccomp")
    lines.append(f"{'process':18}{heads}     privs      mode   filters")
    for name, process in zip(names, processes, strict=True):
        counts = "".join(f"{bits.bit_count():6}" for bits in process.capabilities.values())
        lines.append(
            f"{name:18}{counts}{process.no_new_privs:10}{process.seccomp:10}{process.filters:10}"
        )

    lines += ["", f"{'process':20}open descriptors"]
    for name, process in zip(names, processes, strict=True):
        lines += _wrapped(name, describe_descriptors(process))
    lines += ["", f"{'process':20}may"]
    for name, process in zip(names, processes, strict=True):
        lines += _wrapped(name, process.may)
    if any(process.namespaces is None for process in processes):
        lines.append("hidden: the process is not dumpable, and only root may look")
    return [line.rstrip() for line in lines]


def _wrapped(name: str, text: str) -> list[str]:
    parts = textwrap.wrap(text, WIDTH - 20)
    return [f"{left:20}{right}" for left, right in zip_longest([name], parts, fillvalue="")]


def report(root: int, lacking: list[str], form: str) -> str:
    """What --audit prints for the tree below ``root``: form "table" or "json"."""
    processes = read_tree(root)
    if form == "json":
        tree = [dataclasses.asdict(one) | {"may": one.may} for one in processes]
        return json.dumps({"processes": tree, "lacking": lacking}, indent=2)
    said = [f"not in force, since this kernel lacks it: {layer}" for layer in lacking]
    return "\n".join([*tables(processes), "", *(said or ["Landlock and MDWE: in force"])])


def describe_namespace(process: Process, kind: str, host: int) -> str:
    """A namespace's number, marked where it is not the host's."""
    if process.namespaces is None:
        return "hidden"
    number = process.namespaces[kind]
    return f"{number % 100000:05}{'' if number == host else '*'}"


def describe_descriptors(process: Process) -> str:
    """The descriptors by kind, the most common first."""
    if process.descriptors is None:
        return "hidden"
    return ", ".join(f"{count} {kind}" for kind, count in process.descriptors.items()) or "none"


def main() -> None:
    """Print the tree below the process named on the command line, as JSON."""
    tree = read_tree(int(sys.argv[1]))
    print(json.dumps([dataclasses.asdict(process) for process in tree]))


if __name__ == "__main__":
    main()
