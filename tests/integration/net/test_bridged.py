# SPDX-License-Identifier: GPL-2.0-or-later
"""Which namespace a container's interface leads to, by the kernel's answers about real ones."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from hardsplice.model.spec import Address
from hardsplice.net import bridged
from tests.support.netns import Identity, Namespace, mounted
from tests.support.stream import PATIENCE

pytestmark = pytest.mark.root

V4, V6 = ip_address("10.89.0.2"), ip_address("fd00:89::2")


def ip(namespace: Namespace, *commands: str) -> None:
    for command in commands:
        words = ["nsenter", f"--net={namespace.net_path}", "ip", *command.split()]
        subprocess.run(words, check=True, timeout=PATIENCE)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[tuple[Namespace, Path]]:
    """A container's namespace, and where that of its bridge is mounted; other ones are, too."""
    root = Identity("root")
    with Namespace(root) as inside, Namespace(root) as bridges, Namespace(root) as other:
        ip(
            bridges, "link add bridge0 type bridge", "address add 10.89.0.1/24 dev bridge0",
            "address add fd00:89::1/64 dev bridge0 nodad", "link set bridge0 up",
            f"link add veth0 type veth peer name eth0 netns {inside.pid}",
            "link set veth0 master bridge0 up",
        )  # fmt: skip
        ip(
            inside, "address add 10.89.0.2/24 dev eth0", "address add fd00:89::2/64 dev eth0 nodad",
            "link set eth0 up",
        )  # fmt: skip
        with (
            mounted(other, tmp_path / "other"),
            mounted(inside, tmp_path / "inside"),
            mounted(bridges, tmp_path / "bridges") as path,
        ):
            yield inside, path


@pytest.mark.parametrize("address", [V4, V6])
def test_it_is_the_one_of_the_bridge(address: Address, container: tuple[Namespace, Path]) -> None:
    inside, path = container
    assert bridged.shared_by(inside.net_path, address) == str(path)


@pytest.mark.parametrize("address", ["10.89.1.2", "10.89.0.1", "fd00:88::2"])
def test_none_is_if_the_address_is_not_reached_from_there(
    address: str, container: tuple[Namespace, Path]
) -> None:
    inside, _ = container
    assert bridged.shared_by(inside.net_path, ip_address(address)) is None


def test_none_is_if_only_a_gateway_leads_there(container: tuple[Namespace, Path]) -> None:
    inside, path = container
    subprocess.run(
        ["nsenter", f"--net={path}", "ip", "route", "add", "default", "via", "10.89.0.9"],
        check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert bridged.shared_by(inside.net_path, ip_address("10.88.0.2")) is None


def test_none_is_for_a_namespace_without_such_an_interface() -> None:
    with Namespace(Identity("root")) as alone:
        assert bridged.shared_by(alone.net_path, V4) is None
    assert bridged.shared_by("/nowhere", V4) is None
