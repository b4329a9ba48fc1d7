# SPDX-License-Identifier: GPL-2.0-or-later
"""The real product, with one of its processes taken over. For tests; no part of an installed
package.

This runs hardsplice.app.start.main after it has put itself in front of a few of the product's
functions. In the process that the job names, code given by the test runs at the moment when the
process's filter has just been installed, with everything that lock-down did before in force:

- *attempts* (attempts.py) run each in a process of its own, since most end it. A monitor and PID
  1 are forked once for each right before their filter, which the fork then installs. Relays are
  forked by their monitor, which is locked down by then, in the way that it forks every relay, and
  go all the way to their filter.
- an *action* (actions.py) runs in the process itself while it serves, when the test says go.

A job can be *bare*: then no step of lock-down is taken, which shows what an attempt does without
the sandbox.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from hardsplice.app import start
from hardsplice.app.command_line import parse_args
from hardsplice.app.service import Besides
from hardsplice.command import caller, init
from hardsplice.frontends.server import Server
from hardsplice.ipc import descriptors
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.child import Child
from hardsplice.ipc.messages import Kind, Record
from hardsplice.kernel import linux, unotify
from hardsplice.model.direction import Direction
from hardsplice.model.protocol import Protocol
from hardsplice.model.roles import RELAYS
from hardsplice.monitor import supervisor, supply
from hardsplice.monitor.host import HostMonitor
from hardsplice.monitor.namespace import NamespaceMonitor
from hardsplice.net import joining
from hardsplice.relay import main as relay
from hardsplice.relay.tcp import engine
from hardsplice.relay.udp import engine as datagram_engine
from hardsplice.sandbox import steps, tripwire
from hardsplice.sandbox.policy import table
from hardsplice.sandbox.policy.model import Policy
from tests.sandbox import actions, attempts
from tests.sandbox.job import BEGAN, BROKEN, DONE, Board, Job, key

PATIENCE = 3.0  # seconds that an attempt may take

job = Job.load()
board = Board(job.board)
scene = attempts.Scene(job)
started = os.getpid()

_set_seccomp_filter = linux.set_seccomp_filter
_keep_descriptors, _reserve = descriptors.keep, descriptors.reserve
_close_others = descriptors.close_others
_set_asking_filter = unotify.set_filter
_relay_main = relay.main
_FILTER = steps.filter_step(b"").describe
_start = supervisor.Supervisor.start
_policy_of = table.policy_of


class Here:
    """What this process is. Each fork has its own, as it has all else."""

    role = ""
    attempt: int | None = None  # which one this process was made for
    relays = 0  # of the job's role, that a monitor has started, or had when it started this one
    is_spared = False  # a relay beside one that is taken over: one of several is


here = Here()


# --- attempts -------------------------------------------------------------------------------------


def attempt_now(index: int) -> NoReturn:
    """Make the attempt, tell, and end."""
    board.put(index, BEGAN)
    try:
        result = attempts.make(job.attempts[index], scene)
    except BaseException as error:
        board.text = f"{job.attempts[index]}: {type(error).__name__}: {error}"
        board.put(index, BROKEN)
    else:
        board.put(index, DONE, result)
    os._exit(0)


def wait(index: int, pid: int) -> None:
    """How the process of an attempt ended; one that hangs is ended."""
    attempt = Child(pid, Channel(-1, {}))
    board.put_status(index, attempt.end(PATIENCE))
    attempt.forget()


def install(program: bytes) -> None:
    """In the place of linux.set_seccomp_filter: every role's last step."""
    if here.role in attempts.RELAYS or here.role in attempts.DATAGRAM_RELAYS:
        if not job.bare:
            _set_seccomp_filter(program)
        if here.attempt is not None:
            attempt_now(here.attempt)
        actions.remember()
        return
    if here.role not in ("init", "guard"):
        here.role = "host" if os.getpid() == started else "namespace"
    if here.role == job.role:
        for index in range(len(job.attempts)):
            pid = linux.fork()
            if pid == 0:
                # Without the filter some numbers just wait, as pause(2) does; that is an answer,
                # too.
                waits = job.bare and not job.attempts[index].startswith("row:")
                signal.setitimer(signal.ITIMER_REAL, 0.2 if waits else PATIENCE / 2)
                if not job.bare:
                    _set_seccomp_filter(program)
                attempt_now(index)
            wait(index, pid)
        board.put(len(job.attempts), DONE)  # that was all
    if not job.bare:
        _set_seccomp_filter(program)
    actions.remember()


def install_asking(program: bytes) -> int:
    """In the place of unotify.set_filter: the last step of a relay whose ports may change."""
    questions = _set_asking_filter(program)
    if here.attempt is not None:
        attempt_now(here.attempt)
    actions.remember()
    return questions


def start_relays(self: supervisor.Supervisor) -> None:
    """In the place of Supervisor.start: first a relay for each attempt, then the real one."""
    here.relays += role_of(self.plan) == job.role
    mine = role_of(self.plan) == job.role and not self.was_ready
    for index in range(len(job.attempts) if mine else 0):
        group = (self.plan.direction, self.plan.protocol)
        ours, theirs = Channel.pair(RELAYS[group].parent, RELAYS[group].name)
        parent = os.getpid()
        with self.plan.stats.shared():
            pid = linux.fork()
        if pid == 0:
            here.attempt = index
            foreign = self.owner.foreign_places(self.plan)
            relay.main(self.plan._replace(foreign=foreign), theirs, parent)
        theirs.close()
        for family in self.plan.families:
            fds = tuple(supply.open_socket(family, self.plan.protocol) for _ in range(2))
            ours.send(Record(Kind.SOCKETS, family, fds=fds), wait=False)
            for fd in fds:
                os.close(fd)
        wait(index, pid)
        ours.close()
    _start(self)


