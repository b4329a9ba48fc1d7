# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packages in clean roots of its releases: built as Debian builds them, twice the same;
checked by that release's lintian, and by sid's; installed with apt, used by the system's Python as
root and as an ordinary user and under a systemd that boots; removed, with nothing left.

`make test-packages`; what runs in there is packaging/debian/tests, which also is what autopkgtest
runs.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.support.clean import APT, INSTALL, SUITES, builder, succeeds
from tests.support.nspawn import Tree
from tools import clean_root, deb, dist
from tools.clean_root import BUILDER

ROOT = Path(__file__).parents[2]
# What apt, dpkg and systemd remember, netbase leaves, and dh_apparmor removes if it is empty.
OTHERS = (
    "dev", "proc", "run", "sys", "tmp", "srv", "etc/apparmor.d/disable", "etc/hosts",
    "etc/ld.so.cache", "var/cache", "var/lib/apt", "var/lib/dpkg", "var/lib/systemd", "var/log",
)  # fmt: skip

pytestmark = [pytest.mark.packages, pytest.mark.root, pytest.mark.timeout(1200)]


def files(root: Path) -> set[str]:
    """What is in a root, but for OTHERS; folders end in a slash."""
    found = set()
    for place, folders, names in os.walk(root):
        here = os.path.relpath(place, root)
        for name in (*names, *(f"{name}/" for name in folders)):
            found.add(os.path.normpath(f"{here}/{name}") + ("/" if name.endswith("/") else ""))
        folders[:] = [one for one in folders if os.path.normpath(f"{here}/{one}") not in OTHERS]
    return {path for path in found if path.rstrip("/") not in OTHERS}


# Whatever came with it goes, too, although others suggest it.
UNNEEDED = [f"--option=APT::AutoRemove::{one}Important=false" for one in ("Recommends", "Suggests")]
METRICS = "http://127.0.0.1:9820/metrics"
SCRAPE = ("python3", "-c", f"from urllib.request import *; print(urlopen('{METRICS}').status)")
INSTANCES = ("hardsplice@blue.service", "hardsplice-service@web.service")
PROFILES = {"etc/apparmor.d/hardsplice", "etc/apparmor.d/local/hardsplice"}
# The same as an older version, of which a configuration file has changed since
OLDER = """
dpkg-deb --raw-extract /srv/hardsplice.deb /srv/older
sed -i 's/^Version: .*/Version: 0.1.0-1/' /srv/older/DEBIAN/control
echo "of 0.1" >>/srv/older/etc/hardsplice/README
dpkg-deb --build /srv/older /srv/older.deb
"""
INSTALL_OLDER = (*INSTALL[:-1], "/srv/older.deb")
SCRIPTS = "/var/lib/dpkg/info/hardsplice"
PURGE = (*APT, *UNNEEDED, "--purge", "--autoremove", "remove", "hardsplice")


# What is uploaded is checked by sid's.
@pytest.mark.parametrize("suite", [*SUITES, "sid"], indirect=True, scope="session")
def test_lintian_has_no_complaint(suite: str, built: Path, folder: Path) -> None:
    root = clean_root.made(builder(suite), folder / "root")
    shutil.copytree(built, root / "srv/dist")
    (changes,) = (root / "srv/dist").glob("*.changes")
    words = ("lintian", "--fail-on=warning", "--info", "--pedantic", "--display-info")
    said = succeeds(root, *words, f"/srv/dist/{changes.name}", user=BUILDER)
    print(said)


def test_the_package_is_the_same_from_a_build_of_another_umask_that_runs_its_tests(
    suite: str, built: Path, folder: Path
) -> None:
    root = clean_root.made(builder(suite), folder / "root")
    umask = os.umask(0o077)
    try:
        files = deb.build_in(root, ROOT, folder / "dist")
    finally:
        os.umask(umask)
    kept = (".deb", ".dsc", ".tar.xz", ".tar.gz")
    compared = [path for path in files if path.name.endswith(kept)]
    assert len(compared) == len(kept)
    for path in compared:
        assert path.read_bytes() == (built / path.name).read_bytes(), path.name


