# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of locked-down processes, seen from outside: what lies in it for whoever takes one
over, and how much of it there can be.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hardsplice.sandbox.steps import MEMORY, MEMORY_EACH
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = [
    pytest.mark.root,  # nobody else may look into processes that aren't dumpable
    pytest.mark.usefixtures("nothing_left_behind"),
]

OURS = {"hs-host", "hs-namespace", "hs-relay-in", "hs-relay-out", "hs-udp-in", "hs-udp-out"}
WITH_COMMAND = OURS | {"hs-guard", "hs-init"}


def memory(pid: int) -> Iterator[bytes]:
    """Each part of a process's memory that can be read."""
    with open(f"/proc/{pid}/maps", encoding="ascii") as file:
        lines = file.read().splitlines()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in lines:
            span, mode, *_ = line.split()
            if "r" not in mode or line.endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                continue
            start, end = (int(edge, 16) for edge in span.split("-"))
            with contextlib.suppress(OSError):  # pages behind a file's end
                yield os.pread(file.fileno(), end - start, start)


def spellings(text: str) -> tuple[bytes, ...]:
    """How a text may lie in memory: as bytes, and in wide strings."""
    return text.encode(), text.encode("utf-16-le"), text.encode("utf-32-le")


def found(pid: int, *texts: str) -> set[str]:
    """Which of the texts are in the memory of a process."""
    return {
        text
        for part in memory(pid)
        for text in texts
        if any(spelling in part for spelling in spellings(text))
    }


def named(instance: Instance) -> dict[str, int]:
    return {name: pid for pid, name in procfs.names(instance.pid).items()}


@pytest.fixture(params=["command", "pid"])
def arguments(request: pytest.FixtureRequest, identity: Identity) -> Iterator[list[str]]:
    """A COMMAND's mode, and one where hardsplice comes to what runs already."""
    if request.param == "command":
        yield ["--", "sleep", "1000"]
    else:
        with Namespace(identity) as namespace:
            yield ["-f", str(namespace.pid)]


class Remembering(Program):
    """The product, without the function that this is about."""

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        code = """
import sys
from hardsplice.command import environment
from hardsplice.app.start import main
environment.forget = lambda: None
sys.exit(main(sys.argv[1:]))
"""
        return [*argv[: argv.index("-m")], "-c", code], environment


@dataclass(frozen=True)
class Secret:
    """What is in the environment, and nowhere else."""

    name: str = field(default_factory=lambda: f"NAME_{secrets.token_hex(8)}")
    short: str = field(default_factory=lambda: secrets.token_hex(8))
    long: str = field(default_factory=lambda: secrets.token_hex(6000))

    def environment(self) -> dict[str, str]:
        return {self.name: self.short, f"{self.name}_LONG": self.long}

    @property
    def parts(self) -> set[str]:
        return {self.name, self.short, self.long[:64], self.long[6000:6064], self.long[-64:]}


def ports_of_all() -> list[str]:
    """Options that have a process of each kind, COMMAND's left out."""
    inbound, outbound = f"127.0.0.1/{free_ports()}:80", f"81:{free_ports()}"
    return ["-t", inbound, "-T", outbound, "-u", inbound, "-U", outbound]


def left_in(
    program: Program, identity: Identity, secret: Secret, arguments: list[str]
) -> dict[str, set[str]]:
    """What of the secret is in the memory of each process, by its name."""
    instance = Instance(program, identity, arguments, environment=secret.environment())
    with contextlib.ExitStack() as stack:
        stack.callback(instance.discard)
        instance.wait_ready()
        expected = WITH_COMMAND | {"sleep"} if "sleep" in arguments else OURS
        eventually(lambda: named(instance).keys() == expected, lambda: str(named(instance)))
        return {who: found(pid, *secret.parts) for who, pid in named(instance).items()}


