# SPDX-License-Identifier: GPL-2.0-or-later
"""The packaged units on a machine that boots, with their own settings: start, traffic, reload,
restart and stop.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hardsplice.cli.values import WORKERS_MAX
from tests.service.booted import CLIENT, EXAMPLES, configure, passes, process, renewed
from tests.support.nspawn import PACKAGED, Machine
from tests.support.stream import eventually

pytestmark = pytest.mark.timeout(120)

SERVICES = sorted(path.name for path in PACKAGED.glob("*.service"))


@pytest.mark.parametrize("kind", ["named", "of_service"])
def test_start_traffic_reload_restart_and_stop(
    machine: Machine, kind: str, request: pytest.FixtureRequest
) -> None:
    unit: str = request.getfixturevalue(kind)
    port = {"named": 8080, "of_service": 8081}[kind]
    machine.control("start", unit)
    passes(machine, port)
    before = process(machine, unit)
    machine.control("reload", unit)
    eventually(lambda: machine.is_ready(unit), lambda: machine.journal(unit))
    assert process(machine, unit) == before
    passes(machine, port)
    machine.control("restart", unit)
    assert process(machine, unit) != before
    passes(machine, port)
    assert "not in force" not in machine.journal(unit), "the unit leaves the sandbox whole"
    machine.control("stop", unit)
    assert machine.property(unit, "Result") == "success"
    assert machine.run("python3", "-c", CLIENT, str(port))[0] != 0


def test_a_reload_takes_neither_a_right_nor_the_same_user(machine: Machine, named: str) -> None:
    configure(machine, "blue", "OPTIONS=-t 127.0.0.1/8080:8000 --runas nobody")
    machine.control("start", named)
    machine.control("reload", named)
    eventually(lambda: machine.is_ready(named), lambda: machine.journal(named))
    passes(machine, 8080)
    for name in SERVICES:
        text = (PACKAGED / name).read_text()
        assert "CAP_KILL" not in text
        assert "/bin/kill" not in text


def test_each_instance_is_a_user_of_its_own(machine: Machine) -> None:
    """Some of the kernel's limits are counted by user: one instance must not starve another.
    Whatever its namespace is called.
    """
    names = ("green", "green.v2", "cni-12345678-1234-1234-1234-123456789abc")
    ids = set()
    for name in names:
        machine.control("start", f"netns@{name}")
        configure(machine, name, "OPTIONS=-t none -T 9000")
        machine.control("start", f"hardsplice@{name}")
        pid = process(machine, f"hardsplice@{name}")
        said = machine.run("cat", f"/proc/{pid}/status")[1]
        ids |= {*re.findall(r"^Uid:\t(\d+)", said, re.MULTILINE)}
        ids |= {*re.findall(r"^Gid:\t(\d+)", said, re.MULTILINE)}
    for name in names:
        machine.control("stop", f"hardsplice@{name}", f"netns@{name}")
    assert len(ids) == len(names), "each another one"
    assert not ids & {"0", "65534"}


def test_ports_that_were_added_are_kept_over_a_restart(machine: Machine, named: str) -> None:
    path = "/run/hardsplice/blue.sock"
    configure(machine, "blue", f"OPTIONS=-t 127.0.0.1/8080:8000 --control {path}")
    machine.control("start", named)
    ctl = ("hardsplicectl", "--socket", path)
    status, said = machine.run(*ctl, "ports", "add", "127.0.0.1/8085:8000")
    assert status == 0, said
    passes(machine, 8085)
    eventually(lambda: machine.property(named, "NFileDescriptorStore") == "2", "it was not kept")
    for words in (("restart", named), ("kill", "--signal=KILL", named)):
        before = process(machine, named)
        machine.control(*words)
        eventually(lambda: renewed(machine, {before}, named), "it does not come back")  # noqa: B023
        passes(machine, 8080)
        passes(machine, 8085)
    listed = json.loads(machine.run(*ctl, "--json", "ports")[1])
    (number,) = [port["id"] for port in listed if port["source"] == "control"]
    assert machine.run(*ctl, "ports", "remove", str(number))[0] == 0
    eventually(lambda: machine.property(named, "NFileDescriptorStore") == "1", "it is kept on")
    machine.control("restart", named)
    assert machine.run("python3", "-c", CLIENT, "8085")[0] != 0


# --- what is served comes and goes ----------------------------------------------------------------


def test_a_service_that_comes_back_is_served_again(machine: Machine, of_service: str) -> None:
    machine.control("enable", of_service)
    machine.control("restart", "web")
    eventually(lambda: machine.is_ready(of_service), lambda: machine.journal(of_service))
    for words in (("restart", "web"), ("kill", "--signal=KILL", "web")):
        passes(machine, 8081)
        before = {process(machine, unit) for unit in (of_service, "web")}
        machine.control(*words)
        eventually(lambda: renewed(machine, before, of_service, "web"), "the old ones are there")  # noqa: B023
        passes(machine, 8081)
    machine.control("stop", "web")
    eventually(
        lambda: machine.property(of_service, "ActiveState") == "inactive", "it outlives its service"
    )
    machine.control("disable", of_service)


def test_a_service_with_an_escaped_name_is_served(machine: Machine) -> None:
    """Its options are where the unit says."""
    configure(machine, "ax2db", "OPTIONS=-t 127.0.0.1/8085:8000")
    machine.control("start", r"a\x2db.service")
    machine.control("start", r"hardsplice-service@a\x2db.service")
    passes(machine, 8085)
    machine.control("stop", r"a\x2db.service")


def test_a_container_is_served_by_its_pid_file(machine: Machine) -> None:
    machine.control("start", "box")
    configure(machine, "box", "OPTIONS=-t 127.0.0.1/8083:8000", "PIDFILE=/run/box.pid")
    machine.control("start", "hardsplice-service@box")
    passes(machine, 8083)
    machine.control("stop", "box")
    assert machine.property("hardsplice-service@box", "ActiveState") == "inactive"


def test_beside_a_container_that_ends_hardsplice_is_not_its_service(machine: Machine) -> None:
    """In the background, from ExecStartPost= of a unit with NotifyAccess=all, as Quadlet writes
    them: were it taken for the main process, Restart= would wait for its end.
    """
    machine.control("start", "pod")
    passes(machine, 8084)
    before = process(machine, "pod")
    assert "unshare" in machine.run("cat", f"/proc/{before}/cmdline")[1]
    assert machine.property("pod", "StatusText") == ""
    machine.run("kill", "-KILL", before)
    eventually(lambda: renewed(machine, {before}, "pod"), lambda: machine.journal("pod"))
    assert machine.property("pod", "NRestarts") == "1"
    passes(machine, 8084)
    machine.control("stop", "pod")


def test_a_namespace_that_is_made_anew_is_served_anew(machine: Machine, named: str) -> None:
    """By the example."""
    drop_in = "hardsplice@.service.d/netns.conf"
    machine.write(f"/run/systemd/system/{drop_in}", (EXAMPLES / drop_in).read_text())
    machine.control("daemon-reload")
    machine.control("enable", named, "echo@blue")
    machine.control("start", named)
    for _ in range(2):
        before = process(machine, named)
        machine.control("restart", "netns@blue")
        eventually(
            lambda: renewed(machine, {before}, named),  # noqa: B023
            lambda: machine.journal(named),
        )
        passes(machine, 8080)
    machine.control("stop", "netns@blue")
    assert machine.property(named, "ActiveState") == "inactive"
    machine.control("start", "netns@blue")
    eventually(lambda: machine.is_ready(named), lambda: machine.journal(named))
    machine.control("disable", named, "echo@blue")
    machine.run("rm", f"/run/systemd/system/{drop_in}")
    machine.control("daemon-reload")


# --- the units themselves -------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_understands_each_unit(machine: Machine, name: str) -> None:
    unit = name.replace("@.", "@web.")
    assert machine.run("systemd-analyze", "verify", "--man=no", unit) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_what_systemd_thinks_of_the_exposure(machine: Machine, name: str) -> None:
    """At most 3.5, of which a good part is what set-up needs."""
    said = machine.run("systemd-analyze", "security", "--no-pager", name.replace("@.", "@web."))[1]
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found, said
    assert float(found[1]) <= 3.5, said


@pytest.mark.parametrize("name", [name for name in SERVICES if "@" in name])
def test_there_may_be_as_many_tasks_as_workers_take(name: str) -> None:
    text = (PACKAGED / name).read_text()
    (limit,) = re.findall(r"^TasksMax=(\d+)$", text, re.MULTILINE)
    assert int(limit) >= 2 + 2 * WORKERS_MAX


def test_the_packages_have_every_unit() -> None:
    root = Path(__file__).parents[2] / "packaging"
    units = {path.name for path in PACKAGED.iterdir() if path.is_file()}
    for listed in ("debian/rules", "rpm/hardsplice.spec"):
        assert units == set(
            re.findall(r"packaging/systemd/(\S+\.(?:service|socket)) ", (root / listed).read_text())
        )
