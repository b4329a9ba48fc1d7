# SPDX-License-Identifier: GPL-2.0-or-later
"""What both monitors are confined by, worked out in set-up: their lock-downs begin in the same way
(sandbox/steps.py has the steps), and the relays that they fork get the same Landlock ruleset.
"""

from __future__ import annotations

from collections.abc import Callable

from hardsplice.ipc import descriptors
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.errors import not_done
from hardsplice.model.identity import RunAs
from hardsplice.sandbox import landlock, steps
from hardsplice.sandbox.steps import Lockdown


class Confinement(NamedTuple):
    """A monitor's, and for the most part that of its relays."""

    strict: bool  # no layer may be lacking
    landlock: landlock.Support
    connect: frozenset[int] | None  # the ports that may be connected to; None for any
    bind: frozenset[int] | None  # the ports that may be listened on after lock-down; None for any
    user: RunAs | None  # the user that the monitor becomes; None: it doesn't change its user
    last_capability: int  # the highest that this kernel knows
    program: bytes  # the monitor's seccomp filter

    def begin(self, say: Callable[[str], None]) -> Lockdown:
        """A monitor's lock-down, which reports to ``say``; no step is taken yet. The relays'
        Landlock ruleset is put at its fixed descriptor. HardspliceError where a layer is missing
        that must not be.
        """
        begun = Lockdown(strict=self.strict, say=say)
        lacks = self.landlock.lacking
        if lacks and begun.strict:
            what, _, why = lacks[0].partition(": ")
            raise not_done(what, why, steps.NOT_STRICT)
        begun.lacking += lacks
        ruleset = self.ruleset(scoped=True)
        if ruleset is not None:
            descriptors.move(ruleset, descriptors.RULESET_FD)
        return begun

    def ruleset(self, sink: int = 0, *, scoped: bool) -> int | None:
        """A Landlock ruleset's descriptor: it allows connections to the targets and to the port
        ``sink``, if there is one, and binding where this monitor makes listeners at run time. With
        ``scoped`` no signals leave it. None where there is no Landlock.
        """
        connect = self.connect
        return landlock.ruleset(
            self.landlock.abi,
            connect=connect if connect is None or not sink else {*connect, sink},
            bind=self.bind,
            scoped=scoped,
        )