@pytest.mark.parametrize("ports", ["fixed", "changing"])
def test_nothing_of_the_caller_s_environment_is_left_in_ours(
    program: Program, identity: Identity, arguments: list[str], ports: str
) -> None:
    secret = Secret()
    spec = ports_of_all()
    if ports == "changing":
        spec += [word for option in ("-t", "-T", "-u", "-U") for word in (option, "auto")]
    left = left_in(program, identity, secret, [*spec, *arguments])
    assert left.pop("sleep", secret.parts) == secret.parts, "COMMAND has all of it"
    assert left == {who: set() for who in left}


def test_where_it_is_not_overwritten_all_have_it(identity: Identity, arguments: list[str]) -> None:
    secret = Secret()
    spec = ports_of_all()
    with contextlib.closing(Remembering()) as program:
        left = left_in(program, identity, secret, [*spec, *arguments])
    assert left == dict.fromkeys(left, secret.parts)


# --- how much -------------------------------------------------------------------------------------


def address_space(pid: int) -> tuple[int, int]:
    """What a process has, and may have, in bytes."""
    lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    (limit,) = (line.split()[3:5] for line in lines if line.startswith("Max address space"))
    assert limit[0] == limit[1], "soft and hard"
    return 1024 * int(procfs.status(pid)["VmSize"].split()[0]), int(limit[0])


def test_each_process_has_a_limit(
    program: Program, identity: Identity, arguments: list[str]
) -> None:
    spec = ports_of_all()
    instance = Instance(program, identity, [*spec, *arguments], descriptors=5000)
    with contextlib.ExitStack() as stack:
        stack.callback(instance.discard)
        instance.wait_ready()
        processes = named(instance)
        for name in WITH_COMMAND & processes.keys():
            has, may_have = address_space(processes[name])
            room = MEMORY if name in ("hs-guard", "hs-init") else MEMORY + MEMORY_EACH * 5000
            assert abs(has + room - may_have) < 32 << 20, name


def test_a_lower_limit_of_the_caller_s_stays(
    program: Program, identity: Identity, namespace: Namespace
) -> None:
    argv, _ = program.argv(identity)
    low = 120 << 20
    limited = ["prlimit", f"--as={low}", *argv]

    class Limited(Program):
        def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
            return limited, program.argv(identity)[1]

    spec = ["-f", "-t", f"127.0.0.1/{free_ports()}:80", str(namespace.pid)]
    with contextlib.closing(Limited()) as launcher, contextlib.ExitStack() as stack:
        instance = Instance(launcher, identity, spec)
        stack.callback(instance.discard)
        instance.wait_ready()
        assert {address_space(pid)[1] for pid in named(instance).values()} == {low}


CONNECTIONS = 1500


@pytest.mark.parametrize("kind", ["idle", "blocked"])
def test_the_limit_has_room_for_all_connections(
    kind: str, program: Program, identity: Identity, namespace: Namespace
) -> None:
    """What one takes of it is less than what its two descriptors add to it, also where nobody reads
    and its data wait in a pipe of its own.
    """
    port = free_ports()
    spec = ["-f", "-t", f"127.0.0.1/{port}:80", str(namespace.pid)]
    instance = Instance(program, identity, spec)
    with contextlib.ExitStack() as stack:
        stack.callback(instance.discard)
        instance.wait_ready()
        server = stack.enter_context(namespace.socket(socket.AF_INET))
        server.bind(("127.0.0.1", 80))
        server.listen(4096)
        relay = named(instance)["hs-relay-in"]
        before = address_space(relay)[0]
        for _ in range(CONNECTIONS):
            client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            stack.enter_context(client)
            stack.enter_context(server.accept()[0])
            if kind == "blocked":
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    for _ in range(64):
                        client.send(bytes(1 << 16))
        assert len(procfs.descriptors(relay)) > 2 * CONNECTIONS
        assert address_space(relay)[0] - before < 2 * MEMORY_EACH * CONNECTIONS