def role_of(plan: relay.Plan) -> str:
    """What this calls the relays of a plan."""
    kind = "relay" if plan.protocol is Protocol.TCP else "udp"
    return f"{kind}-in" if plan.direction == "inbound" else f"{kind}-out"


def relay_main(plan: relay.Plan, channel: Channel, monitor: int) -> NoReturn:
    """In the place of relay.main: remember what this process is."""
    here.role = role_of(plan)
    here.is_spared = plan.workers > 1 and here.relays > 1
    scene.channel, scene.parent = channel, monitor
    scene.listeners = tuple(one.fd for one in plan.listeners)
    _relay_main(plan, channel, monitor)


def only_the_filter(self: steps.Lockdown, steps: Iterable[steps.Step]) -> None:
    """In the place of Lockdown.run for a bare job: the filter's step is where attempts are made."""
    for step in steps:
        if step.describe == _FILTER:
            step.execute()


# --- actions --------------------------------------------------------------------------------------


def before(owner: Any, name: str, *roles: str) -> None:
    """Have the process act, when it is told to go, before it calls a function of the product's."""
    original = getattr(owner, name)

    def acting(*arguments: Any, **named: Any) -> Any:
        is_mine = here.role in roles and here.role == job.role and not here.is_spared
        if is_mine and board.go and job.action:
            board.go = False
            actions.act(job.action, arguments[0], board)
        return original(*arguments, **named)

    setattr(owner, name, acting)


def inits_own(make: Callable[..., list[steps.Step]]) -> Callable[..., list[steps.Step]]:
    """Remember that this process is PID 1 of a COMMAND, or its guard, who keeps no capability."""

    def noting(keep: Any, *arguments: Any) -> list[steps.Step]:
        here.role = "init" if keep else "guard"
        return make(keep, *arguments)

    return noting


# --- all of it ------------------------------------------------------------------------------------


def reserve_and_gather(first: int, ours: Sequence[int]) -> None:
    """In the place of descriptors.reserve, for a job with props."""
    _reserve(first, ours)
    scene.gather(first)


def keep_more(wanted: Iterable[int], first: int) -> None:
    """In the place of descriptors.keep, for a job with props."""
    _keep_descriptors((*wanted, *scene.props.values()), first)


def close_fewer(wanted: Iterable[int], first: int = 0) -> None:
    """In the place of descriptors.close_others, for a job with props."""
    _close_others((*wanted, *scene.props.values()), first)


def kind(role: str) -> str:
    """monitor, of monitor-host and its like."""
    return role.partition("-")[0]


def reduced(role: str) -> Policy:
    """In the place of table.policy_of: without the rules, or the ways of a rule, that a job
    drops.

    Rules are dropped for the kind of process whose rule the first of them is, in each role that
    has them: a monitor that lacked what its relay needs would prove nothing of the relay.
    """
    policy = _policy_of(role)
    rules = []
    drop = job.drop if kind(job.drop[0].partition(":")[0]) == kind(role) else ()
    for rule in policy.rules:
        ways = tuple(way for way in rule.when if key(rule._replace(when=(way,))) not in drop)
        if key(rule) not in drop and (ways or not rule.when):
            rules.append(rule._replace(when=ways))
    return policy._replace(rules=tuple(rules))


def take_over() -> None:
    """Put all of this in its places."""
    linux.set_seccomp_filter, unotify.set_filter = install, install_asking
    supervisor.Supervisor.start = start_relays  # type: ignore[method-assign]
    relay.main = relay_main
    steps.init_steps = inits_own(steps.init_steps)
    if job.bare:
        steps.Lockdown.run = only_the_filter  # type: ignore[method-assign]
        joining.Tie.renew = lambda self: None  # type: ignore[method-assign]
        tripwire.arm = lambda report: None
    if job.props:
        descriptors.reserve = reserve_and_gather
        descriptors.keep, descriptors.close_others = keep_more, close_fewer
    if job.drop:
        table.policy_of = reduced
    if job.helper:
        scene.helper = ctypes.CDLL(job.helper, use_errno=True)
    before(engine.Engine, "turn", "relay-in", "relay-out")
    before(datagram_engine.Engine, "turn", "udp-in", "udp-out")
    before(NamespaceMonitor, "note", "namespace")
    before(HostMonitor, "_take", "host")
    before(init, "reap", "init")


def serve_containers(argv: Sequence[str]) -> NoReturn:
    """In the place of main: what the programs of engines start (frontends/serving.py), in this
    process, and with ports besides.
    """

    def make() -> Server:
        server = Server(job.server)
        scene.server = server.descriptors[0]
        return server

    options = parse_args(argv)
    inbound = frozenset((Direction.INBOUND, protocol) for protocol in Protocol)
    options = options._replace(any_port=options.any_port | inbound)
    start._serve(options, None, time.monotonic(), caller.take(), Besides(make))


if __name__ == "__main__":
    take_over()
    if job.server:
        serve_containers(sys.argv[1:])
    sys.exit(start.main(sys.argv[1:]))
