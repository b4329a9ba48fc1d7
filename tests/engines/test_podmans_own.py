# SPDX-License-Identifier: GPL-2.0-or-later
"""Podman's own system tests that publish ports, unchanged, with our rootlessport: make test-podman.

They want an image from a registry; here it has busybox instead. What fails with Podman's own
rootlessport as well is not counted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.engines import Podman, need
from tests.support.netns import Identity
from tests.support.product import Program
from tests.support.published import runner

pytestmark = [
    pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root, pytest.mark.upstream,
]  # fmt: skip

SUPPORT = Path(__file__).parents[1] / "support"
FOLDER = "HARDSPLICE_PODMAN_TESTS"  # names the folder where they are
IMAGE = "quay.io/libpod/testimage:20220615"  # as those of Podman 4.3 call it
# By file: what is run of it, as an expression that bats(1) takes.
CHOSEN = {
    "030-run.bats": "podman run failed --rm",
    "200-pod.bats": "communicating between pods|AllTheOptions",
    "500-networking.bats": "port|network reload|network after restart",
    "700-play.bats": "podman kube play - (URL|hostport)",
}
# Of these, those of which we know that they can be passed here.
KNOWN = {
    "podman run failed --rm", "podman networking: port on localhost",
    "podman networking: port with --userns=keep-id for rootless or --uidmap=* for rootful",
    "podman network reload", "podman network connect/disconnect with port forwarding",
    "podman network after restart", "podman run port forward range",
    "podman pod - communicating between pods", "podman kube play - hostport",
}  # fmt: skip
# Of the image. Busybox's nc says nothing of who connects.
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "home/podman/testimage-id": "20220615\n",
    "home/podman/pause": "#!/bin/sh\nwhile :; do sleep 0.1; done\n",
    "bin/nc": """#!/bin/sh
case " $* " in *" -v "*) exec told "$@";; esac
exec busybox nc "$@"
""",
}
SECONDS = 900


def make_image(folder: Path) -> None:
    """The files of an image in which the tests find what they use."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    busybox = shutil.which("busybox") or ""
    shutil.copy(busybox, programs / "busybox")
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for name in {*listed.stdout.split(), "busybox-extras"} - {"busybox", "nc"}:
        (programs / name).symlink_to("busybox")
    subprocess.run(["cc", "-O", "-static", "-o", programs / "told", SUPPORT / "told.c"], check=True)
    for folders in ("dev", "etc", "home/podman", "proc", "root", "run", "sys", "tmp", "var/www"):
        (folder / folders).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    for name, text in FILES.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755 if text.startswith("#!") else 0o644)


def outcomes(podman: Podman, tests: Path) -> tuple[dict[str, bool], str]:
    """Whether each test that was not skipped passed, and all that they say."""
    make_image(podman.folder / "full")
    shutil.copytree(tests, podman.folder / "podman" / "test")
    (podman.folder / "dev").mkdir()
    podman.before = [str(SUPPORT / "own_dev.sh"), str(podman.folder / "dev")]
    script = f"""
        podman rmi --force hardsplice-test >/dev/null
        tar -C {podman.folder}/full -c . |
            podman import --change 'CMD ["/bin/sh"]' - {IMAGE} >/dev/null 2>&1
        export TMPDIR=$HOME BATS_TMPDIR=$HOME
        cd {podman.folder}/podman/test/system
    """
    for file, expression in CHOSEN.items():
        script += f"bats --tap --filter '{expression}' {file}\n"
    done = subprocess.run(
        podman.words(script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False, timeout=SECONDS / 2,
    )  # fmt: skip
    found = re.findall(r"^(not )?ok \d+ (.*?)( # skip.*)?$", done.stdout, re.MULTILINE)
    return {name.strip(): not failed for failed, name, skip in found if not skip}, done.stdout


@pytest.mark.timeout(SECONDS)
def test_ports(user: Identity, program: Program) -> None:
    tests = Path(os.environ.get(FOLDER) or pytest.skip(f"{FOLDER} names no folder with them"))
    need("bats", "ncat", "jq", "socat", "curl", "cc")
    with runner("podman", user, program) as podman:
        assert isinstance(podman, Podman)
        ours, said = outcomes(podman, tests)
    failed = {name for name, passed in ours.items() if not passed}
    if failed:
        with runner("podman", user, None) as podman:
            assert isinstance(podman, Podman)
            failed -= {name for name, passed in outcomes(podman, tests)[0].items() if not passed}
    assert failed == set(), said
    missing = {name for name in KNOWN if not ours.get(name)}
    assert missing == set(), said
