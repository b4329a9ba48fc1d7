# SPDX-License-Identifier: GPL-2.0-or-later
"""From a parsed command line to a running, locked-down tree of processes: the stages, in the order
that is the security argument.

    parse    nothing privileged, nothing opened (cli.py)
    open     descriptors of namespaces, log, PID file; listeners on the host
    compile  the seccomp programs, so that nobody needs libseccomp later
    probe    how large pipes may be
    enter    COMMAND's namespaces are made; the target monitor is forked, joins the target's,
             binds its listeners and hands them over
    isolate  each monitor gives up all that it has (isolate.py), with its filter last
    fork     each monitor forks its relay, which gives up the rest
    ready    and only now that is said

Everything up to isolate may fail with a message and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import prctl

from hardsplice import (
    container,
    descriptors,
    isolate,
    landlock,
    linux,
    listeners,
    namespaces,
    seccomp,
    users,
)
from hardsplice.channel import Channel, Kind, Record, close_all
from hardsplice.cli import Mode, Options, Verbosity
from hardsplice.errors import Failure, reason_of
from hardsplice.isolate import Lockdown
from hardsplice.log import Level, Log
from hardsplice.monitor import (
    PASSED_ON,
    Child,
    Host,
    HostMonitor,
    TargetMonitor,
    failure_of,
    text_of,
)
from hardsplice.pidfile import PidFile
from hardsplice.ports import Forward
from hardsplice.relay import main as relay
from hardsplice.relay.kernel import Kernel
from hardsplice.relay.pipes import probe_size
from hardsplice.relay.stats import Stats
from hardsplice.values import RunAs

HANDED_AT_ONCE = 100  # listeners beside one record
LEVELS = {
    Verbosity.QUIET: Level.ERROR,
    Verbosity.NORMAL: Level.INFO,
    Verbosity.DEBUG: Level.DEBUG,
    Verbosity.TRACE: Level.TRACE,
}


@dataclass(frozen=True, slots=True)
class Programs:
    """The compiled filters."""

    monitor: bytes
    relay: bytes
    init: bytes


class Setup:
    """One start, stage by stage. What a stage opened, the attribute beside it holds."""

    def __init__(self, options: Options, launcher: Channel | None, began: float) -> None:
        self.options = options
        self.launcher = launcher
        self.began = began
        self.log = Log(LEVELS[options.verbosity])
        self.user: RunAs | None = None
        self.target: namespaces.Target | None = None
        self.pid_file: PidFile | None = None
        self.container: container.Container | None = None
        self.monitor: Child | None = None
        self.host_listeners: list[tuple[int, int]] = []
        self.target_listeners: list[tuple[int, int]] = []
        self.pipe_size = 0
        self.ready_fd: int | None = None
        self.notify: int | None = None
        self.locked = False  # lock-down has begun

    def say(self, text: str) -> None:
        """Tell what is being done, for --debug."""
        self.log.line(Level.DEBUG, text)

    def _stage(self, name: str) -> None:
        self.say(f"[{1000 * (time.monotonic() - self.began):6.1f} ms] stage {name}")

    # --- stages -----------------------------------------------------------------------------------

    def run(self) -> int:
        """All stages, then serve; the exit status. Failure leaves nothing behind."""
        try:
            self.open()
            self.compile()
            self.probe()
            self.enter()
            host = self.gather()
            if self.pid_file:
                self.pid_file.write()
            self.isolate()
            return HostMonitor(host, self.ready).run()
        except BaseException:
            self.undo()
            raise

    def report(self, failure: Failure) -> None:
        """Say what went wrong: to the launcher while it waits in front of us, else in the log."""
        if self.launcher and not self.options.foreground:
            self.launcher.send(Record(Kind.FATAL, text=text_of(failure)))
            return
        for text in (str(failure), failure.hint):
            if text:
                self.log.line(Level.ERROR, text)

    def open(self) -> None:
        """Open what needs the rights and the file system that this process is about to lose."""
        self._stage("open")
        options = self.options
        self.user = users.own_user(options.runas)
        descriptors.raise_limit()
        if options.ready_fd is not None:
            self.ready_fd = descriptors.above_fixed(options.ready_fd)
        if self.launcher:
            self.launcher.move_to(isolate.CHANNEL_FD)
        descriptors.reserve_fixed()
        self.last_capability = isolate.read_last_capability()
        self.landlock_abi = landlock.abi()
        if options.mode is Mode.PID:
            assert options.pid is not None
            self.target = namespaces.open_process(options.pid, netns_only=options.netns_only)
        elif options.mode is Mode.NETNS:
            assert options.netns is not None
            self.target = namespaces.open_path(
                options.netns, options.userns, netns_only=options.netns_only
            )
        if options.log_file is not None:
            self._open_log(options.log_file)
        elif not options.foreground:
            self.log.to_syslog()
        self.notify = _connect_notify()
        if options.pid_file is not None:
            self.pid_file = PidFile(options.pid_file)
        self.host_families = listeners.usable_families(options.families)
        self.host_listeners = listeners.open_listeners(
            options.inbound, self.host_families, "on the host"
        )

    def _open_log(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self.log.to_file(os.open(path, flags, 0o640), self.options.log_size)
        except OSError as error:
            raise Failure("write", f"log file {path}", reason_of(error)) from error

    def compile(self) -> None:
        """Compile the filters: libseccomp is needed in this process and now only."""
        self._stage("compile")
        arch = seccomp.native_arch()
        programs = [
            seccomp.compile_policy(seccomp.load_policy(role), arch)
            for role in ("monitor", "relay", "init")
        ]
        self.programs = Programs(*programs)

    def probe(self) -> None:
        """Find the pipe size."""
        self._stage("probe")
        self.pipe_size = probe_size(Kernel())
        self.say(f"pipes have {self.pipe_size} bytes")

    def enter(self) -> None:
        """Make COMMAND's namespaces if there is one, and send a monitor into the target's."""
        self._stage("enter")
        options = self.options
        gc.collect()
        gc.freeze()
        if options.mode is Mode.COMMAND:
            command = options.command or (os.environ.get("SHELL") or "/bin/sh",)
            self.container = container.create(
                container.Recipe(
                    command=command,
                    user=self.user,
                    program=self.programs.init,
                    last_capability=self.last_capability,
                    new_user=not options.netns_only,
                )
            )
            self.target = self.container.target
        if not (options.inbound or options.outbound):
            return
        ours, theirs = Channel.pair()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._target_monitor(theirs, parent)
        theirs.close()
        self.monitor = Child(pid, os.pidfd_open(pid), ours)
        self._receive_listeners(ours)
        close_all([fd for _, fd in self.host_listeners])  # the target monitor has them
        self.host_listeners = []

    def _receive_listeners(self, channel: Channel) -> None:
        while True:
            record = channel.receive()
            if record is None:
                raise Failure("start", "the target monitor", "it ended early")
            if record.kind == Kind.FATAL:
                raise failure_of(record.text)
            if record.kind == Kind.BOUND:
                return
            indexes = [int(index) for index in record.text.split()]
            self.target_listeners += zip(indexes, record.fds, strict=True)

    def gather(self) -> Host:
        """What the host monitor works with."""
        options = self.options
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        self.signals = linux.signalfd(PASSED_ON)
        return Host(
            log=self.log,
            target=self.target,
            quit_with_target=options.netns_quit,
            inbound=options.inbound,
            outbound=options.outbound,
            signals=self.signals,
            monitor=self.monitor,
            container=self.container,
            plan=self._plan(
                "outbound", self.target_listeners, options.outbound, self.host_families
            ),
        )

    def _plan(
        self,
        direction: str,
        opened: Sequence[tuple[int, int]],
        forwards: Sequence[Forward],
        families: Sequence[int],
    ) -> relay.Plan | None:
        if not opened:
            return None
        relay.pool_sizes(resource.getrlimit(resource.RLIMIT_NOFILE)[0], relay.fixed_use(opened))
        made = listeners.for_relay(opened, forwards, families)
        used = {family for one in made for family, _ in (*one.plan_ipv4, *one.plan_ipv6)}
        return relay.Plan(
            direction=direction,
            listeners=made,
            families=tuple(sorted(used)),
            pipe_size=self.pipe_size,
            filter=self.programs.relay,
            stats=Stats(),
            trace=self.options.verbosity >= Verbosity.TRACE,
            has_ruleset=self.landlock_abi > 0,
            strict=self.options.sandbox == "strict",
        )

    def isolate(self) -> None:
        """Lock the host monitor down."""
        self._stage("isolate")
        self.locked = True
        prctl.set_name("hs-host")
        keep = [self.signals]
        if self.ready_fd is not None:
            descriptors.move(self.ready_fd, isolate.READY_FD)
            keep.append(isolate.READY_FD)
        if self.notify is not None:
            descriptors.move(self.notify, isolate.NOTIFY_FD)
            keep.append(isolate.NOTIFY_FD)
        for part in (self.monitor, self.container):
            if part:
                keep += [part.pidfd, part.channel.fileno()]
        if self.target:
            keep += [fd for fd in (self.target.process, self.target.watch) if fd is not None]
        keep += [fd for _, fd in self.target_listeners]
        isolate.null_standard_streams((0, 1))
        self.log.settle()
        isolate.keep_descriptors((*isolate.FIXED_FDS, isolate.RULESET_FD, *keep))
        lockdown = self._lockdown(self.options.outbound, self.say)
        lockdown.run(
            isolate.monitor_steps(
                user=self.user,
                new_user_namespace=os.geteuid() != 0 or not namespaces.owns_all_ids(),
                last_capability=self.last_capability,
                file_limit=self.log.file_limit,
                ruleset=isolate.RULESET_FD if self.landlock_abi else None,
            )
        )
        self.missing = lockdown.missing
        lockdown.run([isolate.filter_step(self.programs.monitor)])

    def _lockdown(self, forwards: Sequence[Forward], say: Callable[[str], None]) -> Lockdown:
        """A lock-down whose Landlock ruleset, at its fixed descriptor, allows the targets of
        ``forwards``.
        """
        lockdown = Lockdown(strict=self.options.sandbox == "strict", say=say)
        lacks = landlock.missing(self.landlock_abi)
        if lacks and lockdown.strict:
            raise Failure("lock down", lacks[0], "this kernel lacks it")
        lockdown.missing += lacks
        ruleset = landlock.ruleset(self.landlock_abi, {one.target_port for one in forwards})
        if ruleset is not None:
            descriptors.move(ruleset, isolate.RULESET_FD)
        return lockdown

    def ready(self, missing: Sequence[str]) -> None:
        """All is bound and locked down: say so, to whoever asked to be told."""
        self.missing = list(dict.fromkeys((*self.missing, *missing)))
        for what in self.missing:
            self.log.line(Level.WARNING, f"this kernel could not: {what}")
        self._stage("ready")
        took = f"ready in {1000 * (time.monotonic() - self.began):.0f} ms"
        self.log.line(Level.DEBUG, took)
        if self.ready_fd is not None:
            with contextlib.suppress(OSError):
                os.write(isolate.READY_FD, b"\n")
            os.close(isolate.READY_FD)
        if self.notify is not None:
            with contextlib.suppress(OSError):
                os.write(isolate.NOTIFY_FD, b"READY=1\n")
        if self.launcher:  # it exits now, or prints what --audit shows
            text = "\n".join([took, *self.missing])
            self.launcher.send(Record(Kind.READY, detail=os.getpid(), text=text.encode()))
            self.launcher.close()
            self.launcher = None

    def undo(self) -> None:
        """Set-up failed: let go of all that it made. After lock-down a file can't be removed any
        more.
        """
        if self.pid_file and not self.locked:
            self.pid_file.remove()
        for child in (self.monitor, self.container):
            if child is None:
                continue
            child.channel.close()
            pid = child.pid if isinstance(child, Child) else child.init
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)

    # --- the target monitor -----------------------------------------------------------------------

    def _target_monitor(self, channel: Channel, parent: int) -> NoReturn:
        """The forked process: join, bind, lock down, serve. It never returns."""
        status = 1
        try:
            status = self._live_in_target(channel, parent)
        except Failure as failure:
            channel.send(Record(Kind.FATAL, text=text_of(failure)))
        except BaseException as error:  # noqa: BLE001 - a forked process must not return
            unforeseen = Failure("run", "the target monitor", f"{type(error).__name__}: {error}")
            channel.send(Record(Kind.FATAL, text=text_of(unforeseen)))
        os._exit(status)

    def _live_in_target(self, channel: Channel, parent: int) -> int:
        options = self.options
        assert self.target is not None
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.setsid()
        prctl.set_name("hs-target")
        namespaces.join(self.target)
        families = listeners.usable_families(options.families)
        bound = listeners.open_listeners(options.outbound, families, "in the namespace")
        for start in range(0, len(bound), HANDED_AT_ONCE):
            some = bound[start : start + HANDED_AT_ONCE]
            text = " ".join(str(index) for index, _ in some).encode()
            channel.send(Record(Kind.LISTENERS, text=text, fds=tuple(fd for _, fd in some)))
        channel.send(Record(Kind.BOUND))
        plan = self._plan("inbound", self.host_listeners, options.inbound, families)

        channel.move_to(isolate.CHANNEL_FD)
        isolate.null_standard_streams((0, 1, 2))
        self.log.level = Level.ERROR
        listening = (fd for _, fd in self.host_listeners)
        isolate.keep_descriptors((*isolate.FIXED_FDS, isolate.RULESET_FD, *listening))
        user = self.user
        if user is not None and not users.is_mapped(user):
            user = RunAs(0, 0)  # in the target's user namespace: whoever owns it
        lockdown = self._lockdown(options.inbound, lambda _: None)
        lockdown.run(
            isolate.monitor_steps(
                user=user,
                new_user_namespace=False,
                last_capability=self.last_capability,
                file_limit=0,
                ruleset=isolate.RULESET_FD if self.landlock_abi else None,
            )
        )
        isolate.die_with(parent)
        lockdown.run([isolate.filter_step(self.programs.monitor)])
        return TargetMonitor(channel, plan, lockdown.missing).run()


def _connect_notify() -> int | None:
    """A socket connected to the service manager's (sd_notify), if there is one."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return None
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        end.connect(path.replace("@", "\0", 1) if path[0] == "@" else path)
    except OSError as error:
        raise Failure("reach", f"the service manager at {path}", reason_of(error)) from error
    return end.detach()
