# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket's routes: RootlessKit's port API as its clients expect it, our own beside."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.control.http import BODY_LIMIT, Request, Response
from hardsplice.control.report import FLOWS_SHOWN
from hardsplice.control.routes import ROUTES, dispatch
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward, Source
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry.counters import COUNTERS, KEPT
from tests.unit.control.fake_world import FakeWorld, flow, relay

NAMES = (*COUNTERS, *KEPT)

IN: Direction = Direction.INBOUND
OUT: Direction = Direction.OUTBOUND
SPEC = {"proto": "tcp", "parentIP": "127.0.0.1", "parentPort": 8080, "childPort": 80}


def ask(
    world: FakeWorld, method: str, target: str, body: bytes = b"", *, inside: bool = False
) -> Response:
    """The one answer to a request."""
    answers: list[Response] = []
    path, _, query = target.partition("?")
    dispatch(Request(method, path, query, body, True, inside), world, answers.append)
    (answer,) = answers
    assert not answer.close
    return answer


def value(answer: Response, status: int = 200) -> Any:
    assert answer.status == status, answer
    return json.loads(answer.body)


def message(answer: Response, status: int = 400) -> str:
    said = value(answer, status)["message"]
    assert isinstance(said, str)
    return said


def post(world: FakeWorld, *, inside: bool = False, **changes: Any) -> Response:
    spec = {key: val for key, val in {**SPEC, **changes}.items() if val is not ...}
    return ask(world, "POST", "/v1/ports", json.dumps(spec).encode(), inside=inside)


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


# --- the port API ---------------------------------------------------------------------------------


def test_info_is_rootlesskits(world: FakeWorld) -> None:
    info = value(ask(world, "GET", "/v1/info"))
    assert info["apiVersion"] == "1.1.0"
    assert (info["version"], info["childPID"]) == ("1.2.3", 7)
    assert info["portDriver"]["protos"] == ["tcp", "tcp4", "tcp6", "udp", "udp4", "udp6"]


def test_a_port_is_added_listed_and_removed(world: FakeWorld) -> None:
    added = value(post(world), 201)
    assert added == {"id": 1, "spec": SPEC, "direction": IN, "source": "control"}
    forward = Forward(Direction.INBOUND, IPv4Address("127.0.0.1"), None, 8080, None, 80, True)
    assert world.ports.table == {1: forward._replace(id=1, source=Source.CONTROL)}
    assert value(ask(world, "GET", "/v1/ports")) == [added]
    gone = ask(world, "DELETE", "/v1/ports/1")
    assert (gone.status, gone.body) == (200, b"")
    assert value(ask(world, "GET", "/v1/ports")) == []
    assert world.ports.worker.reset == []


def test_flows_are_reset_on_request(world: FakeWorld) -> None:
    for number, query in ((1, "flows=reset"), (2, "flows=keep")):
        post(world)
        assert ask(world, "DELETE", f"/v1/ports/{number}?{query}").status == 200
    assert world.ports.worker.reset == [1]


@pytest.mark.parametrize(
    ("proto", "address", "bound"),
    [
        ("tcp", ..., None),
        ("tcp", "", None),
        ("tcp", None, None),
        ("tcp4", ..., IPv4Address("0.0.0.0")),
        ("tcp6", ..., IPv6Address("::")),
        ("tcp", "0.0.0.0", IPv4Address("0.0.0.0")),
        ("tcp", "::1", IPv6Address("::1")),
        ("tcp6", "::1", IPv6Address("::1")),
    ],
)
def test_the_protocol_says_which_addresses(
    world: FakeWorld, proto: str, address: object, bound: object
) -> None:
    value(post(world, proto=proto, parentIP=address), 201)
    assert world.ports.table[1].address == bound


def test_a_protocol_is_shown_as_it_was_spelled(world: FakeWorld) -> None:
    for number, proto in enumerate(("tcp4", "tcp6", "tcp"), 1):
        added = value(post(world, proto=proto, parentPort=number, parentIP=""), 201)
        assert added["spec"]["proto"] == proto
    listed = value(ask(world, "GET", "/v1/ports"))
    assert [port["spec"]["proto"] for port in listed] == ["tcp4", "tcp6", "tcp"]
    ask(world, "DELETE", "/v1/ports/1")
    del world.ports.table[2]  # gone by itself, as a port of -t auto does
    ask(world, "GET", "/v1/ports")
    assert world.spelled == {}


