# SPDX-License-Identifier: GPL-2.0-or-later
"""What all the tests share: who runs them, the program under test, and cleanliness afterwards."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath

import pytest
from hypothesis import settings

from tests.support import procfs
from tests.support.descriptors import open_descriptors
from tests.support.netns import Identity, Namespace, can_make, ordinary_user
from tests.support.paths import Direct, Path, Service, Spliced
from tests.support.product import Instance, Program, own_ports
from tests.support.stream import eventually

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_IDENTITIES = {"root": Identity("root"), "user": ordinary_user()}
_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}

# Examples of each property. How long one takes depends on what else the machine does.
settings.register_profile("everyday", deadline=None, max_examples=50)
settings.register_profile("soak", deadline=None, max_examples=1000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--hardsplice",
        metavar="COMMAND",
        help="test this installed hardsplice instead of the checkout",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Processes that outlive their parents become children of this one: they can be seen, waited
    # for and ended, and none can hide from `nothing_left_behind`.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    own_ports()  # before tests that look at what is open
    # nohup(1) has SIGHUP ignored, a shell SIGINT where it starts something in the background; which
    # everything that we start would inherit.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("everyday")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: whoever broke something simple should learn it in seconds."""
    order = ("unit", "integration", "policy", "packaging", "cli_e2e", "relay")

    def rank(item: pytest.Item) -> tuple[int, bool]:
        folder = next((i for i, name in enumerate(order) if name in item.path.parts), 3)
        return folder, item.get_closest_marker("soak") is not None

    items.sort(key=rank)  # stable: within a folder the order is that of the files


def pytest_collection_finish() -> None:
    """The garbage collector has no more to do with what pytest knows of thousands of tests."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="session")
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    """The hardsplice under test."""
    program = Program(request.config.getoption("--hardsplice"))
    yield program
    program.close()


def identity_named(name: str) -> Identity:
    """Root, or an ordinary user; skips where the tests can't be that, or it can't do its work."""
    if name == "root" and os.geteuid() != 0:
        pytest.skip("needs root")
    identity = _IDENTITIES[name]
    if not can_make(identity):
        pytest.skip(f"{name} may not create namespaces on this machine")
    return identity


@pytest.fixture(params=["root", "user"])
def identity(request: pytest.FixtureRequest) -> Identity:
    """Everything that names this runs as root and as an ordinary user."""
    return identity_named(request.param)


@pytest.fixture
def user() -> Identity:
    """An ordinary user."""
    return identity_named("user")


@pytest.fixture
def namespace(identity: Identity) -> Iterator[Namespace]:
    """A namespace that belongs to `identity`."""
    with Namespace(identity) as made:
        yield made


@pytest.fixture
def user_directory(identity: Identity) -> Iterator[FilePath]:
    """A folder in which the identity may write."""
    path = FilePath(f"/tmp/hardsplice-tests-{os.getpid()}-{identity.name}")
    path.mkdir(mode=0o755)
    if identity.uid is not None:
        os.chown(path, identity.uid, identity.uid)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def ways(program: Program) -> Iterator[Callable[[str], Path]]:
    """The ways of support/paths.py by name, each made when it is first asked for."""
    services: dict[str, Service] = {}

    def way(name: str) -> Path:
        kind, family, *who = name.split("-")
        if kind == "direct":
            return Direct(_FAMILIES[family])
        if who[0] not in services:
            services[who[0]] = Service(program, identity_named(who[0]))
        return Spliced(services[who[0]], _FAMILIES[family], inbound=kind == "inbound")

    yield way
    for service in services.values():
        service.close()


@pytest.fixture
def launch(program: Program) -> Iterator[Callable[..., Instance]]:
    """Start instances of one's own: launch(identity, *arguments, ...), ended after the test."""
    started: list[Instance] = []

    def start(identity: Identity, *arguments: str, **how: object) -> Instance:
        instance = Instance(program, identity, list(arguments), **how)  # type: ignore[arg-type]
        started.append(instance)
        return instance

    yield start
    for instance in started:
        instance.discard()


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """Fail a test after which a process is there that wasn't before."""
    before = procfs.descendants(os.getpid())
    yield

    def left() -> set[int]:
        procfs.reap()
        return procfs.descendants(os.getpid()) - before

    def told() -> str:
        return "left behind: " + ", ".join(f"{pid} ({_command(pid)})" for pid in left())

    eventually(lambda: not left(), told, within=3)


@pytest.fixture
def nothing_left_open() -> Iterator[None]:
    """Fail a test after which other descriptors are open than before."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def _command(pid: int) -> str:
    try:
        return procfs.command(pid)
    except ProcessLookupError:
        return "ended"
