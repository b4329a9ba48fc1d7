# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl exporter: what it lets through, and what it makes of several answers."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hardsplice.control.http import Request, Response
from hardsplice.control.routes import FOR_ALL, dispatch
from hardsplice.control.server import Server
from hardsplice.ctl import exporter
from hardsplice.ctl.client import Client
from hardsplice.ctl.exporter import (
    ANSWER_SECONDS,
    EVERYBODY,
    Exporter,
    collect,
    merge,
    open_listener,
)
from hardsplice.ipc.loop import Loop
from hardsplice.model.errors import HardspliceError
from tests.unit.control.fake_world import FakeWorld

Serve = Callable[[Path], FakeWorld]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve the metrics of a made-up world on a UNIX socket."""
    ends: list[Callable[[], None]] = []

    def start(path: Path) -> FakeWorld:
        world, loop = FakeWorld(), Loop()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)

        def handle(request: Request, respond: Callable[[Response], None]) -> None:
            dispatch(request, world, respond, FOR_ALL)

        Server(listener.fileno(), EVERYBODY, loop, handle).start()
        wake, waker = socket.socketpair()
        loop.add(wake.fileno(), lambda: loop.stop(0))
        thread = threading.Thread(target=loop.run)
        thread.start()

        def end() -> None:
            waker.send(b"x")
            thread.join()
            for one in (listener, wake, waker):
                one.close()

        ends.append(end)
        return world

    yield start
    for end in ends:
        end()


def ask(one: Exporter, method: str, path: str, body: bytes = b"") -> Response:
    answers: list[Response] = []
    bare, _, query = path.partition("?")
    one.handle(Request(method, bare, query, body, True), answers.append)
    (answer,) = answers
    return answer


def test_only_metrics_are_asked_for_in_words_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(path: str) -> str:
        asked.append(path)
        return "hardsplice_x 1"

    monkeypatch.setattr(exporter, "_request", answer)
    monkeypatch.setattr(exporter, "FRESH_SECONDS", 0.0)
    one = Exporter(str(tmp_path / "control"))
    for method, path, status in (
        ("GET", "/", 404), ("GET", "/v1/flows", 404), ("POST", "/v1/ports", 404),
        ("DELETE", "/v1/ports/1", 404), ("GET", "/metrics/", 404), ("GET", "//metrics", 404),
        ("POST", "/metrics", 405), ("DELETE", "/metrics", 405), ("OPTIONS", "/metrics", 405),
    ):  # fmt: skip
        refused = ask(one, method, path, b"{}")
        assert refused.status == status
        assert json.loads(refused.body)["message"]
    assert asked == []
    for method, path in (("GET", "/metrics"), ("HEAD", "/metrics"), ("GET", "/metrics?a=b")):
        assert ask(one, method, path).status == 200
    assert asked == [str(tmp_path / "control")] * 3


def test_however_often_it_is_asked_hardsplice_is_asked_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def once(path: str) -> str:
        asked.append(path)
        return "x 1\n"

    monkeypatch.setattr(exporter, "FRESH_SECONDS", 3600.0)
    monkeypatch.setattr(exporter, "collect", once)
    one = Exporter("control")
    answers = [ask(one, "GET", "/metrics").body for _ in range(100)]
    assert set(answers) == {b"x 1\n"}
    assert len(asked) == 1


def test_the_samples_of_several_stand_together_and_say_whose_they_are(
    tmp_path: Path, serve: Serve
) -> None:
    for name in ("blue.metrics", "green.metrics"):
        serve(tmp_path / name)
    serve(tmp_path / "blue.sock")
    (tmp_path / "red.metrics").touch()
    text = collect(str(tmp_path))
    names = [line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    families = {one.name: one for one in text_string_to_metric_families(text)}
    up = {one.labels["socket"]: one.value for one in families["hardsplice_up"].samples}
    where = {name: str(tmp_path / f"{name}.metrics") for name in ("blue", "green", "red")}
    assert up == {where["blue"]: 1, where["green"]: 1, where["red"]: 0}
    assert families["hardsplice_accepted"].type == "counter"
    samples = [
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in families.values()
        for sample in family.samples
    ]
    assert len(samples) == len(set(samples))
    found = {dict(labels)["socket"] for name, labels in samples if name != "hardsplice_up"}
    assert found == {where["blue"], where["green"]}


def test_one_socket_may_be_named(tmp_path: Path, serve: Serve) -> None:
    serve(tmp_path / "control")
    text = collect(str(tmp_path / "control"))
    assert f'hardsplice_up{{socket="{tmp_path}/control"}} 1' in text
    assert f'hardsplice_up{{socket="{tmp_path}/none"}} 0' in collect(str(tmp_path / "none"))
    assert collect(str(tmp_path)) == "", "nobody is there"


def test_one_that_hangs_does_not_hide_the_others(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf_path = str(tmp_path / "a.metrics")

    def client(path: str, seconds: float) -> Client:
        assert seconds == ANSWER_SECONDS
        return Client(path, 0.01 if path == deaf_path else seconds)

    monkeypatch.setattr(exporter, "Client", client)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(deaf_path)
        deaf.listen()
        serve(tmp_path / "b.metrics")
        text = collect(str(tmp_path))
    assert f'hardsplice_up{{socket="{tmp_path}/a.metrics"}} 0' in text
    assert f'hardsplice_up{{socket="{tmp_path}/b.metrics"}} 1' in text


@given(st.lists(st.text(max_size=60), max_size=4), st.text(max_size=20))
def test_whatever_answers_nothing_is_passed_on_but_metrics(lines: list[str], name: str) -> None:
    """What is at a path may be somebody else's."""
    text = merge({name: "\n".join(lines)})
    for line in text.split("\n"):
        assert not line or line.startswith(("# HELP ", "# TYPE ", "hardsplice_"))


@pytest.mark.parametrize("text", ["# HELP", "# HELP ", "# TYPE hardsplice_x", "hardsplice_x{"])
def test_half_a_line_is_no_error(text: str) -> None:
    merge({"x": text})


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:0"])
def test_where_it_listens(text: str) -> None:
    with open_listener(text) as one:
        assert one.getsockname()[0] in text
        assert not os.get_blocking(one.fileno())


@pytest.mark.parametrize(
    "text", ["", "9820", ":9820", "localhost:9820", "127.0.0.1", "127.0.0.1:", "::1:9820",
             "[127.0.0.1]:1", "127.0.0.1:65536", "127.0.0.1:x"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(HardspliceError, match="no address with a port"):
        open_listener(text)


def test_it_must_be_told_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    with pytest.raises(HardspliceError, match="nobody says where"):
        exporter.run("control", None)
