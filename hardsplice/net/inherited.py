# SPDX-License-Identifier: GPL-2.0-or-later
"""Listeners that the service manager passes to us: by socket activation, or back from its store.

Those of a socket unit are used by -t inherit. Those that it kept while we were restarted come back
under names that say which forward they belong to; if that forward is still requested, the listener
is used instead of binding a new one, so that a client that connected meanwhile waits in its backlog
and isn't refused.

Every passed descriptor is checked: it has to be a TCP socket that listens, or a UDP socket that is
bound and has no peer, in the expected namespace.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv6Address, ip_address

from hardsplice.ipc import descriptors
from hardsplice.ipc.sd_notify import Notifier
from hardsplice.kernel import socketcalls
from hardsplice.model import spec
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError, quote, reason_of
from hardsplice.model.families import FAMILIES
from hardsplice.model.forward import Forward, Origin, Source
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import Address, Inherited
from hardsplice.net.listeners import Bound, bound_address, is_listener, make_sound, namespace_here

STORED = "hardsplice/"  # what the names of listeners begin with that we had kept
_ADDED = f"{STORED}added/"  # ... of ports that were added at run time
_ADDED_NAME = (
    rf"{_ADDED}({'|'.join(Direction)})/(?:({'|'.join(Protocol)})/)?"
    r"(\*|[0-9a-f._]+)(?:%([A-Za-z0-9.=-]+))?/([0-9]{1,5})/(\*|[0-9a-f._]+)/([0-9]{1,5})"
)
_NAME_SIZE = 16  # IFNAMSIZ


def stored_name(forward: Forward) -> str:
    """The name under which a listener is kept: printable ASCII without a colon, and another one for
    each listener (FDNAME in sd_pid_notify_with_fds(3)).
    """
    return f"{STORED}{_key(forward)}"


def added_name(forward: Forward) -> str:
    """The same for one that no option asks for: it also says where connections go."""
    target = "*" if forward.target is None else str(forward.target).replace(":", "_")
    return f"{_ADDED}{_key(forward._replace(origin=Origin.NAMED))}/{target}/{forward.target_port}"


def _key_of(name: str) -> str:
    """What a name under which a listener is kept says of where it listens. Before hardsplice knew
    of protocols names said nothing of them, and were TCP's.
    """
    key = name.removeprefix(STORED)
    if name.startswith(_ADDED):
        key = name.removeprefix(_ADDED).rsplit("/", 2)[0]
    direction, _, rest = key.partition("/")
    known = rest.partition("/")[0] in [*Protocol]
    return key if known else f"{direction}/{Protocol.TCP}/{rest}"


def _key(forward: Forward) -> str:
    address = "*" if forward.address is None else str(forward.address).replace(":", "_")
    plain = "".join(
        char if char.isascii() and (char.isalnum() or char in "-.") else f"={ord(char):x}="
        for char in forward.interface or ""
    )
    interface = f"%{plain}" if plain else ""
    port = f"0={_leads_to(forward)}" if forward.origin is Origin.FREE else f"{forward.port}"
    return f"{forward.direction}/{forward.protocol}/{address}{interface}/{port}"


def _leads_to(forward: Forward) -> str:
    """What tells one listener at a free port from another."""
    target = "" if forward.target is None else f"{forward.target}".replace(":", "_") + "/"
    return f"{target}{forward.target_port}"


def read_added(name: str, versions: Sequence[int]) -> Forward | None:
    """What ``added_name`` gave a name to; None for any other name, and for what can't be had with
    the versions of IP in use.
    """
    match = re.fullmatch(_ADDED_NAME, name)
    if match is None:
        return None
    from hardsplice.model.ports import single

    direction, protocol, address, interface, port, target, target_port = match.groups()
    listening = "" if address == "*" else address.replace("_", ":")
    try:
        if interface:
            plain = re.sub(r"=([0-9a-f]+)=", lambda coded: chr(int(coded[1], 16)), interface)
            listening += f"%{plain}"
        forward = single(
            Direction(direction),
            spec.read_listen(listening) if listening else spec.ANYWHERE,
            int(port),
            None if target == "*" else spec.read_target(target.replace("_", ":"), name),
            int(target_port),
            Source.CONTROL,
            versions=versions,
            in_use=versions,
            protocol=Protocol(protocol or Protocol.TCP),
        )
    except (spec.SpecError, ValueError, OverflowError):
        return None
    if not (1 <= forward.port <= spec.LAST_PORT and 1 <= forward.target_port <= spec.LAST_PORT):
        return None
    return forward._replace(required=False)


Identity = tuple[int, int]
"""What tells a socket from any other one."""


class Passed:
    """Descriptors that were passed, each by its name, until they are taken."""

    def __init__(self, passed: Iterable[tuple[str, int]], first: int) -> None:
        """Take them out of the way of the numbers below ``first``, and of COMMAND."""
        self._left: list[tuple[str, int]] = []  # those of socket units
        self._kept: dict[str, list[tuple[str, int]]] = {}  # ours, by what they listen on
        for name, fd in passed:
            moved = descriptors.above(fd, first, f"listener {quote(name)}")
            os.close(fd)
            ours = name.startswith(STORED)
            into = self._kept.setdefault(_key_of(name), []) if ours else self._left
            into.append((name, moved))
        # Those that are taken get another number.
        self._stored = [(name, identity(fd)) for name, fd in self._all_kept()]

    def _all_kept(self) -> Iterator[tuple[str, int]]:
        return itertools.chain.from_iterable(self._kept.values())

    def inherit(self, asked: Sequence[Inherited], first: int) -> list[Bound]:
        """What -t inherit asks for: those with names first, then the one that takes all others,
        numbered from ``first`` on. HardspliceError where there is none.
        """
        taken: list[Bound] = []
        for one in sorted(asked, key=lambda one: not one.names):
            for name in one.names or (None,):
                found = [item for item in self._left if _is_asked_for(item, name, one.protocol)]
                if not found:
                    raise self._none_passed(name)
                for item in found:
                    self._left.remove(item)
                    forward = forward_of(*item, one)
                    taken.append(Bound(forward._replace(id=first + len(taken)), item[1]))
        return taken

    def _none_passed(self, name: str | None) -> HardspliceError:
        names = ", ".join(quote(name) for name, _ in self._left)
        hint = f"these are left to take: {names}" if names else "start it by a socket unit"
        what = "a listener" if name is None else f"listener {quote(name)}"
        return HardspliceError("take", what, "the service manager passed none", hint)

    def take(self, forward: Forward, families: Sequence[int]) -> int | None:
        """The listener of a forward as it was kept, if it is there and is what it should be."""
        kept = self._kept.get(_key(forward), [])
        while kept:
            _, fd = kept.pop()
            if _is(fd, forward, families):
                _restore(fd)
                return fd
            _end(fd)  # it may be in the way of the one that will be opened
        return None

    def end_others(self, wanted: Iterable[Forward]) -> None:
        """End those that were kept and are no longer requested: they would be in the way of others
        with the same port.
        """
        for key in self._kept.keys() - {_key(one) for one in wanted}:
            for _, fd in self._kept.pop(key):
                _end(fd)

    def added(self, versions: Sequence[int]) -> list[Forward]:
        """What was added at run time, of those that nobody has taken; ``versions`` are the versions
        of IP in use.
        """
        found = (read_added(name, versions) for name, _ in self._all_kept())
        return [one for one in found if one is not None]

    def unclaimed(self) -> list[str]:
        """The names of those of socket units that were not taken."""
        return [name for name, _ in self._left]

    def kept_for(self, direction: Direction) -> list[int]:
        """The descriptors that ``take`` may still find for a direction."""
        kept = (found for key, found in self._kept.items() if key.startswith(f"{direction}/"))
        return [fd for _, fd in itertools.chain.from_iterable(kept)]

    def hand_over(
        self, notifier: Notifier, current: Sequence[tuple[str, int]], room: int
    ) -> tuple[int, int]:
        """Have the service manager keep the listeners that there are now, as far as it has room,
        and no other ones; how many it has no room for, and how many could not be sent since too
        many descriptors of this user are under way.
        """
        drop, keep = to_drop_and_keep(self._stored, current[:room])
        for name in drop:
            notifier.drop(name)
        unsent = sum(not notifier.keep(name, fd) for name, fd in keep)
        return max(0, len(current) - room), unsent


def _is_asked_for(item: tuple[str, int], name: str | None, protocol: Protocol) -> bool:
    """Whether a SPEC takes this one: by its name, or all that are of its protocol."""
    if name is not None:
        return item[0] == name
    number = socketcalls.option(item[1], socket.SOL_SOCKET, socket.SO_PROTOCOL)
    others = {one.number for one in Protocol} - {protocol.number}
    return number not in others  # what is none of ours is refused later, with the reason


def _end(fd: int) -> None:
    """End a listener, the service manager's copy included."""
    with contextlib.suppress(OSError), socket.socket(fileno=fd) as one:
        one.shutdown(socket.SHUT_RDWR)
        return
    with contextlib.suppress(OSError):  # it was no socket
        os.close(fd)


