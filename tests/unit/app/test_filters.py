# SPDX-License-Identifier: GPL-2.0-or-later
"""Which policy each process gets, by the options."""

from __future__ import annotations

import pytest

from hardsplice.app.command_line import parse_args
from hardsplice.app.filters import policies_of
from hardsplice.model.roles import HOST, NAMESPACE, UDP_POLICY


def policies(*arguments: str) -> dict[str, str]:
    options = parse_args([*arguments, "7"], ephemeral=lambda: (32768, 60999))
    return policies_of(options, has_control=options.control is not None)


@pytest.mark.parametrize(
    ("arguments", "of_host", "of_namespace"),
    [
        (("-t", "80"), False, False),
        (("-t", "auto", "-T", "auto"), False, False),
        (("-u", "none", "-U", "none"), False, False),
        (("-u", "53"), False, True),  # the host's listener is there before the monitor
        (("-U", "53"), True, False),
        (("-u", "auto"), True, True),
        (("-U", "auto"), True, True),
        (("--control", "/run/c"), True, True),
        (("-t", "80", "-u", "none", "-U", "none", "--control", "/run/c"), True, True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_monitors_have_to_do_with_udp_only_where_ports_of_it_can_come(
    arguments: tuple[str, ...], of_host: bool, of_namespace: bool
) -> None:
    """A client of the port API may ask for ports of UDP whatever the options say about those at
    the start.
    """
    found = policies(*arguments)
    assert found[HOST.name].endswith(UDP_POLICY) is of_host
    assert found[NAMESPACE.name].endswith(UDP_POLICY) is of_namespace


def test_relays_have_the_policy_of_their_protocol() -> None:
    found = policies("-t", "80", "-u", "53", "-U", "auto")
    relays = {name: policy for name, policy in found.items() if policy.startswith("relay")}
    assert relays == {
        "hs-relay-in": "relay", "hs-udp-in": "relay-udp", "hs-udp-out": "relay-udp-ports"
    }  # fmt: skip
