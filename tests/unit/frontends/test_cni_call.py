# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call of CNI's means, and the error codes of the specification."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hardsplice.app.command_line import parse_args
from hardsplice.frontends import cni_call
from hardsplice.frontends.cni_call import Attachment, CniError, Surroundings

CALL = Surroundings("ADD", Attachment("c1", "eth0"), "/run/netns/c1")
VARIABLES = {
    "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0", "CNI_PATH": "/usr/lib/cni",
}  # fmt: skip
INTERFACES = [{"name": "br0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/c1"}]
V4 = {"version": "4", "interface": 2, "address": "10.88.0.2/16", "gateway": "10.88.0.1"}
V6 = {"interface": 2, "address": "fd00::2/64"}
HOSTS = {"interface": 0, "address": "10.88.0.1/16"}


def text(*mappings: object, ips: object = None, version: str = "1.1.0", **more: Any) -> bytes:
    previous = {
        "cniVersion": version,
        "interfaces": INTERFACES,
        "ips": [V4] if ips is None else ips,
    }
    given = {
        "cniVersion": version, "name": "net", "type": "hardsplice", "prevResult": previous,
        "capabilities": {"portMappings": True}, "runtimeConfig": {"portMappings": list(mappings)},
    }  # fmt: skip
    return json.dumps(given | more).encode()


def options(*mappings: object, **more: Any) -> list[str]:
    return cni_call.options_of(cni_call.read_configuration(text(*mappings, **more), "ADD"), CALL)


def mapping(**changes: object) -> dict[str, object]:
    return {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"} | changes


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"hostIP": ""}, "-t 8080:10.88.0.2/80"),
        ({"hostIP": None, "protocol": "TCP"}, "-t 8080:10.88.0.2/80"),
        ({"hostIP": "127.0.0.1"}, "-t 127.0.0.1/8080:10.88.0.2/80"),
        ({"hostIP": "0.0.0.0"}, "-t 0.0.0.0/8080:10.88.0.2/80"),
        ({"hostIP": "::1"}, "-t [::1]/8080:10.88.0.2/80"),
        ({"protocol": "udp"}, "-u 8080:10.88.0.2/80"),
    ],
)
def test_a_mapping_is_an_option(asked: dict[str, object], words: str) -> None:
    assert options(mapping(**asked)) == words.split()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "-t 0.0.0.0/8080:10.88.0.2/80 -t [::]/8080:[fd00::2]/80"),
        ("::", "-t [::]/8080:[fd00::2]/80"),
        ("192.0.2.1", "-t 192.0.2.1/8080:10.88.0.2/80"),
    ],
)
def test_a_container_with_both_versions_of_ip(address: str, words: str) -> None:
    assert options(mapping(hostIP=address), ips=[HOSTS, V4, V6]) == words.split()


def test_a_container_with_ipv6_alone() -> None:
    assert options(mapping(), ips=[V6]) == ["-t", "8080:[fd00::2]/80"]
    assert options(mapping(hostIP="127.0.0.1"), ips=[V6])[1] == "127.0.0.1/8080:[fd00::2]/80"


def test_addresses_without_an_interface_are_the_containers() -> None:
    assert options(mapping(), ips=[{"address": "10.1.0.7/8"}]) == ["-t", "8080:10.1.0.7/80"]


def test_the_options_are_understood() -> None:
    words = options(mapping(), mapping(hostPort=81, hostIP="::1"), ips=[V4, V6])
    parsed = parse_args([*words, "--netns", "/n"], ephemeral=lambda: (1, 2)).inbound
    assert [(str(one.address), one.port, str(one.target), one.target_port) for one in parsed] == [
        ("0.0.0.0", 8080, "10.88.0.2", 80), ("::", 8080, "fd00::2", 80), ("::1", 81, "fd00::2", 80),
    ]  # fmt: skip


def test_no_mapping_is_no_option() -> None:
    assert options() == []
    assert options(runtimeConfig=None) == []
    assert options(runtimeConfig={}) == []


@pytest.mark.parametrize("version", cni_call.VERSIONS)
def test_versions_that_there_are(version: str) -> None:
    assert cni_call.read_configuration(text(version=version), "ADD").version == version


