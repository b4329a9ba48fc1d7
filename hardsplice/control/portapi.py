# SPDX-License-Identifier: GPL-2.0-or-later
"""RootlessKit's port API, so that its clients (rootlessctl, container engines) work unchanged.

Its terms: the *parent* is the host, the *child* is the namespace. An inbound port listens on the
parent's side and leads to the child's; an outbound port, which RootlessKit doesn't have, the other
way round. Outbound ports have a "direction", and are listed only on request.

A client in the namespace that is served (--control-from-namespace), such as rootless Docker, may
only add inbound ports: an outbound one would lead to the host. And it sees, and may remove, only
ports that were added from that namespace.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from hardsplice.control.fields import Field, build
from hardsplice.control.world import Call, Snapshot
from hardsplice.kernel.hints import Any
from hardsplice.model import ports, spec
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward, Source
from hardsplice.model.protocol import Protocol

API_VERSION = "1.1.0"  # of RootlessKit's, that this follows
# How a protocol is asked for, by which versions of IP.
PROTOCOLS = {
    "tcp": (Protocol.TCP, (4, 6)),
    "tcp4": (Protocol.TCP, (4,)),
    "tcp6": (Protocol.TCP, (6,)),
    "udp": (Protocol.UDP, (4, 6)),
    "udp4": (Protocol.UDP, (4,)),
    "udp6": (Protocol.UDP, (6,)),
}
_ID_DIGITS = 9


class _WrongError(Exception):
    """What is wrong with a request."""


INFO: tuple[Field[Snapshot], ...] = (
    Field(
        "apiVersion", "The version of RootlessKit's API that this follows.", lambda _: API_VERSION
    ),
    Field("version", "The version of hardsplice.", lambda now: now.version),
    Field("stateDir", "Empty.", lambda _: ""),
    Field("childPID", "The process that is served, or 0.", lambda now: now.served_pid or 0),
    Field("networkDriver", "Its driver is none.", lambda _: {"driver": "none"}),
    Field(
        "portDriver",
        "Its driver is hardsplice; protos are the protocols.",
        lambda _: {"driver": "hardsplice", "protos": list(PROTOCOLS)},
    ),
)
End = tuple[str, int]  # an address, empty where it is any, and a port
SPEC: tuple[Field[tuple[str, End, End]], ...] = (
    Field("proto", f"{', '.join(PROTOCOLS)}.", lambda of: of[0]),
    Field(
        "parentIP",
        "The address on the host; left out if it is any.",
        lambda of: of[1][0] or None,
    ),
    Field("parentPort", "The port on the host.", lambda of: of[1][1]),
    Field("childIP", "The address in the namespace; likewise.", lambda of: of[2][0] or None),
    Field("childPort", "The port in the namespace.", lambda of: of[2][1]),
)
PORT: tuple[Field[tuple[Forward, str]], ...] = (
    Field("id", "Its number.", lambda of: of[0].id),
    Field(
        "spec",
        "The port as it was requested; see below.",
        lambda of: describe(of[0], of[1]),
    ),
    Field(
        "direction",
        "inbound (the parent listens) or outbound (the child listens).",
        lambda of: of[0].direction,
    ),
    Field(
        "source",
        f"Who added it: {', '.join(one.value for one in Source)}.",
        lambda of: of[0].source.value,
    ),
)
_KEYS = frozenset({*(field.name for field in SPEC), "direction"})


def info(call: Call) -> None:
    """Who serves, in RootlessKit's form."""
    call.answer(build(INFO, call.world.snapshot()))


def list_ports(call: Call) -> None:
    """The ports of one direction, or of both."""
    wanted = call.query.get("direction", Direction.INBOUND)
    present = call.world.ports.list()
    spelled = call.world.spelled
    for gone in spelled.keys() - {port.id for port in present}:
        del spelled[gone]
    shown = [
        show(port, spelled.get(port.id, port.protocol))
        for port in present
        if wanted in ("all", port.direction)
        and (port.source is Source.NAMESPACE or not call.request.inside)
    ]
    call.answer(shown)


