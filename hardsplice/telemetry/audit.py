# SPDX-License-Identifier: GPL-2.0-or-later
"""A process tree as /proc has it now: the namespaces of each process, and what it may still do.

Nothing here comes from hardsplice itself: what a process reports about itself is no evidence, what
the kernel reports is. proc(5) describes every field. Every process can set its own name: a name
counts only if the process is the child of one of ours that has such children. COMMAND's processes
can't arrange that. They are in a PID namespace, where a process that loses its parent becomes a
child of PID 1, which has no children of ours.

hardsplice's processes are not dumpable, so their namespaces and descriptors are hidden from all
users but root, including their own (ptrace(2), "Ptrace access mode checking"). What is hidden is
None, and shown as hidden. A /proc that is mounted with hidepid shows such a process to root only.
/proc shows nothing about Landlock and MDWE: `--audit` repeats what lock-down reported about them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from hardsplice.model.errors import HardspliceError, printable
from hardsplice.model.roles import ROLES

PROC = Path("/proc")
NAMESPACES = ("net", "user", "pid", "mnt", "ipc", "uts")
# The kernel's order in /proc/PID/status.
CAPABILITY_SETS = ("Inh", "Prm", "Eff", "Bnd", "Amb")
WIDTH = 98  # columns; the demonstration indents by two
NAME_WIDTH = 18  # columns of a name, and of what shows where it is among its ancestors
KINDS_SHOWN = 12  # of descriptors
_GONE = (FileNotFoundError, ProcessLookupError)  # a process ended meanwhile


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """One process; `namespaces` and `descriptors` are None where the kernel hides them."""

    pid: int
    started: int  # clock ticks since boot: with the pid, unique while the machine is up
    depth: int
    comm: str  # what it calls itself, as it may be shown
    role: str | None  # which of ROLES it has; None where it is none of ours
    uid: int
    gid: int
    capabilities: dict[str, int]
    no_new_privs: int
    seccomp: int
    filters: int | None  # None before Linux 5.9
    namespaces: dict[str, int] | None
    descriptors: dict[str, int] | None

    @property
    def is_own(self) -> bool:
        """Whether this is hardsplice itself, rather than the command that it runs."""
        return self.role is not None

    @property
    def label(self) -> str:
        """Its name in a table, where it is among its ancestors: in quotes where it isn't ours."""
        name = self.comm if self.is_own else f"'{printable(self.comm, NAME_WIDTH - 2)}'"
        return " " * min(2 * self.depth, NAME_WIDTH - len(name)) + name

    @property
    def may(self) -> str:
        """What it may do, in a line."""
        return ROLES[self.role].may if self.role else "whatever its user may: it is not ours"

    def faults(self, kept: int) -> list[str]:
        """What is missing from the lock-down that every process of hardsplice must have.

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
    fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    return fields[0].decode("ascii"), int(fields[1]), int(fields[19])


def is_alive(process: Process) -> bool:
    """Whether this very process, not a later one of the same number, still runs."""
    try:
        state, _, started = stat_fields(process.pid)
    except _GONE:
        return False
    return state not in "ZX" and started == process.started


def host_namespaces() -> dict[str, int]:
    """This process's own namespaces."""
    return {name: (PROC / "self" / "ns" / name).stat().st_ino for name in NAMESPACES}


def role_of(comm: str, parent: str | None) -> str | None:
    """The role of a process named ``comm``, whose parent has the role ``parent``; None if it isn't
    one of ours.
    """
    role = ROLES.get(comm)
    return comm if role is not None and parent and role.parent == parent else None


def read_tree(root: int) -> list[Process]:
    """The process ``root``, a host monitor, and all its descendants, with what this user may see of
    them. Raises FileNotFoundError or ProcessLookupError where ``root`` is gone.
    """
    children: dict[int, list[int]] = collections.defaultdict(list)
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(*_GONE, PermissionError):
                children[stat_fields(int(entry.name))[1]].append(int(entry.name))
    first = read_process(root, 0, None)
    is_ours = first.comm in ROLES and not ROLES[first.comm].parent
    found = [dataclasses.replace(first, role=first.comm if is_ours else None)]
    pending = _below(found[0], children)
    while pending:
        pid, parent = pending.pop()
        with contextlib.suppress(*_GONE, PermissionError):
            process = read_process(pid, parent.depth + 1, parent.role)
            found.append(process)
            pending += _below(process, children)
    return found


def _below(parent: Process, children: Mapping[int, list[int]]) -> list[tuple[int, Process]]:
    return [(child, parent) for child in sorted(children.get(parent.pid, ()), reverse=True)]


