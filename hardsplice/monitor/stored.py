# SPDX-License-Identifier: GPL-2.0-or-later
"""Listeners that the service manager keeps while hardsplice is restarted: those that options ask
for, which it gets in set-up (app/restart.py), and those of ports that are added at run time, which
come back as such. If it keeps none, the latter are gone after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hardsplice.ipc.sd_notify import Notifier
from hardsplice.model.forward import Forward, Source
from hardsplice.net.inherited import added_name


class Store:
    """What the service manager keeps of ports, by their numbers."""

    def __init__(
        self, notifier: Notifier, room: int, kept: dict[int, str], report: Callable[[str], None]
    ) -> None:
        """It keeps ``room`` listeners, and has those in ``kept``, each with its name."""
        self._notifier = notifier
        self._room = room
        self._kept = kept
        self._report = report

    def added(self, port: Forward, fd: int) -> None:
        """A port was added, with this listener."""
        if port.source is not Source.CONTROL or not self._room:
            return
        if len(self._kept) >= self._room:
            self._report(f"{_what(port)}: raise FileDescriptorStoreMax=")
            return
        name = added_name(port)
        if self._notifier.keep(name, fd):
            self._kept[port.id] = name
        else:
            self._report(_what(port))

    def ports(self) -> Sequence[int]:
        """The numbers of the ports whose listeners it keeps."""
        return tuple(self._kept)

    def removed(self, port_id: int) -> None:
        """A port was removed."""
        name = self._kept.pop(port_id, None)
        if name is not None:
            self._notifier.drop(name)


def _what(port: Forward) -> str:
    return f"the service manager does not keep the listener of {port.where}"