def add_port(call: Call) -> None:
    """Add the port that the body describes."""
    try:
        source = Source.NAMESPACE if call.request.inside else Source.CONTROL
        spelled, forward = read_spec(call.request.body, source, call.world.versions)
    except (_WrongError, spec.SpecError) as error:
        call.refuse(400, f"cannot add a port: {error}")
        return

    if call.request.inside and forward.direction is not Direction.INBOUND:
        call.refuse(
            403, "cannot add a port: an outbound one is not for the namespace itself to add"
        )
        return

    def done(result: Forward | HardspliceError) -> None:
        if isinstance(result, HardspliceError):
            call.refuse(400, str(result), result.hint)
            return
        if spelled != result.protocol:
            call.world.spelled[result.id] = spelled
        call.answer(show(result, spelled), 201)

    call.world.ports.add(forward, done)


def remove_port(call: Call) -> None:
    """Remove a port; its flows go on unless the query says otherwise."""
    text = call.argument
    if not (text.isascii() and text.isdigit() and len(text) <= _ID_DIGITS):
        call.refuse(400, "cannot remove a port: that is not the number of one")
        return
    number = int(text)
    found = call.world.ports.find(number)
    if call.request.inside and found is not None and found.source is not Source.NAMESPACE:
        call.refuse(403, f"cannot remove port {number}: it was not added from the namespace")
        return

    def done(failure: HardspliceError | None) -> None:
        if failure is not None:
            call.refuse(400, str(failure), failure.hint)
            return
        call.world.spelled.pop(number, None)
        call.answer_empty()

    call.world.ports.remove(number, reset_flows=call.query.get("flows") == "reset", done=done)


def show(port: Forward, spelled: str) -> dict[str, object]:
    """A port as it is shown."""
    return build(PORT, (port, spelled))


def describe(forward: Forward, spelled: str) -> dict[str, object]:
    """A forward in RootlessKit's words, which leave out an address where it is any; ``spelled`` is
    how its protocol was asked for.
    """
    listening = str(forward.address or "")
    if forward.interface is not None:
        listening += f"%{forward.interface}"
    ends = (listening, forward.port), (str(forward.target or ""), forward.target_port)
    parent, child = ends if forward.direction is Direction.INBOUND else ends[::-1]
    return build(SPEC, (spelled, parent, child))


def read_spec(body: bytes, source: Source, versions: Sequence[int]) -> tuple[str, Forward]:
    """The protocol as it is spelled, and the port that a body describes."""
    try:
        given = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _WrongError("the body is not JSON") from None
    if not isinstance(given, dict):
        raise _WrongError("the body is not an object")
    for key in given.keys() - _KEYS:
        raise _WrongError(f"there is no key {key[:40]!r}")
    spelled = given.get("proto")
    if not isinstance(spelled, str) or spelled not in PROTOCOLS:
        raise _WrongError(f"proto is one of {', '.join(PROTOCOLS)}")
    wanted = given.get("direction", Direction.INBOUND)
    if wanted not in [*Direction]:
        raise _WrongError(f"direction is {' or '.join(Direction)}")
    direction = Direction(wanted)
    # Where clients connect, 0 is any port that is free.
    first = (0, 1) if direction is Direction.INBOUND else (1, 0)
    parent = _text(given, "parentIP"), _port(given, "parentPort", first[0])
    child = _text(given, "childIP"), _port(given, "childPort", first[1])
    (listening, port), (target, target_port) = (
        (parent, child) if direction is Direction.INBOUND else (child, parent)
    )
    protocol, allowed = PROTOCOLS[spelled]
    wanted = [version for version in allowed if version in versions]
    if not wanted:
        raise _WrongError(f"{spelled} is ruled out by -{versions[0]}")
    forward = ports.single(
        direction,
        spec.read_listen(listening) if listening else spec.ANYWHERE,
        port,
        spec.read_target(target, target) if target else None,
        target_port,
        source,
        versions=wanted,
        in_use=versions,
        protocol=protocol,
    )
    return spelled, forward


def _text(given: dict[str, Any], key: str) -> str:
    value = given.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _WrongError(f"{key} is not a text")
    return value


def _port(given: dict[str, Any], key: str, least: int) -> int:
    value = given.get(key)
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or not least <= value <= spec.LAST_PORT
    ):
        raise _WrongError(f"{key} is not a port's number, which is {least} to {spec.LAST_PORT}")
    return value
