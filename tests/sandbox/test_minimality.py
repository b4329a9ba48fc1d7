# SPDX-License-Identifier: GPL-2.0-or-later
"""No rule is too many: without it the smoke run ends with a process killed by SIGSYS."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from hardsplice.model.roles import POLICIES, ROLES
from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.policy.format import OUTSIDE
from hardsplice.sandbox.seccomp import native_arch
from tests.sandbox.captured import Captured, folder_for
from tests.sandbox.job import Job, key
from tests.sandbox.smoke import Killed, Smoke
from tests.support.netns import Identity, Namespace

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
AT_ONCE = 2
# A rule that is one condition, which the policy's language can only spell as many.
WHOLE = {("relay", "close"), ("relay-udp", "close")}
# Who serves a control socket may be asked for ports of UDP, and has that file's rules, too.
SAME = {
    "monitor-control: recvfrom fd >= FLOWS and flags == MSG_DONTWAIT and addr == NULL": (
        "relay-udp: recvfrom fd >= FLOWS and flags == MSG_DONTWAIT"
    ),
    "monitor-control: sendto fd >= FLOWS and flags == MSG_NOSIGNAL|MSG_DONTWAIT and addr == NULL": (
        "relay-udp: sendto fd >= FLOWS and flags == MSG_DONTWAIT|MSG_NOSIGNAL and addr == NULL"
    ),
}


@pytest.fixture(scope="module")
def captured() -> Iterator[Captured]:
    program = Captured()
    yield program
    program.close()


def kind(role: str) -> str:
    """monitor, of monitor-host and its like."""
    return role.partition("-")[0]


def ways() -> list[str]:
    """All that hardsplice's own functions are allowed: each rule, and each way of a rule with
    several.
    """
    found = []
    for role in POLICIES:
        for rule in load_policy(role).rules_for(native_arch()):
            if rule.role != role or any(name in OUTSIDE for name in rule.where):
                continue
            if len(rule.when) < 2 or (rule.role, rule.call) in WHOLE:
                found.append(key(rule))
            else:
                found += [key(rule._replace(when=(way,))) for way in rule.when]
    return found


def run_for(way: str) -> Callable[[Smoke, Job], None]:
    """The smoke run in which it is needed."""
    if way.startswith(("init: ", "guard: ")):
        return Smoke.command
    if way.startswith(("relay-udp: ", "monitor-udp: ")):
        return Smoke.datagrams
    if way.startswith(("relay-udp-ports: ", "monitor-ports-udp: ")):
        return Smoke.datagram_ports
    if any(call in way for call in ("TIOCGPGRP", "TIOCSPGRP", "getpriority", "SIGTSTP")):
        of_changing = way.startswith("monitor-host: ")
        return Smoke.terminal_of_changing_ports if of_changing else Smoke.terminal
    if way.startswith(("monitor-ports: ", "monitor-host: ", "relay-ports: ")):
        return Smoke.ports
    if way.startswith("monitor-control: "):
        return Smoke.control
    if way == "monitor: sendmsg flags == MSG_NOSIGNAL":  # to PID 1
        return Smoke.command
    if way == "monitor: close fd == CHANNEL":
        return Smoke.background
    if way == "monitor: dup3 newfd >= LISTENERS and newfd < FLOWS":  # a place is given up
        return Smoke.ports
    if way in ("monitor: pread64 fd == WATCH", "monitor: ioctl op == SIOCGIFFLAGS"):
        return Smoke.path
    return Smoke.serve


@contextlib.contextmanager
def smokes(
    captured: Captured, identity: Identity, number: int
) -> Iterator[queue.SimpleQueue[Smoke]]:
    """So many surroundings for runs, to be taken and put back."""
    free: queue.SimpleQueue[Smoke] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            namespace = stack.enter_context(Namespace(identity))
            folder = stack.enter_context(folder_for(identity))
            free.put(Smoke(captured, identity, namespace, folder))
        yield free


@dataclass
class Bench:
    """Where runs are made."""

    captured: Captured
    identity: Identity
    free: queue.SimpleQueue[Smoke]
    board: str

    def without(self, way: str) -> str:
        """What comes of a run without it: who was killed, or why that isn't shown."""
        smoke = self.free.get()
        said = ""
        dropped = tuple(filter(None, (way, SAME.get(way))))
        try:
            for _ in range(
                2
            ):  # a run that fails for another reason, on a busy machine, is made again
                try:
                    run_for(way)(smoke, Job(board=self.board, drop=dropped))
                    return "not shown: nothing was missing"
                except Killed as killed:
                    return f"killed: {killed}"
                except Exception as error:
                    said = f"not shown: {type(error).__name__}: {error}"
        finally:
            self.free.put(smoke)
        return said


@pytest.fixture
def bench(captured: Captured) -> Iterator[Bench]:
    identity = Identity("root" if os.geteuid() == 0 else "user")
    with smokes(captured, identity, AT_ONCE) as free:
        yield Bench(captured, identity, free, captured.board()[1])


