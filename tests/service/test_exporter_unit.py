# SPDX-License-Identifier: GPL-2.0-or-later
"""Prometheus' way to the metrics: the packaged exporter, on a machine that boots."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.booted import configure, passes, process
from tests.support.nspawn import Machine
from tests.support.stream import eventually

pytestmark = pytest.mark.timeout(120)

FETCH = """import http.client, sys
client = http.client.HTTPConnection("127.0.0.1", 9820, timeout=10)
client.request(*sys.argv[1:])
answer = client.getresponse()
print(answer.status)
print(answer.read().decode(), end="")
"""


def fetch(machine: Machine, *words: str) -> tuple[int, str]:
    """What the exporter answers: the status, the text."""
    status, said = machine.run("python3", "-c", FETCH, *words)
    assert status == 0, said + machine.journal("hardsplice-exporter")
    number, _, text = said.partition("\n")
    return int(number), text + "\n"


def test_prometheus_has_the_metrics_of_all_instances_and_nobody_has_more(
    machine: Machine, named: str, of_service: str
) -> None:
    for name, port in (("blue", 8080), ("web", 8081)):
        sockets = "--control /run/hardsplice/{0}.sock --metrics /run/hardsplice/{0}.metrics"
        options = f"-t 127.0.0.1/{port}:8000 {sockets.format(name)}"
        configure(machine, name, f"OPTIONS={options}")
    machine.control("start", "hardsplice-exporter.socket", named, of_service)
    passes(machine, 8080)
    status, text = fetch(machine, "GET", "/metrics")
    assert status == 200
    families = {one.name: one for one in text_string_to_metric_families(text)}
    up = {one.labels["socket"]: one.value for one in families["hardsplice_up"].samples}
    assert up == {"/run/hardsplice/blue.metrics": 1, "/run/hardsplice/web.metrics": 1}
    accepted = {
        one.labels["namespace"]: one.value
        for one in families["hardsplice_accepted"].samples
        if (one.labels["direction"], one.labels["protocol"]) == ("inbound", "tcp")
    }
    assert accepted == {"blue": 1, process(machine, "web"): 0}
    assert fetch(machine, "HEAD", "/metrics") == (200, "\n")
    spec = json.dumps({"proto": "tcp", "parentPort": 8086, "childPort": 8000})
    assert fetch(machine, "POST", "/v1/ports", spec)[0] == 404
    assert fetch(machine, "GET", "/v1/flows")[0] == 404
    assert fetch(machine, "DELETE", "/metrics")[0] == 405
    said = machine.run("cat", f"/proc/{process(machine, 'hardsplice-exporter')}/status")[1]
    assert re.search(r"^Uid:\t(?!0\t)", said, re.MULTILINE), "it is not root"
    assert re.search(r"^CapBnd:\t0+$", said, re.MULTILINE), "and can't become it"
    machine.control("stop", of_service)
    eventually(
        lambda: (
            'hardsplice_up{socket="/run/hardsplice/web.metrics"} 0'
            in fetch(machine, "GET", "/metrics")[1]
        ),
        "one that is gone is said to be there",
    )
    machine.control("stop", "hardsplice-exporter.socket", "hardsplice-exporter.service")