def test_its_source_is_the_released_one(built: Path, folder: Path) -> None:
    (released,) = (path for path in dist.build(ROOT, folder) if path.name.endswith(".tar.gz"))
    (original,) = built.glob("*.orig.tar.gz")
    assert original.read_bytes() == released.read_bytes()


NEEDS = "import importlib.metadata as m; print(*m.requires('hardsplice'), sep='\\n')"


def test_it_is_installed_used_and_removed(clean: Path) -> None:
    before = files(clean)
    succeeds(clean, *INSTALL)
    needs = succeeds(clean, "python3", "-c", NEEDS).splitlines()
    assert all(" extra == " in one for one in needs), needs  # Debian has no such distributions
    assert not any(path.endswith("dist-info/RECORD") for path in files(clean) - before)
    succeeds(clean, "systemctl", "enable", *INSTANCES)
    said = succeeds(clean, "/srv/tests/forwarding")
    assert "bytes went in and out" in said
    said = succeeds(clean, "/srv/tests/forwarding", user=BUILDER)
    assert f" uid {BUILDER} " in said
    assert "bytes went in and out" in said
    succeeds(clean, *APT, "remove", "hardsplice")
    left = {path for path in files(clean) if "hardsplice" in path}
    assert left - PROFILES == {"etc/hardsplice/", "etc/hardsplice/README"}
    succeeds(clean, *INSTALL)
    succeeds(clean, *PURGE)
    assert files(clean) == before


def test_its_services_run_and_go_with_it(clean: Path) -> None:
    succeeds(clean, "sh", "-ec", OLDER)
    system = Tree(clean)
    try:
        before = files(clean)
        status, said = system.run(*INSTALL_OLDER, within=300)
        assert status == 0, said
        status, said = system.run("/srv/tests/services", within=300)
        assert status == 0, said
        assert "the exporter has its metrics" in said
        assert "engines' programs serve" in said
        system.control("enable", "--now", "hardsplice-exporter.socket")
        system.run("ip", "netns", "add", "blue")
        system.write("/etc/hardsplice/blue.conf", "OPTIONS=-t 127.0.0.1/8080:80\n")
        system.control("enable", *INSTANCES)
        system.control("start", "hardsplice@blue")
        assert system.run(*SCRAPE) == (0, "200")
        status, before_upgrade = system.run("pgrep", "hs-host")
        assert status == 0
        status, said = system.run(*INSTALL, within=300)
        assert status == 0, said
        assert "of 0.1" not in (clean / "etc/hardsplice/README").read_text()
        for words in (("postinst", "configure", "0.1.0-1"), ("prerm", "upgrade", "0.3.0-1")):
            status, said = system.run(f"{SCRIPTS}.{words[0]}", *words[1:], within=60)
            assert status == 0, said  # also where an upgrade was interrupted
        assert system.run("pgrep", "hs-host") == (0, before_upgrade)
        assert system.run(*SCRAPE) == (0, "200"), "the exporter didn't outlive an upgrade"
        status, said = system.run(*PURGE, within=300)
        assert status == 0, said
        assert system.run("pgrep", "hs-")[0] == 1, "something runs on"
        assert system.run("systemctl", "is-active", "hardsplice-exporter.socket")[0] != 0
        (clean / "etc/hardsplice/blue.conf").unlink()  # the administrator's
        (clean / "etc/hardsplice").rmdir()
        assert files(clean) == before
    finally:
        system.close()


def test_autopkgtest_runs_its_tests(suite: str, built: Path, folder: Path) -> None:
    root = clean_root.made(builder(suite), folder / "root")
    shutil.copytree(built, root / "srv/dist")
    (package,) = (path.name for path in built.glob("*.deb"))
    (source,) = (path.name for path in built.glob("*.dsc"))
    words = ("--no-built-binaries", "--ignore-restrictions=isolation-machine", "--user=builder")
    given = (f"/srv/dist/{source}", f"/srv/dist/{package}", "--", "null")
    system = Tree(root)
    try:
        status, said = system.run("autopkgtest", *words, *given, within=300)
        assert status == 0, said
        assert re.search(r"^forwarding +PASS$", said, re.MULTILINE), said
        assert re.search(r"^services +PASS$", said, re.MULTILINE), said
    finally:
        system.close()
