# SPDX-License-Identifier: GPL-2.0-or-later
"""A call of the Container Network Interface (CNI), read and checked: variables, the configuration
on standard input, and what is to be forwarded. Pure.

https://www.cni.dev/docs/spec/ has the specification, in which error codes below 100 have their
meanings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface

from hardsplice.kernel.hints import Any
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.errors import printable, quote
from hardsplice.model.spec import LAST_PORT

VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
# The first version that has a command.
SINCE = {
    "ADD": "0.4.0", "DEL": "0.4.0", "CHECK": "0.4.0", "VERSION": "0.1.0", "STATUS": "1.1.0",
    "GC": "1.1.0",
}  # fmt: skip

INCOMPATIBLE, UNSUPPORTED, ENVIRONMENT, INPUT, UNDECODABLE, INVALID = 1, 2, 4, 5, 6, 7
UNAVAILABLE = 50  # STATUS: ADD would fail
NOT_STARTED, NOT_AS_ASKED = 100, 101  # our own

# Options that a protocol's SPECs are values of.
OPTIONS = {"tcp": "-t", "udp": "-u"}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_INTERFACE = re.compile(r"(?!\.{1,2}$)[^\s/:]{1,15}")
_NEEDED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
}
Address = IPv4Address | IPv6Address


class CniError(Exception):
    """Why a call fails, as the specification has it: a code, a message and details."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(code, message, details)
        self.code = code
        self.message = message
        self.details = details

    def answer(self, version: str) -> dict[str, object]:
        """The error in the form for standard output."""
        said: dict[str, object] = {"cniVersion": version, "code": self.code}
        texts = {"msg": self.message, "details": self.details}
        return said | {name: printable(text) for name, text in texts.items() if text}


class Attachment(NamedTuple):
    """What an instance belongs to within a network."""

    container: str
    interface: str

    @property
    def name(self) -> str:
        """One word for it: no container's has this sign in it."""
        return f"{self.container}@{self.interface}"


class Surroundings(NamedTuple):
    """What the variables say."""

    command: str
    attachment: Attachment
    netns: str


class Configuration(NamedTuple):
    """What standard input says."""

    version: str
    network: str
    mappings: Sequence[object]
    previous: dict[str, Any] | None
    #: Those that GC is to leave; None where the configuration doesn't say.
    valid: Sequence[object] | None


def read_surroundings(environment: Mapping[str, str]) -> Surroundings:
    """The variables of a call. Raises CniError."""
    command = environment.get("CNI_COMMAND", "")
    if command not in SINCE:
        raise CniError(ENVIRONMENT, f"CNI_COMMAND is one of {', '.join(SINCE)}")
    for name in _NEEDED.get(command, ()):
        if not environment.get(name):
            raise CniError(ENVIRONMENT, f"CNI_COMMAND {command} needs {name}, which is not set")
    container = environment.get("CNI_CONTAINERID", "")
    interface = environment.get("CNI_IFNAME", "")
    if container and not _ID.fullmatch(container):
        raise CniError(ENVIRONMENT, "CNI_CONTAINERID is not the name of a container")
    if interface and not _INTERFACE.fullmatch(interface):
        raise CniError(ENVIRONMENT, "CNI_IFNAME is not the name of an interface")
    return Surroundings(command, Attachment(container, interface), environment.get("CNI_NETNS", ""))


def version_of(text: bytes) -> str:
    """The version of a configuration, as answers have it, even if the rest is wrong."""
    try:
        found = json.loads(text).get("cniVersion")
    except (ValueError, RecursionError, AttributeError):
        found = None
    return found if isinstance(found, str) and found else VERSIONS[-1]


