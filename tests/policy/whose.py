# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose each policy is, by the product's table of roles: what a policy promises depends on that."""

from __future__ import annotations

from hardsplice.model.roles import HOST, INBOUND_RELAY, NAMESPACE, OUTBOUND_RELAY, ROLES

RELAYS = tuple(dict.fromkeys((*INBOUND_RELAY.policies, *OUTBOUND_RELAY.policies)))
HOSTS = HOST.policies
MONITORS = (*NAMESPACE.policies, *HOSTS)
# Under which processes live where ports may change at run time, and under no other condition.
CHANGING = tuple(
    dict.fromkeys(
        policy
        for role in ROLES.values()
        for policy in (role.policy_dynamic, role.policy_control)
        if policy
    )
)