def _restore(fd: int) -> None:
    """A previous holder of the listener may have changed its options, which accepted sockets
    inherit: set them again.
    """
    listener = socket.socket(fileno=fd)
    try:
        make_sound(listener)
    finally:
        listener.detach()


def to_drop_and_keep(
    stored: Sequence[tuple[str, Identity]], current: Sequence[tuple[str, int]]
) -> tuple[list[str], list[tuple[str, int]]]:
    """What the service manager should no longer keep, and what it should keep from now on."""
    used = {(name, identity(fd)) for name, fd in current}
    kept = {*stored}
    drop = [item[0] for item in stored if item not in used]
    return drop, [(name, fd) for name, fd in current if (name, identity(fd)) not in kept]


def identity(fd: int) -> Identity:
    """The same for two descriptors of one socket, while there is any."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def forward_of(name: str, fd: int, asked: Inherited) -> Forward:
    """A listener that was passed, as a forward; HardspliceError when it can't be one."""
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise _refusal(name, f"it is no socket: {reason_of(error)}") from None
    try:
        _check(name, listener, asked.protocol)
        make_sound(listener)
        host, port = listener.getsockname()[:2]
        return Forward(
            direction=Direction.INBOUND,
            address=_address(listener, host.partition("%")[0]),
            interface=_interface(listener) or None,
            port=port,
            target=asked.target,
            target_port=asked.port,
            required=True,
            protocol=asked.protocol,
            origin=Origin.PASSED,
        )
    finally:
        listener.detach()


