# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay that was led astray in Python says what it tried, and ends: sandbox/tripwire.py."""

from __future__ import annotations

import contextlib

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# The product with a relay that does something once it serves, instead of waiting for events.
ASTRAY = """
import sys
from hardsplice.app.start import main
from hardsplice.relay.tcp import engine
from hardsplice.relay.udp import engine as datagram_engine
exec("def run(self, handlers): " + sys.argv.pop(1))
engine.Engine.run = datagram_engine.Engine.run = run
sys.exit(main(sys.argv[1:]))
"""


class Astray(Program):
    """The product with such a relay."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.code = code

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        return [*argv[: argv.index("-m")], "-c", ASTRAY, self.code], environment


@pytest.mark.parametrize("option", ["-t", "-u"])
@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("import this", "sealed: import this"),
        ("open('/etc/passwd')", "sealed: open /etc/passwd"),
        ("compile('1', 'x', 'eval')", "sealed: compile"),
        ("import socket; socket.socket()", "sealed: socket.__new__"),
    ],
)
def test_what_a_relay_tried_is_named(
    code: str, named: str, option: str, identity: Identity
) -> None:
    program = Astray(code)
    with contextlib.closing(program), Namespace(identity) as namespace:
        instance = Instance(
            program, identity, ["-f", option, f"127.0.0.1/{free_ports()}:80", str(namespace.pid)]
        )
        try:
            eventually(lambda: named in instance.messages(), instance.messages, within=5)
            assert "SIGSYS" not in instance.messages(), "the filter had nothing to do"
        finally:
            instance.kill(procfs.tree(instance.pid))
            instance.discard()
