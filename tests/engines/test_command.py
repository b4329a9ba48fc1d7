# SPDX-License-Identifier: GPL-2.0-or-later
"""COMMAND inside a container of Podman's, with what that takes from a container by default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.engines import IMAGE, Podman
from tests.support.netns import Identity
from tests.support.product import Program

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@dataclass(frozen=True)
class Case:
    """Options of the container, and what is to come of it."""

    options: str
    says: tuple[str, ...] = ()
    refused: bool = False


MASKED = ("COMMAND has the /proc that is here", "--security-opt unmask=ALL")
CASES = {
    "by default": Case("", MASKED),
    "as another user": Case("--user 1000", MASKED),
    "with CAP_SYS_ADMIN": Case("--cap-add SYS_ADMIN", MASKED),
    "nothing masked": Case("--security-opt unmask=ALL"),
    "privileged": Case("--privileged"),
    "root without a right": Case("--cap-drop ALL", ("--cap-add SETFCAP",), refused=True),
    "without namespaces": Case(
        "--security-opt seccomp=$HOME/profile", ("forbids unshare", "seccomp=unconfined"),
        refused=True,
    ),
}  # fmt: skip
# Docker's default forbids unshare to whoever has no CAP_SYS_ADMIN, like this.
PROFILE = (
    '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": '
    '[{"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}'
)


@pytest.mark.root  # who makes the surroundings
@pytest.mark.parametrize("case", CASES)
def test_a_command_in_a_container(
    case: str, identity: Identity, user_directory: Path, program: Program
) -> None:
    podman, asked = Podman(identity, user_directory), CASES[case]
    with_python = podman.with_python(program.stage())
    hardsplice = "/usr/bin/python3 -m hardsplice -t 8080:80"
    done = podman.run(
        f"echo '{PROFILE}' > $HOME/profile\n"
        f"podman run --rm --network none {with_python} {asked.options} {IMAGE} "
        f"{hardsplice} sh -c 'id -u; cat /proc/self/comm'"
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("hardsplice: ")]
    told = "\n".join(line for line in said if "started by root" not in line)
    assert all(words in told for words in asked.says), done.stderr
    if asked.refused:
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, "0\ncat\n"), done.stderr
        assert bool(told) == bool(asked.says)