def test_an_outbound_port_listens_at_the_child_and_leads_to_the_parent(world: FakeWorld) -> None:
    value(post(world, direction=OUT, parentPort=5432, childIP="::1", childPort=15432), 201)
    port = world.ports.table[1]
    target = IPv4Address("127.0.0.1")
    expected = Forward(Direction.OUTBOUND, IPv6Address("::1"), None, 15432, target, 5432, True)
    assert port == expected._replace(id=1, source=Source.CONTROL)
    assert port.direction == OUT
    assert value(ask(world, "GET", "/v1/ports")) == []  # RootlessKit's clients don't know them
    for query in ("outbound", "all"):
        (shown,) = value(ask(world, "GET", f"/v1/ports?direction={query}"))
        assert shown["spec"] == {
            "proto": "tcp", "parentIP": "127.0.0.1", "parentPort": 5432,
            "childIP": "::1", "childPort": 15432,
        }  # fmt: skip


def test_ports_of_options_are_shown_with_their_interface(world: FakeWorld) -> None:
    forward = Forward(Direction.INBOUND, None, "eth0", 80, IPv4Address("10.0.0.1"), 8080, True)
    world.ports.table[5] = forward._replace(id=5)
    (shown,) = value(ask(world, "GET", "/v1/ports"))
    assert shown["spec"] == {
        "proto": "tcp", "parentIP": "%eth0", "parentPort": 80,
        "childIP": "10.0.0.1", "childPort": 8080,
    }  # fmt: skip
    assert shown["source"] == "option"


def test_a_free_port_is_asked_for_by_0_and_shown_by_its_number(world: FakeWorld) -> None:
    added = value(post(world, parentPort=0), 201)
    assert added["spec"]["parentPort"] == world.ports.worker.free
    out = value(post(world, direction=OUT, childPort=0), 201)
    assert out["spec"]["childPort"] == world.ports.worker.free
    assert [one.port for one in world.ports.list()] == [world.ports.worker.free] * 2


# --- asked from the namespace ---


def test_from_the_namespace_inbound_ports_come_and_go(world: FakeWorld) -> None:
    added = value(post(world, inside=True), 201)
    assert added["source"] == "namespace"
    assert value(ask(world, "GET", "/v1/ports", inside=True)) == [added]
    assert value(ask(world, "GET", "/v1/info", inside=True))["portDriver"]
    assert ask(world, "DELETE", f"/v1/ports/{added['id']}", inside=True).status == 200
    assert world.ports.table == {}


def test_from_the_namespace_nothing_leads_to_the_host(world: FakeWorld) -> None:
    answer = post(world, inside=True, direction=OUT)
    assert "outbound" in message(answer, 403)
    assert world.ports.table == {}


@pytest.mark.parametrize("source", [one for one in Source if one is not Source.NAMESPACE])
def test_from_the_namespace_other_peoples_ports_are_neither_seen_nor_removed(
    world: FakeWorld, source: Source
) -> None:
    forward = Forward(Direction.INBOUND, None, None, 80, None, 8080, True)
    world.ports.table[5] = forward._replace(id=5, source=source)
    assert value(ask(world, "GET", "/v1/ports?direction=all", inside=True)) == []
    assert "not added from the namespace" in message(
        ask(world, "DELETE", "/v1/ports/5", inside=True), 403
    )
    assert 5 in world.ports.table


@pytest.mark.parametrize("path", ["/v1/status", "/v1/flows", "/v1/audit", "/metrics"])
def test_from_the_namespace_the_host_is_not_looked_at(world: FakeWorld, path: str) -> None:
    assert "not for the namespace" in message(ask(world, "GET", path, inside=True), 403)


def test_the_same_again_is_a_conflict_that_names_the_id(world: FakeWorld) -> None:
    post(world)
    assert "with the id 1" in message(post(world))
    assert len(world.ports.table) == 1


def test_what_fails_says_why_and_what_next(world: FakeWorld) -> None:
    world.ports.worker.fails = HardspliceError(
        "listen on", "port 8080", "Address already in use", "ss -ltn"
    )
    said = value(post(world), 400)
    reason = "cannot listen on port 8080: Address already in use"
    assert said == {"message": reason, "hint": "ss -ltn"}


