# SPDX-License-Identifier: GPL-2.0-or-later
"""The grammar of a SPEC, the value of -t, -T, -u and -U: reads one of them by itself.

    spec    := "none" | [listen "/"] ports | listen "/"
    listen  := ADDR | ADDR "%" IFACE | "%" IFACE            (IPv6 may stand in brackets)
    ports   := entry { "," entry }
    entry   := range [ ":" target ] | "~" range | "all" [ ":" ADDR ] | "auto"
    range   := PORT | PORT "-" PORT                         (0: one that is free, with a target)
    target  := [ ADDR "/" ] range | ADDR                    (a mapped range has the same length)

or, for listeners that a service manager passes (IPv6 in brackets here):

    spec    := "inherit" { ":" NAME } ":" [ ADDR "/" ] PORT

The grammar has one ambiguity: in `2001:db8::1/80` the first number may be a port and the rest its
target. What stands before the first slash is the listening address whenever it can be one; an
IPv6 target with a port is written in brackets, as in `2001:[db8::1]/80`.

`auto` says of its whole SPEC that it holds while somebody listens on the target; without a range
it means all.

What several SPECs mean together, `none` included, is the business of `ports`. Pure: no I/O.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from hardsplice.kernel.record import NamedTuple
from hardsplice.model.errors import quote
from hardsplice.model.protocol import Protocol

__all__ = [
    "ALL",
    "ANYWHERE",
    "FREE",
    "LAST_PORT",
    "Address",
    "Entry",
    "Inherited",
    "Listen",
    "Spec",
    "SpecError",
    "in_our_words",
    "is_inherited",
    "is_interface_name",
    "read",
    "read_inherited",
    "read_listen",
    "read_target",
]

Address = IPv4Address | IPv6Address

LAST_PORT = 65535

_BROADCAST = IPv4Address("255.255.255.255")
_IFACE_LIMIT = 15  # IFNAMSIZ is 16 and counts the terminating NUL
# Patterns are compiled when they are used: most programs read no SPEC.
_IFACE = rf"[!-.0-9;-~]{{1,{_IFACE_LIMIT}}}"
_NUMBER = r"[0-9]{1,5}"
_RANGE = r"[0-9]+(-[0-9]+)?"
_MAPPING = r"(~?[0-9]+(-[0-9]+)?|all):"


class Listen(NamedTuple):
    """Where clients connect: an address (None: any, dual-stack), an interface (None: any)."""

    address: Address | None
    interface: str | None

    def __str__(self) -> str:
        if self.address is None:
            return "every address" if self.interface is None else f"%{self.interface}"
        return str(self.address) + (f"%{self.interface}" if self.interface is not None else "")


class Entry(NamedTuple):
    """Ports by number, or all (`ports` is None), and what their targets' numbers differ by."""

    ports: range | None
    target: Address | None
    shift: int


class Spec(NamedTuple):
    """One SPEC: without entries it only excludes."""

    listen: Listen
    entries: tuple[Entry, ...]
    excluded: tuple[range, ...]
    auto: bool = False  # only while somebody listens on the target


class Inherited(NamedTuple):
    """A SPEC of its own kind: listeners that the service manager passes."""

    names: tuple[str, ...]  # none: all of the protocol that no other SPEC names
    target: Address | None
    port: int
    protocol: Protocol = Protocol.TCP


class SpecError(Exception):
    """Why a piece of a SPEC is refused; whoever reads it knows which option it belongs to."""


ANYWHERE = Listen(None, None)  # no listening address is given
FREE = range(1)  # the ports of an entry that asks for one that is free
ALL = Entry(None, None, 0)  # every port to its own number


def read(text: str, protocol: Protocol = Protocol.TCP) -> Spec:
    """The meaning of one SPEC other than `none`, of an option for a protocol. Raises SpecError."""
    try:
        return _read(text)
    except SpecError as refusal:
        from hardsplice.model import foreign

        if reason := foreign.of_another_protocol(text, protocol):
            raise SpecError(reason) from None
        better = in_our_words(text, protocol)
        if better is None:
            raise refusal from None
        raise SpecError(f"that is how others spell it; write {better}") from None


def in_our_words(text: str, protocol: Protocol = Protocol.TCP) -> str | None:
    """The SPEC that says what ``text`` says here, or to other programs; None where it says nothing
    to anybody, or is not about that protocol.
    """
    from hardsplice.model import foreign  # few read what others spell in their own way

    if foreign.of_another_protocol(text, protocol):
        return None
    for one in (text, *foreign.meant(text)):
        with contextlib.suppress(SpecError):
            _read(one)
            return one
    return None


