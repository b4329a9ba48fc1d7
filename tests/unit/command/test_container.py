# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host monitor hears of a COMMAND's namespaces that can't be created."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hardsplice.command.container import Container
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.messages import Kind, Record
from hardsplice.model.errors import HardspliceError, text_of
from hardsplice.model.roles import GUARD, HOST, INIT

FATAL = Record(Kind.FATAL, text=text_of(HardspliceError("lock", "the securebits", "no")))


class Making:
    """As much of a Container as hears both processes, and their ends of the channels."""

    def __init__(self) -> None:
        self.made = Container.__new__(Container)
        self.made.channel, self.init = Channel.pair(HOST.name, INIT.name)
        self.report, self.guard = Channel.pair(HOST.name, GUARD.name)
        ended = {"has_ended": lambda _: True, "reap": lambda: 1 << 8}
        self.made._guard = cast(Any, SimpleNamespace(channel=self.report, **ended))

    def hears(self, channel: Channel, kind: Kind) -> str:
        """Of what the start ends while a record is waited for."""
        with pytest.raises(HardspliceError) as failure:
            self.made._expect(channel, kind)
        return str(failure.value)


@pytest.fixture
def making() -> Iterator[Making]:
    making = Making()
    yield making
    for channel in (making.made.channel, making.report):
        channel.close()


def test_what_the_guard_fails_of_is_heard_where_init_ended_first(making: Making) -> None:
    """Init ends with the guard, and has nothing to say then."""
    making.guard.send(FATAL)
    making.guard.close()
    making.init.close()
    assert making.hears(making.made.channel, Kind.NAMESPACES) == "cannot lock the securebits: no"


def test_what_init_fails_of_is_heard_where_the_guard_ended_first(making: Making) -> None:
    making.init.send(FATAL)
    making.init.close()
    making.guard.close()
    assert making.hears(making.report, Kind.READY) == "cannot lock the securebits: no"


@pytest.mark.parametrize("guard_is_locked", [False, True])
def test_an_end_without_a_word(making: Making, *, guard_is_locked: bool) -> None:
    """A guard that lives is not waited for, and that it is locked down is no reason."""
    if guard_is_locked:
        making.guard.send(Record(Kind.READY))
    making.init.close()
    said = making.hears(making.made.channel, Kind.NAMESPACES)
    assert said.startswith("cannot create namespaces: the process that makes them ended early: ")
    making.guard.close()
