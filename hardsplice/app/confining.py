# SPDX-License-Identifier: GPL-2.0-or-later
"""How hardsplice's processes are confined, according to the options: the layer that all of them
have, and the parts of each monitor's lock-down.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from hardsplice.app import allowed_ports
from hardsplice.app.opening import Opened
from hardsplice.model.direction import Direction
from hardsplice.sandbox import landlock, steps
from hardsplice.sandbox.confinement import Confinement
from hardsplice.sandbox.steps import Lockdown


def confine_signals(opened: Opened, say: Callable[[str], None]) -> Sequence[str]:
    """Confine the signals of all of hardsplice's processes to these: early, so that one layer holds
    them all; but after COMMAND's are forked, which must not be in it. Returns the layers that are
    lacking, in words; ``say`` gets the steps.
    """
    layers = [steps.no_new_privileges()]
    ruleset = landlock.scope(opened.before.landlock.abi)
    if ruleset is not None:
        layers.append(steps.restriction("confine signals by Landlock", ruleset))
    begun = Lockdown(strict=opened.options.sandbox == "strict", say=say)
    begun.run(layers)
    if ruleset is not None:
        os.close(ruleset)
    return tuple(begun.lacking)


def confinement(opened: Opened, direction: Direction, program: bytes) -> Confinement:
    """That of the monitor that keeps the relays of ``direction``, whose own filter is ``program``.
    It makes the other direction's listeners.
    """
    before = opened.before
    return Confinement(
        strict=opened.options.sandbox == "strict",
        landlock=before.landlock,
        connect=allowed_ports.connected_to(opened.options, direction),
        bind=allowed_ports.listened_on(opened.options, direction.opposite),
        user=before.user,
        last_capability=before.last_capability,
        program=program,
    )