def test_with_all_rules_the_smoke_runs_pass(bench: Bench) -> None:
    """Otherwise what follows would prove nothing."""
    smoke, job = bench.free.get(), Job(board=bench.board)
    smoke.serve(job)
    smoke.ports(job)
    smoke.control(job)
    smoke.datagrams(job)
    smoke.datagram_ports(job)
    smoke.command(job)
    smoke.terminal(job)
    smoke.terminal_of_changing_ports(job)
    smoke.background(job)
    if bench.identity.is_root:
        smoke.path(job)
    bench.free.put(smoke)


@pytest.mark.root  # it has to see how many pipes a relay holds
def test_without_any_rule_somebody_is_killed(bench: Bench) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(ways(), pool.map(bench.without, ways()), strict=True))
    assert len(found) > 50
    superfluous = {way: said for way, said in found.items() if not said.startswith("killed: ")}
    assert not superfluous, "\n".join(f"{way}: {said}" for way, said in superfluous.items())


# --- the calls that are made, and the rules -------------------------------------------------------

_CALL = re.compile(r"(\d+) +(<\.\.\. )?(\w+)(?:\(| resumed>)(.*)")

_NAMED = re.compile(r'PR_SET_NAME, "(hs-[a-z-]+)"')
_FILTERED = (
    ("prctl", "PR_SET_SECCOMP, SECCOMP_MODE_FILTER"),
    ("seccomp", "SECCOMP_SET_MODE_FILTER"),
)
# The policy of each process, and where ports may change.
ROLE_OF = {name: role.policy for name, role in ROLES.items()}
WITH_UDP = {name: role.policy_for(is_dynamic=False, has_udp=True) for name, role in ROLES.items()}
PORTS = {name: role.policy_for(is_dynamic=True) for name, role in ROLES.items()}
# With a control socket, ports of UDP may come.
CONTROL = {
    name: role.policy_for(is_dynamic=True, has_control=True, has_udp=True)
    for name, role in ROLES.items()
}


class Traced(Captured):
    """The product under strace."""

    def __init__(self, output: Path) -> None:
        super().__init__()
        self.output = output

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        return ["strace", "-DD", "-f", "-qq", "-o", str(self.output), *argv], environment


def calls_after_lock_down(trace: str, roles: Mapping[str, str]) -> dict[str, set[str]]:
    """The calls that each role made once its filter was in force, from strace's output; ``roles``
    has them by the names of processes.

    A relay is forked by a monitor that has its filter: until a relay has its own, it counts as
    its monitor.
    """
    lines: dict[int, list[tuple[str, str, bool]]] = {}
    for line in trace.splitlines():
        if match := _CALL.match(line):
            lines.setdefault(int(match[1]), []).append((match[3], match[4], bool(match[2])))
    made: dict[str, set[str]] = {role: set() for role in POLICIES}

    def follow(pid: int, role: str, name: str) -> None:
        for call, rest, resumed in lines.pop(pid, []):
            if role and not resumed:
                made[role].add(call)
            if call == "prctl" and (named := _NAMED.match(rest)):
                name = named[1]
            elif any(call == one and rest.startswith(how) for one, how in _FILTERED):
                role = roles.get(name, role)  # libseccomp asks what there is, in no role
            elif call in ("clone", "clone3", "fork", "vfork"):
                child = rest.rpartition("= ")[2]
                if child.isdigit():
                    follow(int(child), role, name)

    follow(next(iter(lines)), "", "")
    return made


def test_every_call_is_made_and_every_call_made_is_allowed() -> None:
    """Both ways. What is allowed and was never seen is the C library's or the interpreter's, with
    its source.
    """
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    if os.geteuid() != 0:
        pytest.skip("strace of processes that change their user needs root")
    made: dict[str, set[str]] = {role: set() for role in POLICIES}
    with Namespace(Identity("root")) as namespace, folder_for(Identity("root")) as folder:
        dynamic = {
            Smoke.ports: PORTS,
            Smoke.control: CONTROL,
            Smoke.datagrams: WITH_UDP,
            Smoke.datagram_ports: CONTROL,
            Smoke.terminal_of_changing_ports: PORTS,
        }
        for run in (
            Smoke.serve, Smoke.ports, Smoke.control, Smoke.datagrams, Smoke.datagram_ports,
            Smoke.command, Smoke.terminal, Smoke.terminal_of_changing_ports, Smoke.background,
            Smoke.path,
        ):  # fmt: skip
            program = Traced(folder / "trace")
            with contextlib.closing(program):
                run(
                    Smoke(program, Identity("root"), namespace, folder),
                    Job(board=program.board()[1]),
                )
            traced = program.output.read_text()
            for role, calls in calls_after_lock_down(traced, dynamic.get(run, ROLE_OF)).items():
                made[role] |= calls
    for role in POLICIES:
        rules = load_policy(role).rules_for(native_arch())
        assert made[role] <= {rule.call for rule in rules}
        # By whoever has the rule: what the namespace monitor is allowed the host monitor may be,
        # too.
        alike = set().union(*(calls for other, calls in made.items() if kind(other) == kind(role)))
        unseen = {rule.call for rule in rules} - alike
        ours = {
            rule.call
            for rule in rules
            if rule.call in unseen
            and not any(name in OUTSIDE for name in rule.where)
            and rule.role == role  # what a monitor includes for its relays it need not do itself
        }
        assert ours == set(), role
        print(f"{role}: allowed and not seen: {' '.join(sorted(unseen))}")
