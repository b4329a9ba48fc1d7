# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting hardsplice as users do: as its own process, by its command line, sandbox always on.

The program may have to run as a user who can read neither the checkout nor the interpreter that
runs the tests. `Program` finds a combination that this user can run, staging a copy of the package
where necessary, and says why if there is none. `Instance` is one running hardsplice; whatever
happens to it, stopping it leaves no process behind.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.netns import Identity, clean_environment
from tests.support.stream import PATIENCE, Violation, eventually
from tools.launch import probe, stage

ROOT = Path(__file__).parents[2]


class Program:
    """How to run hardsplice here, for each identity."""

    def __init__(self, command: str | None = None) -> None:
        """`command` names an installed hardsplice to test instead of this checkout."""
        self._command = command
        self._found: dict[Identity, tuple[list[str], dict[str, str]]] = {}
        self._stage: Path | None = None

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        """The command line up to hardsplice's own options, and the environment to run it in."""
        if identity not in self._found:
            self._found[identity] = self._find(identity)
        argv, environment = self._found[identity]
        return identity.wrap(argv), environment

    def _find(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        if self._command:
            return self._installed(identity, self._command)
        complaint = ""
        for interpreter, staged in self._places():
            source = self.stage() if staged else ROOT
            environment = clean_environment({"PYTHONPATH": str(source)})
            done = subprocess.run(
                identity.wrap(probe(interpreter)),
                env=environment, cwd="/", capture_output=True, text=True, check=False,
                timeout=PATIENCE,
            )  # fmt: skip
            if done.returncode == 0:
                return [interpreter, "-m", "hardsplice"], environment
            complaint = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        pytest.skip(f"{identity.name} can run no Python with what hardsplice needs: {complaint}")

    def _places(self) -> tuple[tuple[str, bool], ...]:
        """Which interpreters to try, each with the checkout or with a staged copy."""
        return (
            (sys.executable, False),
            (sys.executable, True),
            (os.path.realpath(sys.executable), True),
            ("/usr/bin/python3", True),
        )

    def _installed(self, identity: Identity, command: str) -> tuple[list[str], dict[str, str]]:
        environment = clean_environment({})
        done = subprocess.run(
            identity.wrap([command, "--version"]),
            env=environment, cwd="/", capture_output=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"{identity.name} can't run {command}")
        return [command], environment

    def stage(self) -> Path:
        """A copy of the package and of what it depends on that everybody can read."""
        if self._stage is None:
            self._stage = Path(tempfile.mkdtemp(prefix="hardsplice-tests-"))
            stage(self._stage)
        return self._stage

    def close(self) -> None:
        if self._stage is not None:
            shutil.rmtree(self._stage)


class Launched(Program):
    """hardsplice as a module of the tests starts it, which is copied to where it can be read."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self._module = module

    def stage(self) -> Path:
        """The folder with the package, and now also with the module."""
        folder = super().stage()
        copy = folder / Path(self._module).name
        shutil.copy(self._module, copy)
        copy.chmod(0o644)
        return folder

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        launcher = self.stage() / Path(self._module).name
        return [*argv[: argv.index("-m")], str(launcher)], environment


class Instance:
    """One hardsplice in the foreground."""

    def __init__(
        self,
        program: Program,
        identity: Identity,
        arguments: list[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        descriptors: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """`descriptors` is its RLIMIT_NOFILE, hard and soft."""
        argv, base = program.argv(identity)
        self.arguments = arguments
        self._said = ""
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed by discard()
        messages = os.open(f"/proc/self/fd/{self._messages.fileno()}", os.O_WRONLY | os.O_APPEND)
        ready, told = os.pipe()
        try:
            self.process = subprocess.Popen(
                [*limited(descriptors), *argv, "--ready-fd", str(told), *arguments],
                pass_fds=[told],
                stdin=stdin,
                stdout=stdout,
                stderr=messages,
                cwd="/",
                env={**base, **(environment or {})},
                start_new_session=True,
            )
        except BaseException:
            os.close(ready)
            self._messages.close()
            raise
        finally:
            os.close(told)
            os.close(messages)
        self._ready = ready

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self) -> Instance:
        """Until it says that it is ready; a Violation with its messages if it ends first."""
        try:
            readable, _, _ = select.select([self._ready], [], [], PATIENCE)
            if not readable or not os.read(self._ready, 1):
                self.discard()
                raise Violation(
                    f"hardsplice {' '.join(self.arguments)}: not ready; {self.messages()}"
                )
        finally:
            self._forget_ready()
        return self

    def messages(self) -> str:
        """What it wrote to standard error so far."""
        if not self._messages.closed:
            self._said = os.pread(self._messages.fileno(), 1 << 20, 0).decode(errors="replace")
        return self._said

    def processes(self) -> list[int]:
        """Its live processes, the one that was started first; COMMAND and its children left out."""
        return family(self.pid)

    def relays(self) -> list[int]:
        """Its relays: they have no children, while each monitor has a relay or another monitor.

        Only for instances without a COMMAND, and for a moment when no relay is being restarted.
        """
        return procfs.leaves(self.processes())

    def wait(self, within: float = PATIENCE) -> int:
        """Its exit status, as os.waitstatus_to_exitcode has it."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise Violation(f"hardsplice still runs after {within} s") from None

    def stop(self) -> None:
        """SIGTERM, as a service manager does; it must end with 0 and leave no process."""
        family = self.processes()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.wait()
            eventually(
                lambda: not [pid for pid in family if procfs.alive(pid)],
                "hardsplice has ended but left processes behind",
                within=2,
            )
        finally:
            self.kill(family)
            self.discard()
        if status != 0:
            raise Violation(f"hardsplice ended with {status} after SIGTERM; {self.messages()}")

    def kill(self, family: list[int] | None = None) -> None:
        """Leave nothing of it running, without asking; the messages stay readable."""
        others = {*(family or []), *procfs.tree(self.pid)} - {self.pid}
        for pid, command in procfs.each(procfs.command, others).items():
            if procfs.alive(pid) and "hardsplice" in command:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait(PATIENCE)
        self._forget_ready()

    def _forget_ready(self) -> None:
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1

    def discard(self) -> None:
        """Kill it, in whatever state it is, and let go of everything but its messages."""
        self.kill()
        self.messages()
        self._messages.close()


def family(root: int) -> list[int]:
    """The live processes of hardsplice that began with ``root``, that one first."""
    return [
        pid
        for pid, command in procfs.each(procfs.command, procfs.tree(root)).items()
        if "hardsplice" in command
    ]


def limited(descriptors: int | None) -> list[str]:
    """Words before a command that run it with so many descriptors at most."""
    return ["prlimit", f"--nofile={descriptors}:{descriptors}"] if descriptors else []


def can_bind(address: str, port: int, kind: int = socket.SOCK_STREAM) -> bool:
    """Whether nothing listens there (connections in TIME_WAIT don't count), or has that address for
    datagrams.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind((address, port))
            if kind == socket.SOCK_STREAM:
                probe.listen(1)
        except OSError:
            return False
    return True


def _takes_datagrams(port: int) -> bool:
    """Whether no UDP socket is there."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind(("::", port))
        except OSError:
            return False
    return True


_PORTS = range(10_000, 32_000)  # none ephemeral
_SHARES = 4  # of them, for as many that test at the same time


@functools.cache
def own_ports() -> range:
    """Those of this process's tests. Many ports are chosen long before somebody listens there; so
    each has a share, which is taken as a name in the network namespace, until the process ends.
    """
    size = len(_PORTS) // _SHARES
    for at in range(_SHARES):
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0hardsplice-tests-{at}")
        except OSError:
            name.close()
            continue
        name.detach()  # never closed, but not inherited
        return _PORTS[at * size :][:size]
    return _PORTS


_given: deque[range] = deque(maxlen=16)  # the last ones, which nobody may have bound yet


def free_ports(number: int = 1) -> int:
    """The first of so many consecutive ports of the host that no TCP or UDP socket uses, and that
    none of the calls before has found.
    """
    own = own_ports()
    for attempt in range(200):
        first = random.randrange(own.start, own.stop - number)
        is_new = all(first + number <= one.start or one.stop <= first for one in _given)
        # So many that there are no others may have been asked for.
        if (is_new or attempt >= 100) and all(
            can_bind("::", port) and can_bind("0.0.0.0", port) and _takes_datagrams(port)
            for port in range(first, first + number)
        ):
            _given.append(range(first, first + number))
            return first
    raise RuntimeError(f"no {number} consecutive free ports")


def run(
    program: Program,
    identity: Identity,
    *arguments: str,
    descriptors: int | None = None,
    environment: dict[str, str] | None = None,
    given: str = "",
    starter: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run hardsplice to its end, or, in the background, to its parent's end. ``starter`` is a
    program that starts it, behind whatever changes the user.
    """
    argv, base = program.argv(identity)
    own = 3 if "-m" in argv else 1  # interpreter, -m and module, or a script
    return subprocess.run(
        [*limited(descriptors), *argv[:-own], *starter, *argv[-own:], *arguments],
        input=given,
        env={**base, **(environment or {})},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
