# SPDX-License-Identifier: GPL-2.0-or-later
"""Other programs' spellings of options and ports: what a user of Docker's -p, ssh's -L or pasta's
options has probably meant. Only words that have been refused come here, so this can't change the
meaning of a valid one.
"""

from __future__ import annotations

import re

from hardsplice.model.direction import Direction
from hardsplice.model.protocol import Protocol

__all__ = ["is_publish", "meant", "of_another_protocol", "protocols", "why_not"]

NEITHER = "hardsplice forwards TCP and UDP alone; leave out what is neither"

_PROTOCOL = r"(?i)(.+)/(tcp|udp|sctp)"
_PORTS = r"[0-9]+(?:-[0-9]+)?"
_HOST = r"\[[^][]+\]|[^][/:,]+"
# [ADDRESS:]PORT:[[ADDRESS]:]PORT, as with docker -p and ssh -L; a name or an asterisk as address.
_PAIR = (
    rf"(?:(?P<listen>{_HOST})?:)??(?P<ports>{_PORTS})?:(?:(?P<target>{_HOST}):)?(?P<onto>{_PORTS})"
)
_END = rf"(?P<listen>{_HOST})?:(?P<ports>{_PORTS})"
_PORT_FIRST = r"[0-9:*\[]|localhost:"
_PUBLISH = ("-p", "--publish", "--port", "--ports")
# pasta's, each with the reason why it isn't here.
_NOT_HERE = {
    **dict.fromkeys(("-e", "--stderr"), "in the foreground messages go to standard error anyway"),
    "--no-splice": "TCP is forwarded by splice(2) alone",
    "--no-tcp": "TCP is forwarded where -t or -T asks for it, and nowhere else",
    "--no-udp": "UDP is forwarded where -u or -U asks for it, and nowhere else",
}
_NO_TAP = "it is about pasta's tap interface, and there is none here"
# pasta's, which are about its tap interface.
_TAP = frozenset(
    {
        "-a", "--address", "-C", "--config-net", "-D", "--dns", "-g", "--gateway", "-i", "-I",
        "--interface", "-m", "--mtu", "-M", "--mac-addr", "-n", "--netmask", "-o", "--outbound",
        "-p", "--pcap", "-S", "--search", "--dhcp-dns", "--dhcp-search", "--dns-forward",
        "--dns-host", "--fqdn", "--hostname", "--map-gw",
        "--map-guest-addr", "--map-host-loopback", "--no-copy-addrs", "--no-copy-routes",
        "--no-dhcp", "--no-dhcp-dns", "--no-dhcp-search", "--no-dhcpv6", "--no-icmp",
        "--no-map-gw", "--no-ndp", "--no-ra",
        "--ns-ifname", "--ns-mac-addr", "--outbound-if4", "--outbound-if6",
    }
)  # fmt: skip


def protocols(text: str) -> set[str]:
    """The protocols that a word asks for, as Docker has it: by name, in lower case."""
    found = (re.fullmatch(_PROTOCOL, part) for part in text.split(","))
    return {one[2].lower() for one in found if one is not None}


def of_another_protocol(text: str, protocol: Protocol) -> str | None:
    """Why a word can't be the SPEC of an option for ``protocol``, where it names another one."""
    others = protocols(text) - {protocol}
    if not others:
        return None
    if others - {*Protocol}:
        return NEITHER
    (other,) = map(Protocol, others)
    options = " and ".join(one.option(other) for one in Direction)
    way = f"{other.upper()} ports are asked for by {options}"
    return f"{way}; leave out what is not {protocol.upper()}"


def meant(text: str) -> tuple[str, ...]:
    """SPECs that may say here what ``text`` says elsewhere: the likeliest first, and not each of
    them right.
    """
    bare = [re.sub(_PROTOCOL, r"\1", part) for part in text.split(",")]
    return tuple(one for one in (",".join(bare), _translated(bare)) if one and one != text)


def _translated(parts: list[str]) -> str | None:
    """The same ports in our grammar; None if there is no such spelling, or several addresses."""
    read = [_entry(part) for part in parts]
    listening = {one[0] for one in read if one is not None}
    if None in read or len(listening) != 1:
        return None
    (listen,) = listening
    return (f"{listen}/" if listen else "") + ",".join(one[1] for one in read if one is not None)


def _entry(text: str) -> tuple[str, str] | None:
    """The listening address and the entry that a word of another program's comes to."""
    if re.fullmatch(_PORTS, text):
        return "", text
    found = re.fullmatch(_PAIR, text)
    if found is not None and (found["ports"] or found["listen"]):
        # Without a port of the host's Docker chooses one.
        target = f"{_address(found['target'])}/" if found["target"] else ""
        entry = f"{found['ports'] or '0'}:{target}{found['onto']}"
        return _address(found["listen"] or ""), entry
    found = re.fullmatch(_END, text)
    if found is not None:
        return _address(found["listen"] or ""), found["ports"]
    return None


def _address(text: str) -> str:
    """An address as a SPEC has it."""
    if text == "*":
        return ""
    return "127.0.0.1" if text == "localhost" else text


def is_publish(name: str, value: str) -> bool:
    """Whether an option with this value is Docker's, for ports."""
    return name in _PUBLISH and (name != "-p" or not value or bool(re.match(_PORT_FIRST, value)))


def why_not(name: str) -> str | None:
    """Why an option of pasta's isn't here; None if pasta has none of that name."""
    return _NO_TAP if name in _TAP else _NOT_HERE.get(name)