def test_what_can_not_be_removed_is_said_and_is_still_listed(world: FakeWorld) -> None:
    number = value(post(world), 201)["id"]
    listed = value(ask(world, "GET", "/v1/ports"))
    world.ports.worker.fails = HardspliceError(
        "remove", f"port {number}", "the namespace monitor is gone"
    )
    answer = ask(world, "DELETE", f"/v1/ports/{number}?flows=reset")
    assert answer.status == 400
    assert message(answer) == f"cannot remove port {number}: the namespace monitor is gone"
    assert value(ask(world, "GET", "/v1/ports")) == listed
    world.ports.worker.fails = None
    assert ask(world, "DELETE", f"/v1/ports/{number}").status == 200
    assert value(ask(world, "GET", "/v1/ports")) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proto": "sctp"}, "proto is one of tcp, tcp4, tcp6, udp, udp4, udp6"),
        ({"proto": ...}, "proto is one of"),
        ({"proto": ["tcp"]}, "proto is one of"),
        ({"parentPort": ...}, "parentPort is not a port's number"),
        ({"childPort": 0}, "childPort is not"),
        ({"parentPort": 0, "direction": "outbound"}, "parentPort is not"),
        ({"parentPort": -1}, "parentPort is not a port's number, which is 0 to"),
        ({"parentPort": 65536}, "parentPort is not"),
        ({"parentPort": "80"}, "parentPort is not"),
        ({"parentPort": True}, "parentPort is not"),
        ({"parentPort": 80.0}, "parentPort is not"),
        ({"childPort": -1}, "childPort is not"),
        ({"parentIP": 7}, "parentIP is not a text"),
        ({"parentIP": "localhost"}, "'localhost' is not an IP address"),
        ({"parentIP": "::ffff:127.0.0.1"}, "in IPv6 clothes"),
        ({"parentIP": "fe80::1"}, "link-local"),
        ({"parentIP": "224.0.0.1"}, "multicast"),
        ({"parentIP": "::1", "proto": "tcp4"}, "'::1' is not IPv4"),
        ({"parentIP": "127.0.0.1", "proto": "tcp6"}, "'127.0.0.1' is not IPv6"),
        ({"childIP": "0.0.0.0"}, "not an address to connect to"),
        ({"childIP": "x" * 5000}, "is not an IP address"),
        ({"direction": "sideways"}, "direction is inbound or outbound"),
        ({"parentInterface": "eth0"}, "no key 'parentInterface'"),
    ],
)
def test_a_wrong_spec_is_refused(world: FakeWorld, changes: dict[str, Any], said: str) -> None:
    answer = post(world, **changes)
    assert said in message(answer)
    assert message(answer).startswith("cannot add a port: ")
    assert len(answer.body) < 500
    assert world.ports.table == {}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"1", b"\xff", b'{"proto":"tcp"', b"[" * BODY_LIMIT,
     b'{"parentPort":' + b"9" * 10000 + b"}"],
    ids=range(9),
)  # fmt: skip
def test_a_body_that_is_no_spec_is_refused(world: FakeWorld, body: bytes) -> None:
    assert message(ask(world, "POST", "/v1/ports", body)).startswith("cannot add a port: ")


def test_a_family_that_is_ruled_out_stays_so() -> None:
    world = FakeWorld(versions=(4,))
    value(post(world, parentIP=""), 201)
    forward = world.ports.table[1]
    assert (forward.address, forward.target) == (IPv4Address("0.0.0.0"), IPv4Address("127.0.0.1"))
    assert "ruled out by -4" in message(post(world, parentIP="", proto="tcp6"))
    assert "rules out" in message(post(world, parentIP="::1"))
    assert "rules out" in message(post(world, childIP="::1"))


@pytest.mark.parametrize(
    "number", ["0", "x", "-1", "1 ", "1e1", "9" * 10, "%31", "\u0661", "1.0"]
)  # fmt: skip
def test_what_is_no_port_is_not_removed(world: FakeWorld, number: str) -> None:
    post(world)
    assert message(ask(world, "DELETE", f"/v1/ports/{number}"))
    assert len(world.ports.table) == 1


# --- routing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v1/ports/", "/v1/ports/1/2", "/v2/ports", "/v1/{id}",
             "/v1/ports%2f1", "//v1/ports", "/metrics/"],
)  # fmt: skip
def test_other_paths_are_not_there(world: FakeWorld, path: str) -> None:
    assert message(ask(world, "GET", path), 404)


def test_other_methods_are_not_allowed(world: FakeWorld) -> None:
    answer = ask(world, "PUT", "/v1/ports")
    assert (answer.status, answer.allow) == (405, "GET, POST, HEAD")
    assert ask(world, "POST", "/metrics").allow == "GET, HEAD"
    assert ask(world, "HEAD", "/v1/ports/1").allow == "DELETE"
    assert ask(world, "GET", "/v1/ports/1").allow == "DELETE"