def _read(text: str) -> Spec:
    if not text:
        raise SpecError("it is empty; write the ports, or none")
    if any(char.isspace() for char in text):
        raise SpecError("there is a space in it; write ports separated by commas alone")
    head, ports = _split(text)
    listen = ANYWHERE if head is None else read_listen(head)
    if head is not None and not ports:
        return Spec(listen, (ALL,), ())
    entries = []
    excluded = []
    auto = False
    for part in ports.split(","):
        if part == "auto":
            auto = True
        elif part.startswith("~"):
            excluded.append(_read_exclusion(part))
        else:
            entries.append(_read_entry(part))
    if auto:
        _check_targets(entries)
        if any(entry.ports == FREE for entry in entries):
            raise SpecError(
                "0 is a port that is free, and auto waits for one; leave out one of them"
            )
        return Spec(listen, tuple(entries) or (ALL,), tuple(excluded), auto=True)
    return Spec(listen, tuple(entries), tuple(excluded))


def is_inherited(text: str) -> bool:
    """Whether a SPEC is one for `read_inherited`."""
    return text.partition(":")[0] == "inherit"


def read_inherited(text: str, protocol: Protocol = Protocol.TCP) -> Inherited:
    """The meaning of a SPEC that begins with `inherit`, of an option for that protocol. Raises
    SpecError.
    """
    if any(char.isspace() for char in text):
        raise SpecError("there is a space in it; write inherit:NAME:PORT")
    head, slash, numbers = text.rpartition("/")
    if slash and head.endswith("]"):
        names, bracket, host = head.rpartition("[")
        names, host = names.removesuffix(":"), bracket + host
    elif slash:
        names, _, host = head.rpartition(":")
    else:
        names, _, numbers = text.rpartition(":")
        host = None
    first, *given = names.split(":")
    if first != "inherit":
        raise SpecError("it has no target; write inherit:PORT or inherit:NAME:PORT")
    if not all(given):
        raise SpecError("there is an empty name; write inherit:NAME:PORT, or inherit:PORT for all")
    target = None if host is None else read_target(host, text)
    return Inherited(tuple(given), target, _read_port(numbers, numbers), protocol)


def _check_targets(entries: Iterable[Entry]) -> None:
    """Only of the other namespace is it known what is listened on."""
    for entry in entries:
        if entry.target is not None:
            reason = f"'{entry.target}' is a target that auto can't watch"
            raise SpecError(f"{reason}; leave out the address, or auto")


def _split(text: str) -> tuple[str | None, str]:
    """The listening address (None: none given) and the ports."""
    head, slash, ports = text.partition("/")
    if not slash:
        return None, text
    if re.match(_MAPPING, head.rpartition(",")[2]):
        try:
            read_listen(head)
        except SpecError:
            return None, text  # the slash is that of a target
    return head, ports


def read_listen(text: str) -> Listen:
    """What stands before the slash of a SPEC. Raises SpecError."""
    if not text:
        raise SpecError("nothing stands before '/'; write an address or %INTERFACE there")
    if text.startswith("[") and "%" in text and text.endswith("]"):
        better = text[:-1].replace("%", "]%", 1)
        raise SpecError(f"the interface goes outside the brackets; write {better}")
    host, percent, name = text.partition("%")
    interface = _read_interface(name) if percent else None
    if not host:
        return Listen(None, interface)
    address = _read_address(host)
    if address == _BROADCAST:
        raise SpecError(f"{quote(host)} is the broadcast address, which is not forwarded")
    if address.version == 6 and address.is_link_local and interface is None:
        raise SpecError(
            f"{quote(host)} is link-local and needs its interface; write {host}%INTERFACE"
        )
    return Listen(address, interface)


def is_interface_name(name: str) -> bool:
    """Whether this is the name of a network interface: what the kernel takes (dev_valid_name,
    net/core/dev.c), and in ASCII. Other bytes, which it takes too, are a name in one locale and
    none in another.
    """
    return re.fullmatch(_IFACE, name) is not None and name not in (".", "..")


def _read_interface(name: str) -> str:
    if not is_interface_name(name):
        raise SpecError(
            f"{quote(name)} is not an interface's name: that has 1 to {_IFACE_LIMIT} printable "
            "ASCII characters, none of them '/', ':' or a space"
        )
    return name