@pytest.mark.parametrize(
    ("given", "command", "code"),
    [
        (b"", "ADD", cni_call.UNDECODABLE),
        (b"[]", "ADD", cni_call.UNDECODABLE),
        (text(version="0.3.1"), "ADD", cni_call.INCOMPATIBLE),
        (text(version="2.0.0"), "DEL", cni_call.INCOMPATIBLE),
        (text(version="1.0.0"), "GC", cni_call.INCOMPATIBLE),
        (text(version="0.4.0"), "STATUS", cni_call.INCOMPATIBLE),
        (text(name="a/b"), "ADD", cni_call.INVALID),
        (text(name=".."), "ADD", cni_call.INVALID),
        (text(runtimeConfig=[]), "ADD", cni_call.INVALID),
        (text(prevResult=""), "ADD", cni_call.INVALID),
        (text(runtimeConfig={"portMappings": {}}), "ADD", cni_call.INVALID),
    ],
)
def test_wrong_configurations(given: bytes, command: str, code: int) -> None:
    with pytest.raises(CniError) as caught:
        cni_call.read_configuration(given, command)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("code", "asked"),
    [
        (cni_call.UNSUPPORTED, {"protocol": "sctp"}),
        (cni_call.UNSUPPORTED, {"protocol": 6}),
        (cni_call.INVALID, {"hostPort": 0}),
        (cni_call.INVALID, {"hostPort": "80"}),
        (cni_call.INVALID, {"containerPort": 65536}),
        (cni_call.INVALID, {"containerPort": True}),
        (cni_call.INVALID, {"hostIP": "localhost"}),
        (cni_call.INVALID, {"hostIP": 7}),
    ],
)
def test_wrong_mappings_are_named(code: int, asked: dict[str, object]) -> None:
    with pytest.raises(CniError) as caught:
        options(mapping(), mapping(**asked))
    assert caught.value.code == code
    assert f"runtimeConfig.portMappings[1].{next(iter(asked))}" in caught.value.message


@pytest.mark.parametrize(
    "more",
    [
        {"prevResult": None},
        {"ips": []},
        {"ips": [HOSTS]},
        {"ips": [{"interface": 9, "address": "10.1.0.7/8"}]},
        {"ips": [{"address": "here"}]},
        {"ips": ["10.1.0.7"]},
        {"ips": {}},
    ],
)
def test_the_container_needs_an_address(more: dict[str, Any]) -> None:
    with pytest.raises(CniError) as caught:
        options(mapping(), **more)
    assert caught.value.code == cni_call.INVALID


def test_variables() -> None:
    assert cni_call.read_surroundings(VARIABLES) == CALL


@pytest.mark.parametrize(
    "changes",
    [
        {"CNI_COMMAND": ""}, {"CNI_COMMAND": "add"}, {"CNI_CONTAINERID": ""}, {"CNI_NETNS": ""},
        {"CNI_IFNAME": ""}, {"CNI_IFNAME": ".."}, {"CNI_IFNAME": "a/b"}, {"CNI_IFNAME": "x" * 16},
        {"CNI_CONTAINERID": "../c1"}, {"CNI_CONTAINERID": "a@b"},
    ],
)  # fmt: skip
def test_wrong_variables(changes: dict[str, str]) -> None:
    with pytest.raises(CniError) as caught:
        cni_call.read_surroundings(VARIABLES | changes)
    assert caught.value.code == cni_call.ENVIRONMENT


@pytest.mark.parametrize("command", ["DEL", "GC", "STATUS", "VERSION"])
def test_commands_that_need_no_namespace(command: str) -> None:
    call = cni_call.read_surroundings(VARIABLES | {"CNI_COMMAND": command, "CNI_NETNS": ""})
    assert (call.command, call.netns) == (command, "")


def test_attachments_that_gc_leaves() -> None:
    valid: Any = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]
    given = cni_call.read_configuration(text(**{"cni.dev/valid-attachments": valid}), "GC")
    assert cni_call.valid_attachments(given) == {"a@eth0", "b@eth1"}


@pytest.mark.parametrize("valid", [None, ["a"], [{"containerID": "a"}], [{"ifname": 1}]])
def test_gc_without_attachments_is_refused(valid: Any) -> None:
    """It would end all of them."""
    given = cni_call.read_configuration(text(**{"cni.dev/valid-attachments": valid}), "GC")
    with pytest.raises(CniError):
        cni_call.valid_attachments(given)


def test_an_answer_has_the_version_that_was_asked_in() -> None:
    assert cni_call.version_of(text(version="0.3.1")) == "0.3.1"
    assert cni_call.version_of(b"{") == cni_call.version_of(b"[]") == "1.1.0"
    assert CniError(7, "why").answer("1.0.0") == {"cniVersion": "1.0.0", "code": 7, "msg": "why"}
    assert CniError(7, "why", "more").answer("1.0.0")["details"] == "more"
