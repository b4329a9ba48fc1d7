# SPDX-License-Identifier: GPL-2.0-or-later
"""The SPEC grammar: what each form means, what is refused and how, and that nothing else happens.

The examples pin each rule; the properties hold `parse` against an independent, slow model of the
same rules, in which a SPEC is made from parts and never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Auto, Forward, Origin, Source
from hardsplice.model.ports import Layout, lay_out, parse
from hardsplice.model.spec import Address, is_interface_name

EPHEMERAL = (10_000, 60_999)  # more of them than is usual, so that `all` is quick
NOT_EPHEMERAL = 65535 - (EPHEMERAL[1] - EPHEMERAL[0] + 1)


def forwards(*specs: str, versions: tuple[int, ...] = (4, 6)) -> list[Forward]:
    return parse(specs, Direction.INBOUND, ephemeral=EPHEMERAL, versions=versions)


def short(*specs: str, versions: tuple[int, ...] = (4, 6)) -> list[str]:
    """Each listener as ADDRESS%IFACE PORT > TARGET PORT, with * where there is none."""
    return [
        f"{f.address or '*'}{'%' + f.interface if f.interface else ''} {f.port} "
        f"> {f.target or '*'} {f.target_port}"
        for f in forwards(*specs, versions=versions)
    ]


def refusal(*specs: str, versions: tuple[int, ...] = (4, 6)) -> str:
    with pytest.raises(HardspliceError) as caught:
        forwards(*specs, versions=versions)
    assert len(caught.value.lines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("8080", ["* 8080 > * 8080"]),
        ("1", ["* 1 > * 1"]),
        ("65535", ["* 65535 > * 65535"]),
        ("40000", ["* 40000 > * 40000"]),
        ("443,80", ["* 80 > * 80", "* 443 > * 443"]),
        ("8000-8002", ["* 8000 > * 8000", "* 8001 > * 8001", "* 8002 > * 8002"]),
        ("8080:80", ["* 8080 > * 80"]),
        ("8000-8001:9000-9001", ["* 8000 > * 9000", "* 8001 > * 9001"]),
        ("9000-9001:8000-8001", ["* 9000 > * 8000", "* 9001 > * 8001"]),
        ("80:10.0.0.5", ["* 80 > 10.0.0.5 80"]),
        ("80:10.0.0.5/81", ["* 80 > 10.0.0.5 81"]),
        ("80-81:10.0.0.5", ["* 80 > 10.0.0.5 80", "* 81 > 10.0.0.5 81"]),
        ("80:fd00::5", ["* 80 > fd00::5 80"]),
        ("80:[fd00::5]", ["* 80 > fd00::5 80"]),
        ("80:[fd00::5]/81", ["* 80 > fd00::5 81"]),
        ("80:::1", ["* 80 > ::1 80"]),
        ("80:::1/81", ["* 80 > ::1 81"]),
        ("22,80:10.0.0.5/81", ["* 22 > * 22", "* 80 > 10.0.0.5 81"]),
        ("127.0.0.1/80", ["127.0.0.1 80 > * 80"]),
        ("0.0.0.0/80", ["0.0.0.0 80 > * 80"]),
        ("::/80", [":: 80 > * 80"]),
        ("::1/80", ["::1 80 > * 80"]),
        ("[::1]/80", ["::1 80 > * 80"]),
        ("[::1]%lo/80", ["::1%lo 80 > * 80"]),
        ("fe80::1%eth0/80", ["fe80::1%eth0 80 > * 80"]),
        ("10.0.0.1%eth0/80", ["10.0.0.1%eth0 80 > * 80"]),
        ("%eth0/80", ["*%eth0 80 > * 80"]),
        ("%exactly15bytes./80", ["*%exactly15bytes. 80 > * 80"]),
        ("127.0.0.1/80:10.0.0.5/81", ["127.0.0.1 80 > 10.0.0.5 81"]),
        ("::1/80:fd00::5/81", ["::1 80 > fd00::5 81"]),
        ("80-83,~81-82", ["* 80 > * 80", "* 83 > * 83"]),
        ("~81,80-82", ["* 80 > * 80", "* 82 > * 82"]),
        ("80-82:90-92,~81", ["* 80 > * 90", "* 82 > * 92"]),
        ("80,~80", []),
        ("none", []),
    ],
)
def test_a_spec_means_these_listeners(spec: str, expected: list[str]) -> None:
    assert short(spec) == expected


def test_no_spec_means_no_ports() -> None:
    assert forwards() == []


def test_none_may_be_repeated() -> None:
    assert forwards("none", "none") == []


def test_what_could_be_an_address_before_the_first_slash_is_the_listening_address() -> None:
    assert short("2001:db8::1/80") == ["2001:db8::1 80 > * 80"]
    assert short("2001:[db8::1]/80") == ["* 2001 > db8::1 80"]
    assert short("2001,2002:db8::1/80") == ["* 2001 > * 2001", "* 2002 > db8::1 80"]


@pytest.mark.parametrize("spec", ["all", "%eth0/", "127.0.0.1/", "::1/all", "all,~22", "~22"])
def test_all_ports_leave_out_the_ephemeral_ones_and_may_fail_to_bind(spec: str) -> None:
    found = forwards(spec)
    assert len(found) == NOT_EPHEMERAL - ("~" in spec)
    assert (found[0].port, found[-1].port) == (1, 65535)
    assert all(f.port == f.target_port and not f.required for f in found)
    assert not any(EPHEMERAL[0] <= f.port <= EPHEMERAL[1] for f in found)
    assert ("~" in spec) == (22 not in {f.port for f in found})


def test_a_port_given_by_number_is_required_even_among_all() -> None:
    by_port = {f.port: f for f in forwards("all:10.0.0.5,80:8080,40000")}
    assert len(by_port) == NOT_EPHEMERAL + 1
    assert (by_port[80].target_port, by_port[80].target, by_port[80].required) == (8080, None, True)
    assert by_port[40000].required
    assert by_port[81].target == IPv4Address("10.0.0.5")
    assert not by_port[81].required


def test_all_can_have_a_target_address() -> None:
    assert {f.target for f in forwards("all:fd00::5")} == {IPv6Address("fd00::5")}


@pytest.mark.parametrize(
    "specs",
    [("80-82", "~81"), ("~81", "80-82"), ("80-82", "~81,~1"), ("80", "82", "~81")],
)
def test_exclusions_narrow_other_specs_of_the_option(specs: tuple[str, ...]) -> None:
    assert short(*specs) == ["* 80 > * 80", "* 82 > * 82"]


def test_exclusions_win_whatever_the_listening_address() -> None:
    specs = ("127.0.0.1/80-81", "::1/81-82", "%eth0/70,~81")
    assert short(*specs) == ["127.0.0.1 80 > * 80", "::1 82 > * 82", "*%eth0 70 > * 70"]


def test_exclusions_at_an_address_of_their_own_mean_all_others_there() -> None:
    found = forwards("::1/80", "127.0.0.1/~22")
    assert len([f for f in found if f.address == IPv4Address("127.0.0.1")]) == NOT_EPHEMERAL - 1


def test_exclusions_at_an_address_with_ports_narrow_those() -> None:
    assert short("127.0.0.1/80-81", "127.0.0.1/~81") == ["127.0.0.1 80 > * 80"]


def test_several_specs_of_exclusions_alone_add_up() -> None:
    assert len(forwards("~22", "~25,~53", "~25")) == NOT_EPHEMERAL - 3


def test_an_exact_duplicate_is_folded() -> None:
    assert short("80", "80-81", "80:80,80:80") == ["* 80 > * 80", "* 81 > * 81"]
    assert len(forwards("all", "all")) == NOT_EPHEMERAL


def test_the_order_is_that_of_first_mention_and_then_by_port() -> None:
    specs = ("::1/90", "127.0.0.1/80", "::1/70,60")
    assert short(*specs) == [
        "::1 60 > * 60",
        "::1 70 > * 70",
        "::1 90 > * 90",
        "127.0.0.1 80 > * 80",
    ]


@pytest.mark.parametrize(
    "specs",
    [
        ("80", "127.0.0.1/80"),
        ("0.0.0.0/80", "127.0.0.1/80"),
        ("::/80", "::1/80"),
        ("80", "::/80:81"),
        ("80", "%eth0/80"),
        ("%eth0/80", "10.0.0.1%eth0/80"),
        ("10.0.0.1/80", "10.0.0.1%eth0/80"),
    ],
)
def test_listeners_that_the_kernel_would_refuse_together_are_refused(
    specs: tuple[str, ...],
) -> None:
    assert "overlap; leave out one" in refusal(*specs)


@pytest.mark.parametrize(
    "specs",
    [
        ("127.0.0.1/80", "::1/80:81"),
        ("0.0.0.0/80", "::/80:81"),
        ("127.0.0.1/80", "127.0.0.2/80:81"),
        ("%eth0/80", "%eth1/80:81"),
        ("10.0.0.1%eth0/80", "10.0.0.1%eth1/80:81"),
        ("127.0.0.1/80", "81"),
    ],
)
def test_listeners_that_can_be_bound_together_are_allowed(specs: tuple[str, ...]) -> None:
    assert len(forwards(*specs)) == 2


@pytest.mark.parametrize("specs", [("all", "127.0.0.1/80:8080"), ("127.0.0.1/80:8080", "all")])
def test_a_port_given_by_number_takes_it_from_an_overlapping_all(specs: tuple[str, ...]) -> None:
    at_80 = [f for f in forwards(*specs) if f.port == 80]
    assert [(f.address, f.target_port) for f in at_80] == [(IPv4Address("127.0.0.1"), 8080)]


@pytest.mark.parametrize(
    ("spec", "offending", "next_step"),
    [
        ("", "''", "write the ports, or none"),
        ("80:10.0.0.5,auto", "'10.0.0.5' is a target that auto can't watch", "leave out the"),
        ("all:10.0.0.5,auto", "'10.0.0.5' is a target that auto can't watch", "leave out the"),
        ("auto:81", "'auto' is not a port", "from 1 to 65535"),
        ("~auto", "'auto' is not a port", "from 1 to 65535"),
        ("80:auto", "'auto' is not an IP address", "names are not looked up"),
        ("80:81,80:82,auto", "port 80 on every address would have two targets", "leave out one"),
        ("80,none", "'none' stands alone", "leave out the rest"),
        ("0", "0 is any port that is free, and where it leads is not said", "write 0:PORT"),
        ("0:10.0.0.5", "where it leads is not said", "write 0:10.0.0.5/PORT"),
        ("0:0", "'0' is not a port", "from 1 to 65535"),
        ("80:0", "'0' is not a port", "from 1 to 65535"),
        ("80:10.0.0.5/0", "'0' is not a port", "from 1 to 65535"),
        ("~0", "'0' is not a port", "from 1 to 65535"),
        ("00:80", "'00' is not a port", "from 1 to 65535"),
        ("0-5", "'0-5' can't have a port 0", "one that is free"),
        ("0-5:80-85", "'0-5' can't have a port 0", "one that is free"),
        ("0-0:80", "'0-0' can't have a port 0", "one that is free"),
        ("80-81:0-1", "'0-1' can't have a port 0", "one that is free"),
        ("0:80-81", "maps 1 port(s) to 2", "write 0:80"),
        ("0:80,auto", "0 is a port that is free, and auto waits for one", "leave out one"),
        ("0:80,~40000", "~40000 excludes what port 0 may come to be", "leave out one"),
        ("65536", "'65536' is not a port", "from 1 to 65535"),
        ("9" * 5000, "999...' is not a port", "from 1 to 65535"),
        ("http", "'http' is not a port", "from 1 to 65535"),
        ("²", "'²' is not a port", "from 1 to 65535"),
        ("٨٠", r"'\u0668\u0660' is not a port", "from 1 to 65535"),
        ("+80", "'+80' is not a port", "from 1 to 65535"),
        ("80-", "'' in '80-' is not a port", "from 1 to 65535"),
        ("80-90-95", "'90-95' in '80-90-95' is not a port", "from 1 to 65535"),
        ("80-70", "'80-70' runs backwards", "write 70-80"),
        ("80,", "empty entry", "between commas"),
        ("80,,81", "empty entry", "between commas"),
        ("80, 81", "a space", "separated by commas alone"),
        ("80\n", "a space", "separated by commas alone"),
        ("8000-8009:9000", "maps 10 port(s) to 1", "write 8000-8009:9000-9009"),
        ("80:90-91", "maps 1 port(s) to 2", "write 80:90"),
        ("80-81:10.0.0.5/9", "maps 2 port(s) to 1", "write 80-81:10.0.0.5/9-10"),
        ("80-81:65535", "maps 2 port(s) to 1", "write a target of 2 ports"),
        ("80:", "'80:' has no target", "write a port or an address after ':'"),
        ("80:/81", "'80:/81' has no target", "write a port or an address after ':'"),
        ("80:localhost", "'localhost' is not an IP address", "names are not looked up"),
        ("80:0.0.0.0", "'0.0.0.0' is not an address to connect to", "write a host's address"),
        ("80:255.255.255.255", "is not an address to connect to", "write a host's address"),
        ("80:fe80::1", "'fe80::1' is link-local", "of wider scope"),
        ("80:fd00::1%eth0", "names an interface", "leave it out"),
        ("80:224.0.0.1", "'224.0.0.1' is a multicast address", "which is not forwarded"),
        ("~80:81", "'~80:81': what is excluded has no target", "write ~80"),
        ("all:80", "'all' keeps each port's number", "write all:ADDRESS or all"),
        ("all:10.0.0.5/80", "'all' keeps each port's number", "write all:ADDRESS or all"),
        ("/80", "nothing stands before '/'", "write an address or %INTERFACE"),
        ("80/http", "'80' is not an IP address", "write one in numbers"),
        ("localhost/80", "'localhost' is not an IP address", "names are not looked up"),
        ("10.0.0.256/80", "'10.0.0.256' is not an IP address", "write one in numbers"),
        ("010.0.0.1/80", "'010.0.0.1' is not an IP address", "write one in numbers"),
        ("[127.0.0.1]/80", "'[127.0.0.1]' is IPv4", "write 127.0.0.1"),
        ("::ffff:10.0.0.1/80", "an IPv4 address in IPv6", "write 10.0.0.1"),
        ("[fe80::1%eth0]/80", "outside the brackets", "write [fe80::1]%eth0"),
        ("fe80::1/80", "'fe80::1' is link-local", "write fe80::1%INTERFACE"),
        ("ff02::1%eth0/80", "'ff02::1' is a multicast address", "which is not forwarded"),
        ("255.255.255.255/80", "the broadcast address", "which is not forwarded"),
        ("127.0.0.1/80,::1/80", "'::1/80' gives an address again", "repeat the option"),
        ("127.0.0.1/80,10.0.0.1/80", "'10.0.0.1/80' gives an address again", "repeat the option"),
        ("%/80", "'' is not an interface's name", "1 to 15 printable"),
        ("%exactly16bytes.x/80", "'exactly16bytes.x' is not an interface's name", "1 to 15"),
        ("%éééééééé/80", "is not an interface's name", "1 to 15 printable"),
        ("%../80", "'..' is not an interface's name", "1 to 15 printable"),
        ("%a:b/80", "'a:b' is not an interface's name", "none of them '/', ':' or a space"),
    ],
)
def test_a_refusal_quotes_what_is_wrong_and_names_the_next_step(
    spec: str, offending: str, next_step: str
) -> None:
    message = refusal(spec)
    assert message.startswith("cannot parse -t")
    assert offending in message
    assert next_step in message
    assert message.isprintable()


def test_two_targets_of_one_listener_are_refused() -> None:
    assert refusal("80-90", "85:1085") == (
        "cannot parse -t: port 85 on every address would have two targets, "
        "loopback port 85 and loopback port 1085; leave out one"
    )
    assert "10.0.0.5 port 80" in refusal("127.0.0.1/80", "127.0.0.1/80:10.0.0.5")
    assert "all ports on every address would have two targets" in refusal("all", "all:10.0.0.5")


def test_an_exclusion_settles_two_targets() -> None:
    assert short("80,81", "81:82", "~81") == ["* 80 > * 80"]


@pytest.mark.parametrize("specs", [("none", "80"), ("80", "none"), ("none", "~80")])
def test_none_and_ports_contradict_each_other(specs: tuple[str, ...]) -> None:
    message = refusal(*specs)
    assert message.startswith("cannot combine -t none with -t '")
    assert message.endswith("leave out one of the two")


@pytest.mark.parametrize(
    ("family", "spec", "expected"),
    [
        (4, "80", "0.0.0.0 80 > 127.0.0.1 80"),
        (6, "80", ":: 80 > ::1 80"),
        (4, "%eth0/80:81", "0.0.0.0%eth0 80 > 127.0.0.1 81"),
        (4, "10.0.0.1/80:10.0.0.2", "10.0.0.1 80 > 10.0.0.2 80"),
        (6, "::1/80:fd00::1", "::1 80 > fd00::1 80"),
    ],
)
def test_one_family_narrows_wildcards_and_default_targets(
    family: int, spec: str, expected: str
) -> None:
    assert short(spec, versions=(family,)) == [expected]


def test_one_family_folds_what_becomes_the_same_listener() -> None:
    assert short("80", "0.0.0.0/80:127.0.0.1", versions=(4,)) == ["0.0.0.0 80 > 127.0.0.1 80"]
    assert {f.target for f in forwards("all", versions=(6,))} == {IPv6Address("::1")}


@pytest.mark.parametrize(
    ("family", "spec"),
    [(4, "::1/80"), (4, "80:[fd00::1]"), (4, "2001:db8::1/80"), (6, "127.0.0.1/80"),
     (6, "all:10.0.0.5")],
)  # fmt: skip
def test_one_family_refuses_an_address_of_the_other(family: int, spec: str) -> None:
    message = refusal(spec, versions=(family,))
    assert f"which -{family} rules out" in message
    assert f"leave out -{family}, or write an IPv{family} address" in message


@pytest.mark.parametrize(
    "name", ["\udcff" * 15, "\ud800", "é", "a\0", "\0", "a\x7f", "a\x1b", "a" * 16, ".", ""]
)
def test_what_can_not_be_an_interfaces_name_is_refused(name: str) -> None:
    """The kernel takes bytes that are no ASCII; which name they are depends on the locale."""
    assert "is not an interface's name" in refusal(f"%{name}/80")
    assert not is_interface_name(name)


def test_every_other_character_may_be_in_an_interfaces_name() -> None:
    for code in range(ord("!"), 0x7F):
        name = f"a{chr(code)}"
        assert is_interface_name(name) == (chr(code) not in "/:")


def test_a_terminal_escape_in_a_spec_stays_text() -> None:
    assert "\\x1b[31m" in refusal("\x1b[31m")


@pytest.mark.timeout(60)  # quadratic work on 65,535 ports takes minutes; this takes about 0.2 s
def test_every_port_at_once_is_quick() -> None:
    specs = ["1-65535", *(f"127.0.0.{n}/~{n}" for n in range(1, 4))]
    found = forwards(*specs, "~1000-5000")
    assert len(found) == 65535 - 4001 - 3


# auto


def autos(*specs: str, versions: tuple[int, ...] = (4, 6)) -> list[Auto]:
    return laid_out(*specs, versions=versions).autos


def laid_out(*specs: str, versions: tuple[int, ...] = (4, 6)) -> Layout:
    return lay_out(specs, Direction.INBOUND, ephemeral=EPHEMERAL, versions=versions)


def pairs(auto: Auto) -> set[tuple[int, int]]:
    return {(port, port + shift) for run, shift in auto.runs for port in run}


def test_auto_alone_watches_all_but_the_ephemeral_ports() -> None:
    (auto,) = autos("auto")
    assert auto == Auto(
        Direction.INBOUND, None, None, None, ((range(1, 10_000), 0), (range(61_000, 65_536), 0))
    )
    assert autos("all,auto") == [auto]
    assert laid_out("auto").forwards == []


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (("auto,80-82",), {(80, 80), (81, 81), (82, 82)}),
        (("80-82,auto,~81",), {(80, 80), (82, 82)}),
        (("80-82,auto", "~81"), {(80, 80), (82, 82)}),
        (("8080:80,auto",), {(8080, 80)}),
        (("1000-1002:2000-2002,~1001,auto",), {(1000, 2000), (1002, 2002)}),
        (("auto,40000",), {(40000, 40000)}),
        (("auto,80", "auto,81"), {(80, 80), (81, 81)}),
        (("auto,80,~80",), set()),
    ],
)
def test_ranges_limit_auto(specs: tuple[str, ...], expected: set[tuple[int, int]]) -> None:
    (auto,) = autos(*specs)
    assert pairs(auto) == expected
    assert auto.listening_ports() == {port for port, _ in expected}
    assert auto.target_ports() == {target for _, target in expected}
    for port, target in expected:
        assert list(auto.forwards(target)) == [
            Forward(Direction.INBOUND, None, None, port, None, target, False, source=Source.AUTO)
        ]


def test_exclusions_narrow_auto_and_a_number_beside_it_has_its_own_target() -> None:
    (auto,) = autos("auto,~22")
    assert len(pairs(auto)) == NOT_EPHEMERAL - 1
    assert list(auto.forwards(22)) == []
    (auto,) = autos("auto,all,8080:80")
    assert {(8080, 80), (80, 80)} <= pairs(auto)
    assert (8080, 8080) not in pairs(auto)
    assert [one.port for one in auto.forwards(80)] == [80, 8080]


def test_each_listening_address_has_an_auto_of_its_own() -> None:
    first, second, third = autos("127.0.0.1/auto", "::1/auto,80", "%lo/auto,81")
    assert first.address == IPv4Address("127.0.0.1")
    assert (second.address, pairs(second)) == (IPv6Address("::1"), {(80, 80)})
    assert (third.interface, pairs(third)) == ("lo", {(81, 81)})


def test_ports_and_auto_stand_beside_each_other() -> None:
    layout = laid_out("8080:80", "auto", "~22")
    assert [(one.port, one.target_port) for one in layout.forwards] == [(8080, 80)]
    (auto,) = layout.autos
    assert list(auto.forwards(22)) == []


def test_one_family_narrows_auto() -> None:
    (auto,) = autos("auto", versions=(4,))
    assert (str(auto.address), str(auto.target)) == ("0.0.0.0", "127.0.0.1")


def test_none_and_auto_contradict_each_other() -> None:
    assert "leave out one of the two" in refusal("none", "auto")


def test_where_ports_have_to_be_named_auto_is_refused() -> None:
    assert "'auto' can't be asked for here; name the ports" in refusal("auto")


@given(
    first=st.integers(1, 65000),
    count=st.integers(1, 500),
    shift=st.integers(-64000, 64000),
    excluded=st.sets(st.integers(1, 65535), max_size=5),
)
def test_auto_and_the_same_ports_without_it_have_the_same_pairs(
    first: int, count: int, shift: int, excluded: set[int]
) -> None:
    last = min(first + count - 1, 65535)
    start = min(max(first + shift, 1), 65535 - (last - first))
    spec = f"{first}-{last}:{start}-{start + last - first}"
    spec += "".join(f",~{port}" for port in excluded)
    (auto,) = autos(f"{spec},auto")
    assert pairs(auto) == {(one.port, one.target_port) for one in forwards(spec)}


# Properties

PORTS = st.integers(1, 65535)
# Addresses that may both listen and be a target, with the ambiguous kind (2001:db8::7) among them.
ADDRESSES = st.sampled_from(
    [ip_address(text) for text in ("127.0.0.1", "10.1.2.3", "::1", "fd00::7", "2001:db8::7")]
)


@dataclass(frozen=True)
class Mapping:
    first: int
    count: int
    target: Address | None
    target_first: int | None

    def __str__(self) -> str:
        text = _range(self.first, self.count)
        numbers = None if self.target_first is None else _range(self.target_first, self.count)
        if self.target is None:
            return text if numbers is None else f"{text}:{numbers}"
        # Without brackets the last group of an address and a port can't be told apart by a reader.
        host = f"[{self.target}]" if self.target.version == 6 else f"{self.target}"
        return f"{text}:{host}" if numbers is None else f"{text}:{host}/{numbers}"

    def pairs(self) -> list[tuple[int, int]]:
        onto = self.first if self.target_first is None else self.target_first
        return [(self.first + n, onto + n) for n in range(self.count)]


def _range(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


@st.composite
def mappings(draw: st.DrawFn) -> Mapping:
    count = draw(st.integers(1, 20))
    starts = st.integers(1, 65536 - count)
    return Mapping(draw(starts), count, draw(st.none() | ADDRESSES), draw(st.none() | starts))


@given(
    listen=st.none() | ADDRESSES,
    interface=st.none() | st.sampled_from(["lo", "eth0.5"]),
    entries=st.lists(mappings(), min_size=1, max_size=5),
    excluded=st.lists(PORTS | st.integers(1, 50), max_size=3),
    apart=st.booleans(),
)
def test_what_is_written_is_what_is_read(
    listen: Address | None,
    interface: str | None,
    entries: list[Mapping],
    excluded: list[int],
    apart: bool,
) -> None:
    expected: dict[int, tuple[Address | None, int]] = {}
    conflict = False
    for entry in entries:
        for port, onto in entry.pairs():
            if port not in excluded:
                conflict |= expected.setdefault(port, (entry.target, onto)) != (entry.target, onto)
    prefix = "" if listen is None else str(listen)
    prefix += "" if interface is None else f"%{interface}"
    prefix += "/" if prefix else ""
    parts = [str(entry) for entry in entries]
    exclusions = [f"~{port}" for port in excluded]
    specs = [prefix + ",".join(parts + ([] if apart else exclusions))]
    if apart and exclusions:
        specs.append(",".join(exclusions))
    if conflict:
        assert "would have two targets" in refusal(*specs)
        return
    assert forwards(*specs) == [
        Forward(Direction.INBOUND, listen, interface, port, target, onto, True, id=number)
        for number, (port, (target, onto)) in enumerate(sorted(expected.items()), 1)
    ]


@given(st.lists(st.text("0123456789-,:/~%[].af nol\n\x00", max_size=25), min_size=1, max_size=3))
def test_text_of_the_grammars_characters_gives_forwards_or_a_failure(specs: list[str]) -> None:
    check_anything(specs)


@given(st.lists(st.text(st.characters(min_codepoint=0), max_size=25), min_size=1, max_size=3))
def test_any_text_at_all_gives_forwards_or_a_failure(specs: list[str]) -> None:
    check_anything(specs)


def check_anything(specs: list[str]) -> None:
    """One category of characters is surrogates: undecodable bytes of argv look like that."""
    outcome: HardspliceError | list[Forward]
    try:
        outcome = forwards(*specs)
    except HardspliceError as failure:
        outcome = failure
    if isinstance(outcome, HardspliceError):
        assert str(outcome).isprintable()
        assert str(outcome).startswith(("cannot parse -t", "cannot combine -t"))
        return
    assert len({(f.address, f.interface, f.port) for f in outcome}) == len(outcome)
    assert all(1 <= f.port <= 65535 and 1 <= f.target_port <= 65535 for f in outcome)


# Port 0


def test_free_ports_are_listeners_of_their_own_and_come_last() -> None:
    """Last, so that the kernel can't choose what another entry names."""
    found = forwards("0:80,8080", "0:80", "127.0.0.1/0:10.0.0.5/81,0:82", "~22")
    loop = IPv4Address("127.0.0.1")
    assert [(one.address, one.port, one.target, one.target_port) for one in found] == [
        (None, 8080, None, 8080),
        (None, 0, None, 80),
        (None, 0, None, 80),
        (loop, 0, IPv4Address("10.0.0.5"), 81),
        (loop, 0, None, 82),
    ]
    assert all(one.required for one in found)


def test_a_free_port_has_the_one_family_that_is_in_use() -> None:
    (one,) = forwards("0:80", versions=(4,))
    assert (one.address, one.target) == (IPv4Address("0.0.0.0"), IPv4Address("127.0.0.1"))


def test_ports_are_numbered_in_their_order_and_free_ones_last() -> None:
    specs = ["0:80,7-9", "127.0.0.1/5"]
    layout = lay_out(specs, Direction.OUTBOUND, ephemeral=EPHEMERAL, first=40)
    assert [(one.id, one.port) for one in layout.forwards] == [
        (40, 7), (41, 8), (42, 9), (43, 5), (44, 0),
    ]  # fmt: skip
    assert {one.direction for one in layout.forwards} == {Direction.OUTBOUND}
    assert [one.port for one in layout.forwards if one.origin is Origin.FREE] == [0]