def read_process(pid: int, depth: int, parent: str | None) -> Process:
    """What /proc says about one process, whose parent has the role ``parent``."""
    folder = PROC / str(pid)
    # A name can hold any byte but a line's end, which the kernel spells.
    lines = (folder / "status").read_bytes().split(b"\n")
    pairs = (line.decode(errors="backslashreplace").partition(":") for line in lines)
    status = {key: value.removeprefix("\t") for key, _, value in pairs}
    filters = status.get("Seccomp_filters")
    comm = printable(status["Name"])
    return Process(
        pid=pid,
        started=stat_fields(pid)[2],
        depth=depth,
        comm=comm,
        role=role_of(comm, parent),
        uid=int(status["Uid"].split()[1]),
        gid=int(status["Gid"].split()[1]),
        capabilities={name: int(status[f"Cap{name}"], 16) for name in CAPABILITY_SETS},
        no_new_privs=int(status["NoNewPrivs"]),
        seccomp=int(status["Seccomp"]),
        filters=None if filters is None else int(filters),
        namespaces=read_namespaces(folder),
        descriptors=read_descriptors(folder),
    )


def read_namespaces(folder: Path) -> dict[str, int] | None:
    """The inode numbers that name a process's namespaces; a zombie has none any more."""
    try:
        return {name: (folder / "ns" / name).stat().st_ino for name in NAMESPACES}
    except (*_GONE, PermissionError):
        return None


def read_descriptors(folder: Path) -> dict[str, int] | None:
    """How many descriptors of each kind a process holds, the most common first; of many kinds the
    rest is put together.
    """
    kinds: collections.Counter[str] = collections.Counter()
    try:
        for entry in (folder / "fd").iterdir():
            with contextlib.suppress(*_GONE):  # closed while we looked
                kinds[descriptor_kind(str(entry.readlink()))] += 1
    except (*_GONE, PermissionError):
        return None
    shown = dict(kinds.most_common(KINDS_SHOWN))
    rest = kinds.total() - sum(shown.values())
    return {**shown, "other": rest} if rest else shown


def descriptor_kind(target: str) -> str:
    """A word for what a /proc/PID/fd link points to: `socket:[123]` is a socket."""
    if target.startswith("/memfd:"):
        return "memfd"
    if target.startswith("/"):
        return printable(target, 64) if target.startswith("/dev/") else "file"
    kind, _, name = target.partition(":")
    if kind == "anon_inode":
        name = name.strip("[]")
        return {"eventpoll": "epoll"}.get(name, printable(name, 64))
    return f"{kind} namespace" if kind in NAMESPACES else printable(kind, 64)


def tables(processes: list[Process]) -> list[str]:
    """Tables, at most WIDTH columns wide: where each process lives, what it holds, what it may."""
    host = host_namespaces()
    names = [process.label for process in processes]
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
            f"{name:18}{counts}{process.no_new_privs:10}{process.seccomp:10}"
            f"{'?' if process.filters is None else process.filters:>10}"
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


def report(root: int, lacking: Sequence[str], form: str) -> str:
    """What --audit prints for the tree below ``root``: form "table" or "json". Raises
    HardspliceError.
    """
    processes = _seen(root)
    lacking = [printable(layer) for layer in lacking]
    if form == "json":
        tree = [dataclasses.asdict(one) | {"may": one.may} for one in processes]
        return json.dumps({"processes": tree, "lacking": lacking}, indent=2)
    said = [f"not in force: {layer}" for layer in lacking]
    return "\n".join([*tables(processes), "", *(said or ["Landlock and MDWE: in force"])])


def _seen(root: int) -> list[Process]:
    """As read_tree; a HardspliceError where nothing can be seen."""
    what = f"process {root}"
    try:
        if os.readlink(PROC / "self") != str(os.getpid()):
            raise HardspliceError("audit", what, f"{PROC} is that of another PID namespace")
    except OSError:
        raise HardspliceError(
            "audit", what, f"{PROC} is not mounted for this PID namespace"
        ) from None
    try:
        return read_tree(root)
    except (*_GONE, PermissionError):
        pass
    try:
        os.kill(root, 0)
    except ProcessLookupError:
        raise HardspliceError("audit", what, "it has ended already") from None
    except PermissionError:
        pass  # it is there
    option = _hidepid((PROC / "self" / "mountinfo").read_text(encoding="utf-8", errors="replace"))
    reason = f"{PROC} does not show it to this user{f' ({option})' if option else ''}"
    raise HardspliceError(
        "audit", what, f"{reason}; root may look" if os.geteuid() != 0 else reason
    )


def _hidepid(mounts: str) -> str:
    """The option that hides processes where PROC is mounted; nothing where there is none."""
    found = ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if fields[4] == str(PROC):  # of several on top of each other the last one is seen
            options = fields[-1].split(",")
            found = next((one for one in options if one.startswith("hidepid=")), "")
    return found


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
