# SPDX-License-Identifier: GPL-2.0-or-later
"""How the namespace monitor joins the namespace that is served, where somebody else may be root.

Root in a user namespace has all power over the processes in it: it may trace them, and so gets
everything that they have open and see, unless they are not dumpable. So:

- a process that has the right to do so joins the network namespace alone. That gives no other
  process power over it; it stays in the user namespace of the host;
- an ordinary user has that right only inside the user namespace. This process enters it undumpable,
  with nothing open but what it needs (monitor/namespace.py takes care of that), under a Landlock
  layer that denies all files, and without a change of user before or after, at which the kernel
  might make it dumpable again (fs.suid_dumpable; commit_creds, kernel/cred.c). The first thing that
  it does there is to leave the file system. After that it opens nothing.

Its ties to the host monitor are renewed after each change of credentials.
"""

from __future__ import annotations

import os
from functools import partial

from hardsplice.ipc import lifeline
from hardsplice.kernel import prctl
from hardsplice.kernel.record import NamedTuple
from hardsplice.net import namespaces
from hardsplice.net.namespaces import Served
from hardsplice.sandbox import empty_root, landlock, rights, steps
from hardsplice.sandbox.steps import Lockdown, Step


class Tie(NamedTuple):
    """What ends a process together with its monitor, ``parent``, and makes it undumpable. The
    kernel clears each part at some changes of credentials.
    """

    parent: int
    line: int

    def renew(self) -> None:
        """Make sure of all of it; the process ends where the monitor has gone."""
        prctl.set_dumpable(0)
        steps.die_with(self.parent)
        lifeline.hang_on(self.line, group=True)  # this process leads one: monitor/namespace.py


def needs_empty_root(served: Served) -> bool:
    """Whether joining needs a folder that is created before (sandbox/empty_root.py)."""
    return served.user is not None and not rights.may_make_namespaces()


def join(served: Served, folder: int | None, lockdown: Lockdown, tie: Tie, abi: int) -> None:
    """Move this process into the network namespace that is served, in the way that its rights
    allow. ``folder`` is the empty root where one is needed; ``abi`` is Landlock's version.
    HardspliceError where it can't be done.
    """
    tie.renew()
    lockdown.run(steps.first_steps(0))
    if folder is None:
        may = rights.may_make_namespaces()
        if may or served.is_own:
            lockdown.run(steps.leaving_steps(new_user_namespace=not may))
        if not served.is_own:
            namespaces.join_network(served)
        return
    os.fchdir(folder)
    ruleset = landlock.no_files(abi)
    if ruleset is not None:
        lockdown.run([steps.restriction("deny files by Landlock", ruleset)])
        os.close(ruleset)
    namespaces.join_user(served)
    tie.renew()
    enter = Step(empty_root.LEAVE, partial(empty_root.enter, folder))
    lockdown.run([enter, *steps.separating_steps()])
    namespaces.join_network(served)
