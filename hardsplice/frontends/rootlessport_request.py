# SPDX-License-Identifier: GPL-2.0-or-later
"""A request of Podman's to rootlessport: read from its JSON, and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from ipaddress import IPv4Address

from hardsplice.frontends import mapping
from hardsplice.kernel.hints import Any
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.errors import HardspliceError, reason_of
from hardsplice.model.forward import Forward
from hardsplice.model.spec import LAST_PORT, Address

SIZE_MAX = 16 << 20  # bytes of a request: each port may be an object of its own


class Request(NamedTuple):
    """What Podman asks for."""

    forwards: tuple[Forward, ...]
    netns: str  # the container's
    child: Address  # the container's in there
    folder: str | None  # Podman's, for temporary files, if it says so
    ready_fd: int
    exit_fd: int
    socket: str | None  # where the container's new address is told, if that is to be
    container: str  # its ID


def read(fd: int) -> bytes:
    """All of a request. HardspliceError where it can't be read, or is too long."""
    data = bytearray()
    try:
        while chunk := os.read(fd, 1 << 16):
            data += chunk
            if len(data) > SIZE_MAX:
                raise _wrong(f"it has more than {SIZE_MAX} bytes")
    except OSError as error:
        raise HardspliceError("read", "the request", reason_of(error)) from error
    return bytes(data)


def parse(text: bytes) -> Request:
    """A request as Podman writes it. HardspliceError where it is none."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong("it is not JSON") from None
    if not isinstance(given, dict):
        raise _wrong("it is not a JSON object")
    target = _child(_text(given, "ChildIP"))
    forwards = tuple(mapping.numbered(_forwards(given.get("Mappings"), target)))
    netns = _text(given, "NetNSPath")
    if not netns:
        raise _wrong("NetNSPath is missing")
    return Request(
        forwards,
        os.path.abspath(netns),
        target,
        _folder(given),
        _fd(given, "ReadyFD"),
        _fd(given, "ExitFD"),
        _socket(given),
        _text(given, "ContainerID"),
    )


def _child(text: str) -> Address:
    return mapping.address(text, "ChildIP") if text else IPv4Address("127.0.0.1")


def _forwards(mappings: Any, target: Address) -> Iterator[Forward]:
    if mappings is None:
        return
    if not isinstance(mappings, list) or not all(isinstance(one, dict) for one in mappings):
        raise _wrong("Mappings is not a list of objects")
    for one in mappings:
        listen = _listen(_text(one, "host_ip"))
        count = one.get("range", 1)
        if not isinstance(count, int) or not 0 <= count <= LAST_PORT:
            raise _wrong("range is not a number of ports")
        for word in (_text(one, "protocol") or "tcp").split(","):
            protocol = mapping.protocol(word.strip().lower())
            for at in range(count):
                host_port = mapping.port(_sum(one.get("host_port"), at), "host_port")
                child_port = mapping.port(_sum(one.get("container_port"), at), "container_port")
                yield mapping.inbound(protocol, listen, host_port, target, child_port)


def _listen(host: str) -> Address | None:
    """Where to listen. The unspecified address of either family is every address of both, as it is
    to the program that Podman has.
    """
    listen = mapping.address(host, "host_ip") if host else None
    return None if listen is None or listen.is_unspecified else listen


def _sum(first: Any, at: int) -> Any:
    return first + at if isinstance(first, int) and not isinstance(first, bool) else first


def _socket(given: dict[str, Any]) -> str | None:
    """TmpDir/rp/ContainerID, where the address may change."""
    if given.get("RootlessCNI") is not True:
        return None
    folder, name = _folder(given), _text(given, "ContainerID")
    if folder is None or not name.isalnum():
        raise _wrong("TmpDir and ContainerID name no socket")
    return os.path.join(folder, "rp", name)


def _folder(given: dict[str, Any]) -> str | None:
    folder = _text(given, "TmpDir")
    if folder and not folder.startswith("/"):
        raise _wrong("TmpDir is not the path of a folder")
    return folder or None


def _text(given: dict[str, Any], key: str) -> str:
    value = given.get(key, "")
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise _wrong(f"{key} is not a text")
    return value


def _fd(given: dict[str, Any], key: str) -> int:
    value = given.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 3:
        raise _wrong(f"{key} is not a descriptor's number from 3 on")
    try:
        os.fstat(value)
    except (OSError, OverflowError):
        raise _wrong(f"{key} is {value}, which is not open") from None
    return value


def _wrong(reason: str) -> HardspliceError:
    return HardspliceError("use", "the request", reason)