def _read_address(text: str) -> Address:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ip_address(bare)
    except ValueError:
        raise SpecError(
            f"{quote(text)} is not an IP address; write one in numbers (names are not looked up)"
        ) from None
    if isinstance(address, IPv4Address):
        if bare is not text:
            raise SpecError(f"{quote(text)} is IPv4, which has no brackets; write {bare}")
    elif address.scope_id is not None:
        raise SpecError(
            f"{quote(text)} names an interface, which only a listener has; leave it out"
        )
    elif address.ipv4_mapped is not None:
        raise SpecError(
            f"{quote(text)} is an IPv4 address in IPv6 clothes; write {address.ipv4_mapped}"
        )
    if address.is_multicast:
        raise SpecError(f"{quote(text)} is a multicast address, which is not forwarded")
    return address


def _read_entry(text: str) -> Entry:
    if not text:
        raise SpecError("there is an empty entry; write one port or range between commas")
    if text == "none":
        raise SpecError("'none' stands alone; leave out the rest, or none")
    left, colon, right = text.partition(":")
    if left == "all":
        return _read_all(text, right) if colon else ALL
    if "/" in text and not re.fullmatch(_RANGE, left):
        raise SpecError(
            f"{quote(text)} gives an address again: one SPEC has one; repeat the option for another"
        )
    if left == "0" and (not colon or not re.fullmatch(_RANGE, right.rpartition("/")[2])):
        better = f"0:{right}/PORT" if colon and right else "0:PORT"
        raise SpecError(
            f"0 is any port that is free, and where it leads is not said; write {better}"
        )
    ports = FREE if left == "0" else _read_range(left)
    if not colon:
        return Entry(ports, None, 0)
    host, slash, numbers = right.rpartition("/")
    if not slash and not re.fullmatch(_RANGE, right):
        return Entry(ports, read_target(right, text), 0)
    target = read_target(host, text) if slash else None
    onto = _read_range(numbers)
    if len(onto) != len(ports):
        raise SpecError(_unequal(text, left, ports, onto, f"{host}/" if slash else ""))
    return Entry(ports, target, onto.start - ports.start)


def _unequal(text: str, left: str, ports: range, onto: range, host: str) -> str:
    count = f"{quote(text)} maps {len(ports)} port(s) to {len(onto)}"
    last = onto.start + len(ports) - 1
    if last > LAST_PORT:
        return f"{count}; write a target of {len(ports)} ports"
    onto_text = f"{onto.start}" if len(ports) == 1 else f"{onto.start}-{last}"
    return f"{count}; write {left}:{host}{onto_text}"


def _read_all(text: str, target: str) -> Entry:
    if re.fullmatch(_RANGE, target) or "/" in target:
        raise SpecError(f"{quote(text)}: 'all' keeps each port's number; write all:ADDRESS or all")
    return Entry(None, read_target(target, text), 0)


def read_target(text: str, entry: str) -> Address:
    """An address to connect to, which is part of ``entry``. Raises SpecError."""
    if not text:
        raise SpecError(f"{quote(entry)} has no target; write a port or an address after ':'")
    address = _read_address(text)
    if address.is_unspecified or address == _BROADCAST:
        raise SpecError(f"{quote(text)} is not an address to connect to; write a host's address")
    if address.version == 6 and address.is_link_local:
        raise SpecError(f"{quote(text)} is link-local; give the target an address of wider scope")
    return address


def _read_exclusion(text: str) -> range:
    numbers, colon, _ = text[1:].partition(":")
    if colon:
        raise SpecError(f"{quote(text)}: what is excluded has no target; write ~{numbers}")
    return _read_range(numbers)


def _read_range(text: str) -> range:
    first_text, dash, last_text = text.partition("-")
    first = _read_port(first_text, text)
    if not dash:
        return range(first, first + 1)
    last = _read_port(last_text, text)
    if last < first:
        raise SpecError(f"{quote(text)} runs backwards; write {last}-{first}")
    return range(first, last + 1)


def _read_port(text: str, within: str) -> int:
    if text == "0" and "-" in within:
        raise SpecError(f"{quote(within)} can't have a port 0, which stands for one that is free")
    if re.fullmatch(_NUMBER, text) and 1 <= int(text) <= LAST_PORT:
        return int(text)
    where = "" if text == within else f" in {quote(within)}"
    raise SpecError(f"{quote(text)}{where} is not a port; write a number from 1 to {LAST_PORT}")