@pytest.mark.parametrize("path", [path for path in ROUTES if "GET" in ROUTES[path]])
def test_head_is_get_for_every_path_that_has_it(world: FakeWorld, path: str) -> None:
    post(world)
    assert ask(world, "HEAD", path) == ask(world, "GET", path)


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/v1/ports?direction=up"), ("GET", "/v1/ports?x=1"),
     ("GET", "/v1/ports?direction=all&direction=all"), ("DELETE", "/v1/ports/1?flows=maybe"),
     ("DELETE", "/v1/ports/1?flows"), ("POST", "/v1/ports?direction=all")],
)  # fmt: skip
def test_other_parameters_are_refused(world: FakeWorld, method: str, target: str) -> None:
    post(world)
    assert message(ask(world, method, target, json.dumps(SPEC).encode()))
    assert len(world.ports.table) == 1


def test_a_scraper_may_add_what_it_is_told_to(world: FakeWorld) -> None:
    assert ask(world, "GET", "/metrics?module=x&a") == ask(world, "GET", "/metrics")


_TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)


@given(
    st.sampled_from(["GET", "POST", "DELETE", "HEAD", "PUT", "G"]),
    st.one_of(st.sampled_from([*ROUTES, "/v1/ports/1"]), _TEXT.map("/".__add__)),
    st.one_of(_TEXT, st.sampled_from(["flows=reset", "direction=all"])),
    st.one_of(
        st.binary(max_size=100),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from([*SPEC, "direction", "childIP", "x"]), inner, max_size=6
                )
            ),
            max_leaves=10,
        ).map(lambda found: json.dumps(found).encode()),
    ),
)
def test_every_request_has_one_answer(method: str, path: str, query: str, body: bytes) -> None:
    answers: list[Response] = []
    dispatch(Request(method, path, query, body, True), FakeWorld(), answers.append)
    (answer,) = answers
    assert answer.status in (200, 201, 400, 404, 405)
    assert len(answer.body) < 20_000


# --- our own --------------------------------------------------------------------------------------


def test_status(world: FakeWorld) -> None:
    post(world)
    world.lacking = ["Landlock"]
    status = value(ask(world, "GET", "/v1/status"))
    assert (status["version"], status["pid"], status["uptimeSeconds"]) == ("1.2.3", 42, 12.5)
    assert (status["namespace"], status["lacking"]) == ("process 7", ["Landlock"])
    calls = 3 * (100 + NAMES.index("denied_calls"))
    assert status["denied"] == {"call": calls, "record": calls + 3, "peer": 2}
    inbound, outbound = (status["directions"][name] for name in (IN, OUT))
    assert (inbound["ports"], inbound["relays"]) == (1, 1)
    assert (outbound["ports"], outbound["relays"]) == (0, 2)
    assert outbound["flows"] == {"connecting": 2, "established": 4, "half_closed": 0}
    assert outbound["counters"]["accepted"] == 2 * inbound["counters"]["accepted"]


def test_a_relay_that_is_not_started_yet_is_not_among_the_relays(world: FakeWorld) -> None:
    """Its counters, which are zeros then, have their place in the sum."""
    world.relays.append(relay(Direction.INBOUND, protocol=Protocol.UDP, is_started=False))
    inbound = value(ask(world, "GET", "/v1/status"))["directions"][IN]
    numbers = {name: of["relays"] for name, of in inbound["protocols"].items()}
    assert (inbound["relays"], numbers) == (1, {"tcp": 1, "udp": 0})
    assert "accepted" in inbound["protocols"]["udp"]["counters"]
    assert 'protocol="udp"' not in ask(world, "GET", "/metrics").body.decode()


def test_flows(world: FakeWorld) -> None:
    world.present = [(IN, flow(1000)), (OUT, flow(1001))]
    answer = value(ask(world, "GET", "/v1/flows"))
    first, second = answer["flows"]
    assert first["seconds"] > 0
    del first["seconds"]
    assert first == {
        "direction": IN, "protocol": "tcp", "port": 1, "state": "established",
        "client": "127.0.0.1:1000", "target": "[::1]:80", "bytesToTarget": 10, "bytesToClient": 20,
    }  # fmt: skip
    assert second["direction"] == OUT


def test_of_many_flows_some_are_shown_and_all_are_counted(world: FakeWorld) -> None:
    world.present = [(IN, flow(number)) for number in range(FLOWS_SHOWN + 5)]
    world.relays[0].states["established"] = FLOWS_SHOWN + 5  # type: ignore[index]
    answer = value(ask(world, "GET", "/v1/flows"))
    assert len(answer["flows"]) == FLOWS_SHOWN
    assert answer["total"] >= FLOWS_SHOWN + 5


def test_audit_says_where_to_look(world: FakeWorld) -> None:
    assert value(ask(world, "GET", "/v1/audit")) == {"pid": 42, "lacking": []}
