# SPDX-License-Identifier: GPL-2.0-or-later
"""The AppArmor profile: in the form that Debian's and Ubuntu's other programs with user namespaces
have theirs, and one that AppArmor's parser takes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.packaged import engine_programs
from tools import clean_root
from tools.clean_root import Recipe

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "packaging/apparmor/hardsplice"
# As /etc/apparmor.d/rootlesskit and /etc/apparmor.d/mmdebstrap have it, in AppArmor 4
FORM = """
abi <abi/4.0>,
include <tunables/global>

profile NAME PROGRAMS flags=(unconfined) {
  userns,

  # Site-specific additions and overrides. See local/README for details.
  include if exists <local/NAME>
}
"""
PROGRAMS = (
    "/usr/{bin/hardsplice,lib{,exec}/cni/hardsplice,"
    "libexec/hardsplice/{docker-proxy,oci-hook,rootlessport}}"
)
PARSE = ("apparmor_parser", "--skip-kernel-load", "--skip-cache")


def test_it_has_the_usual_form() -> None:
    text = PROFILE.read_text()
    code = text[text.index("\nabi ") :]
    assert code == FORM.replace("NAME", "hardsplice").replace("PROGRAMS", PROGRAMS)
    assert all(line.startswith("#") for line in text[: -len(code)].splitlines())


def test_its_programs_are_those_of_the_packages_that_create_namespaces() -> None:
    """hardsplicectl creates none."""
    paths = subprocess.run(
        ["bash", "-c", f"echo {PROGRAMS}"], capture_output=True, text=True, check=True
    ).stdout.split()
    installed = {"/usr/bin/hardsplice", *engine_programs()}
    assert set(paths) == installed
    comments = PROFILE.read_text().partition("\nabi ")[0]
    for path in installed:
        folder, _, name = path.removeprefix("/usr/").rpartition("/")
        assert re.search(rf"^#     .*{re.escape(folder)}/.*{name}  +\w", comments, re.MULTILINE), (
            path
        )


def test_this_machines_parser_takes_it() -> None:
    if shutil.which(PARSE[0]) is None or not Path("/etc/apparmor.d/abi/4.0").exists():
        pytest.skip("there is no AppArmor 4 here")
    subprocess.run([*PARSE, PROFILE], check=True)


@pytest.mark.packages
@pytest.mark.root
@pytest.mark.timeout(400)
def test_trixies_parser_takes_it_as_it_does_the_others(tmp_path: Path) -> None:
    root = clean_root.made(Recipe("trixie", "apt", ("apparmor",)), tmp_path / "root")
    profiles = root / "etc/apparmor.d"
    shutil.copy(PROFILE, profiles)
    inside = ("chroot", str(root), *PARSE)
    for name in ("hardsplice", "rootlesskit"):
        path = f"/etc/apparmor.d/{name}"
        done = subprocess.run(
            [*inside, "--names", path], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{name}\n"
        compiled = subprocess.run([*inside, "--stdout", path], capture_output=True, check=True)
        assert name.encode() in compiled.stdout
        text = (profiles / name).read_text()
        code = text[text.index("\nabi ") :]
        programs = PROGRAMS if name == "hardsplice" else f"/usr/bin/{name}"
        assert code == FORM.replace("NAME", name).replace("PROGRAMS", programs)
    broken = re.sub("userns,", "userns nothing,", PROFILE.read_text())
    (profiles / "hardsplice").write_text(broken)
    command = [*inside, "/etc/apparmor.d/hardsplice"]
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode != 0
    shutil.rmtree(root)
