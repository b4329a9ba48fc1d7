# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose each policy is, by the product's table of roles: what a policy promises depends on that."""

from __future__ import annotations

from hardsplice.model.roles import HOST, NAMESPACE, ROLES, UDP_POLICY


def _policies_of(prefix: str) -> tuple[str, ...]:
    """All policies of the processes whose names begin like this."""
    found = (role.policies for role in ROLES.values() if role.name.startswith(prefix))
    return tuple(dict.fromkeys(policy for policies in found for policy in policies))


RELAYS = _policies_of("hs-relay-")  # of TCP
DATAGRAM_RELAYS = _policies_of("hs-udp-")
HOSTS = HOST.policies
MONITORS = (*NAMESPACE.policies, *HOSTS)
# Under which monitors live where UDP may be forwarded.
DATAGRAM_MONITORS = tuple(policy for policy in MONITORS if policy.endswith(UDP_POLICY))
# Under which processes live where ports may change at run time, and under no other condition.
CHANGING = tuple(
    dict.fromkeys(
        policy
        for role in ROLES.values()
        for policy in role.policies
        if policy not in (role.policy, f"{role.policy}{UDP_POLICY}")
    )
)
