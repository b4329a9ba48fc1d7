# SPDX-License-Identifier: GPL-2.0-or-later
"""The roles of the permanent processes: the name, the parent, the policy, the steps of lock-down
and the purpose of each. Pure.

The messages between them are in ipc/messages.py.
"""

from __future__ import annotations

from collections.abc import Collection

from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction, GroupKey
from hardsplice.model.protocol import Protocol

UDP_POLICY = "-udp"  # what the name of a monitor's policy ends in where UDP may be forwarded


class Role(NamedTuple):
    """A process's purpose, and how it is confined."""

    name: str  # of the process, as prctl(2) sets it
    parent: str  # the name of the process that forks it, if one of these does
    may: str  # in a line, for people
    # The functions of sandbox/steps.py that give what it gives up, in their order; a relay has what
    # its monitor gave up, too.
    steps: tuple[str, ...]
    policy: str  # its file's name in policy/, without .toml
    policy_dynamic: str = ""  # the same where ports may change at run time, if that is another one
    policy_control: str = ""  # ... and where it serves a control socket
    # Whether each of these has one beside it for where UDP may be forwarded.
    has_udp_policies: bool = False
    group: GroupKey | None = None  # of a relay

    def changes_with(self, dynamic: Collection[GroupKey]) -> bool:
        """Whether it concerns this one that the ports of the ``dynamic`` groups may change at run
        time.
        """
        return self.group in dynamic if self.group else bool(dynamic)

    def may_have_udp(self, groups: Collection[GroupKey], dynamic: Collection[GroupKey]) -> bool:
        """Whether a monitor may have to do with UDP, where there may be relays of ``groups``: it
        forks such relays, or makes and checks listeners in a ``dynamic`` one of them.
        """
        return any(
            protocol is Protocol.UDP
            and (
                RELAYS[direction, protocol].parent == self.name or (direction, protocol) in dynamic
            )
            for direction, protocol in groups
        )

    def policy_for(
        self, *, is_dynamic: bool, has_control: bool = False, has_udp: bool = False
    ) -> str:
        """The policy that it runs under. ``has_udp`` is what ``may_have_udp`` says."""
        name = self.policy
        if has_control and self.policy_control:
            name = self.policy_control
        elif is_dynamic and self.policy_dynamic:
            name = self.policy_dynamic
        return f"{name}{UDP_POLICY}" if has_udp and self.has_udp_policies else name

    @property
    def policies(self) -> tuple[str, ...]:
        """All policies that it may run under."""
        names = tuple(filter(None, (self.policy, self.policy_dynamic, self.policy_control)))
        return (*names, *(f"{name}{UDP_POLICY}" for name in names if self.has_udp_policies))


HOST = Role(
    "hs-host",
    parent="",
    may="supervises the outbound relays; makes sockets here; writes the log",
    steps=("leaving_steps", "first_steps", "rights_steps", "filter_step"),
    policy="monitor-fixed",
    policy_dynamic="monitor-host",
    policy_control="monitor-control",
    has_udp_policies=True,
)
NAMESPACE = Role(
    "hs-namespace",
    parent=HOST.name,
    may="supervises the inbound relays; makes sockets in the namespace",
    # The second or the third, by the rights that it has (net/joining.py).
    steps=("first_steps", "leaving_steps", "separating_steps", "rights_steps", "filter_step"),
    policy="monitor",
    policy_dynamic="monitor-ports",
    has_udp_policies=True,
)
GUARD = Role(
    "hs-guard",
    parent=HOST.name,
    may="waits for hs-init to end; hs-init ends with it",
    steps=("init_steps", "filter_step"),
    policy="guard",
)
INIT = Role(
    "hs-init",
    parent=GUARD.name,
    may="reaps COMMAND's processes and passes signals on to it",
    steps=("init_steps", "filter_step"),
    policy="init",
)


def _relay(name: str, group: GroupKey, may: str, policy: str) -> Role:
    return Role(
        name,
        parent=(NAMESPACE if group[0] is Direction.INBOUND else HOST).name,
        may=may,
        # One of the latter: the second where ports may change.
        steps=("relay_steps", "filter_step", "notifying_filter_step"),
        policy=policy,
        policy_dynamic=f"{policy}-ports",
        group=group,
    )


def _stream_relay(name: str, direction: Direction) -> Role:
    may = "accepts on its listeners, connects to the targets, moves bytes"
    return _relay(name, (direction, Protocol.TCP), may, "relay")


def _datagram_relay(name: str, direction: Direction) -> Role:
    may = "receives datagrams, sends them to the targets and answers to clients, sees payload"
    return _relay(name, (direction, Protocol.UDP), may, "relay-udp")


INBOUND_RELAY = _stream_relay("hs-relay-in", Direction.INBOUND)
OUTBOUND_RELAY = _stream_relay("hs-relay-out", Direction.OUTBOUND)
_RELAYS = (
    INBOUND_RELAY,
    OUTBOUND_RELAY,
    _datagram_relay("hs-udp-in", Direction.INBOUND),
    _datagram_relay("hs-udp-out", Direction.OUTBOUND),
)
RELAYS = {role.group: role for role in _RELAYS if role.group}

_ALL = (*RELAYS.values(), NAMESPACE, HOST, INIT, GUARD)
ROLES = {role.name: role for role in _ALL}
POLICIES = tuple(dict.fromkeys(policy for role in ROLES.values() for policy in role.policies))