def _check(name: str, listener: socket.socket, protocol: Protocol) -> None:
    # Neither MPTCP, say, whose connections Landlock does not confine.
    if listener.family not in FAMILIES or listener.proto != protocol.number:
        raise _refusal(name, f"it is no {protocol.upper()} socket")
    if protocol is Protocol.TCP:
        if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 1:
            raise _refusal(name, "it does not listen")
    elif not listener.getsockname()[1]:
        raise _refusal(name, "it is not bound")
    elif socketcalls.peer_address(listener.fileno()):
        raise _refusal(name, "it is connected")
    if not _is_here(listener):
        raise _refusal(name, "it belongs to another network namespace than the host's")


def _refusal(name: str, reason: str) -> HardspliceError:
    return HardspliceError("take", f"listener {quote(name)}", reason)


def _is(fd: int, forward: Forward, families: Sequence[int]) -> bool:
    """Whether a listener is the one that would be opened for ``forward``."""
    if not is_listener(fd, forward):
        return False
    listener = socket.socket(fileno=fd)
    try:
        address, dual = bound_address(forward, families)
        host = listener.getsockname()[0]
        return (
            _is_here(listener)
            and ip_address(host.partition("%")[0]) == address
            and (address.version == 4 or _is_dual(listener) == dual)
            and _interface(listener) == (forward.interface or "")
        )
    finally:
        listener.detach()


def _is_dual(listener: socket.socket) -> bool:
    return listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0


def _address(listener: socket.socket, host: str) -> Address | None:
    """Where it listens, as in a Forward: None is every address of both families."""
    address = ip_address(host)
    if isinstance(address, IPv6Address):
        if address.is_unspecified and _is_dual(listener):
            return None
        return address.ipv4_mapped or address
    return address


def _interface(listener: socket.socket) -> str:
    raw = listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _NAME_SIZE)
    return os.fsdecode(raw.partition(b"\0")[0])


def _is_here(listener: socket.socket) -> bool:
    """Whether a socket belongs to this process's network namespace. Before Linux 5.14 the service
    manager is trusted on that.
    """
    here = namespace_here()
    return here is None or here == socketcalls.namespace_cookie(listener.fileno())
