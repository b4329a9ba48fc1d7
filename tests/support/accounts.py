# SPDX-License-Identifier: GPL-2.0-or-later
"""A user of the tests' own who has an account and subordinate ids, though not on this machine: in
a mount namespace, where other files lie upon those of /etc.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.netns import Identity

NAMES = ("passwd", "group", "subuid", "subgid")
FIRST = 3_000_000_000  # of the subordinate ids: nobody's on any machine
_MOUNT = (
    f'for f in {" ".join(NAMES)}; do mount --bind "$0/$f" "/etc/$f" || exit 99; done; exec "$@"'
)


@dataclass(frozen=True)
class Account(Identity):
    """Such a user; ``folder`` has the files, and ``home`` is theirs."""

    folder: Path = Path()
    as_root: bool = False

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def wrap(self, argv: list[str]) -> list[str]:
        who = argv if self.as_root else super().wrap(argv)
        private = ["unshare", "--mount", "--propagation", "private"]
        return [*private, "sh", "-c", _MOUNT, str(self.folder), *who]

    @property
    def root(self) -> Account:
        """Root, where there is such a user."""
        return Account("root", self.uid, self.folder, as_root=True)

    def give(self, kind: str, line: str) -> None:
        """What /etc/subuid or /etc/subgid say."""
        (self.folder / f"sub{kind}").write_text(f"# of others\nsomebody:1:2\n{line}\n")


@contextlib.contextmanager
def account(name: str = "hs-tests") -> Iterator[Account]:
    """It needs root, and files of /etc that something can be mounted upon."""
    uid = 40_000 + os.getpid() % 20_000
    folder = Path(tempfile.mkdtemp(prefix="hardsplice-tests-"))
    folder.chmod(0o755)
    made = Account(name, uid, folder)
    try:
        for one in NAMES:
            shutil.copy(f"/etc/{one}", folder / one)
        made.home.mkdir()
        os.chown(made.home, uid, uid)
        with open(folder / "passwd", "a") as passwd, open(folder / "group", "a") as group:
            passwd.write(f"{name}:x:{uid}:{uid}::{made.home}:/bin/sh\n")
            group.write(f"{name}:x:{uid}:\n")
        made.give("uid", f"{name}:{FIRST}:65536")
        made.give("gid", f"{uid}:{FIRST}:65536")
        yield made
    finally:
        shutil.rmtree(folder)