def read_configuration(text: bytes, command: str) -> Configuration:
    """The configuration for a command other than VERSION. Raises CniError."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CniError(UNDECODABLE, "the configuration is not JSON", str(error)) from None
    if not isinstance(given, dict):
        raise CniError(UNDECODABLE, "the configuration is not an object")
    version = version_of(text)
    if version not in VERSIONS:
        details = f"the configuration has {version}; there are {', '.join(VERSIONS)}"
        raise CniError(INCOMPATIBLE, "this version of CNI is not supported", details)
    if VERSIONS.index(version) < VERSIONS.index(SINCE[command]):
        message = f"{command} is not in version {version} of CNI"
        raise CniError(INCOMPATIBLE, message, f"it is from {SINCE[command]} on")
    network = given.get("name")
    if not isinstance(network, str) or not _ID.fullmatch(network):
        raise CniError(INVALID, "name is not the name of a network")
    runtime = _of(given, "runtimeConfig", dict) or {}
    return Configuration(
        version,
        network,
        _of(runtime, "portMappings", list) or [],
        _of(given, "prevResult", dict),
        _of(given, "cni.dev/valid-attachments", list),
    )


def _of(given: dict[str, Any], key: str, kind: type) -> Any:
    """What an object has at a key, if anything; CniError where it is of another kind."""
    value = given.get(key)
    if value is not None and not isinstance(value, kind):
        raise CniError(INVALID, f"{key} is not {'an object' if kind is dict else 'a list'}")
    return value


def valid_attachments(configuration: Configuration) -> set[str]:
    """The names of those that GC is to leave. Raises CniError."""
    if configuration.valid is None:
        raise CniError(INVALID, "cni.dev/valid-attachments is missing")
    names = set()
    for each in configuration.valid:
        container = each.get("containerID") if isinstance(each, dict) else None
        interface = each.get("ifname") if isinstance(each, dict) else None
        if not isinstance(container, str) or not isinstance(interface, str):
            raise CniError(INVALID, "cni.dev/valid-attachments has no containerID, or no ifname")
        names.add(Attachment(container, interface).name)
    return names


def options_of(configuration: Configuration, call: Surroundings) -> list[str]:
    """The options for what a configuration asks for; none if it asks for no port. Raises CniError.

    A server in the container is reached at the container's address in this network. A port without
    an address on the host is one of every address of the host's, IPv4 and IPv6, also where the
    container has only one of the two.
    """
    if configuration.previous is None:
        message = "prevResult is missing"
        details = "hardsplice goes behind the plugin that makes the interface, in its plugins"
        raise CniError(INVALID, message, details)
    if not configuration.mappings:
        return []
    targets = _addresses(configuration.previous, call)
    words = []
    for index, mapping in enumerate(configuration.mappings):
        where = f"runtimeConfig.portMappings[{index}]"
        if not isinstance(mapping, dict):
            raise CniError(INVALID, f"{where} is not an object")
        option = _option(mapping, where)
        host, container = (_port(mapping, key, where) for key in ("hostPort", "containerPort"))
        for listen, target in _ways(_host_address(mapping, where), targets):
            words += [option, f"{listen}{host}:{_host(target)}/{container}"]
    return words


def _option(mapping: dict[str, Any], where: str) -> str:
    protocol = mapping.get("protocol", "tcp")
    if not isinstance(protocol, str) or protocol.lower() not in OPTIONS:
        message = f"{where}.protocol {quote(str(protocol))} is not supported"
        raise CniError(UNSUPPORTED, message, f"there are {' and '.join(OPTIONS)}")
    return OPTIONS[protocol.lower()]


def _port(mapping: dict[str, Any], key: str, where: str) -> int:
    value = mapping.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LAST_PORT:
        raise CniError(INVALID, f"{where}.{key} is not a port, which is 1 to {LAST_PORT}")
    return value


def _host_address(mapping: dict[str, Any], where: str) -> Address | None:
    text = mapping.get("hostIP")
    if text in (None, ""):
        return None
    try:
        if isinstance(text, str):
            return ip_address(text)
    except ValueError:
        pass
    raise CniError(INVALID, f"{where}.hostIP is not an address")


def _addresses(previous: dict[str, Any], call: Surroundings) -> dict[int, Address]:
    """The container's first address of each version of IP."""
    found: dict[int, Address] = {}
    interfaces = previous.get("interfaces")
    ips = previous.get("ips")
    try:
        for each in ips if isinstance(ips, list) else []:
            index = each.get("interface")
            if index is not None and isinstance(interfaces, list) and interfaces:
                interface = interfaces[index]
                if not interface.get("sandbox"):
                    continue  # of the host's
                if interface.get("name") != call.attachment.interface:
                    continue
            address = ip_interface(each["address"]).ip
            found.setdefault(address.version, address)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise CniError(INVALID, "prevResult.ips has something else than addresses") from None
    if not found:
        name = call.attachment.interface
        raise CniError(INVALID, f"prevResult has no address of the container's {name}")
    return found


def _ways(listen: Address | None, targets: Mapping[int, Address]) -> list[tuple[str, Address]]:
    """Where to listen, as a SPEC has it, and for which of the container's addresses."""
    if listen is not None:
        target = targets.get(listen.version) or next(iter(targets.values()))
        return [(f"{_host(listen)}/", target)]
    if len(targets) == 1:
        return [("", target) for target in targets.values()]
    return [(("0.0.0.0/" if version == 4 else "[::]/"), one) for version, one in targets.items()]


def _host(address: Address) -> str:
    return str(address) if address.version == 4 else f"[{address}]"
