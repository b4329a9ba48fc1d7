# SPDX-License-Identifier: GPL-2.0-or-later
"""The RPM package: built from the sdist by the spec file, with Debian's rpm and, since that has no
macros of Fedora's, the stand-ins of rpm_macros. What only Fedora's own tools can show isn't shown.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hardsplice import __version__
from tools import dist

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "packaging/rpm/hardsplice.spec"
MACROS = ("--load", str(Path(__file__).with_name("rpm_macros")))
SDIST = f"hardsplice-{__version__}.tar.gz"

# What rpmlint says in Debian's configuration, and not in Fedora's, or because of the stand-ins.
NO_FAULTS = {
    "no-signature": "whoever publishes a package signs it",
    "no-packager-tag": "the build system sets it",
    "no-group-tag": "Fedora has no groups",
    "no-buildroot-tag": "rpm sets it",
    "invalid-license": "the list is older than SPDX's names in Fedora",
    "no-dependency-on": "Fedora's generator adds python(abi), from the interpreter's own path",
    "manpage-not-compressed": "Fedora's brp-compress does it",
    "no-manual-page-for-binary": "it looks for compressed ones",
    "no-documentation": "of hardsplice-selinux: hardsplice has it",
    "dangerous-command-in-%pre": "in the macro of selinux-policy",
    "postin-without-ghost-file-creation": "semodule creates what the module becomes",
    "non-readable": "semodule creates it, for root",
}


def run(*command: str | Path) -> str:
    """What a command of rpm's prints. It finds the system's programs before those of others."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": os.environ["HOME"]}
    environment["NAME"] = "default"  # of Debian's SELinux policy
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=1100
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


Built = tuple[Path, Path, Path]


def build(top: Path, *options: str) -> Built:
    """Build the package, that of the SELinux module, and the source package."""
    (top / "SOURCES").mkdir()
    dist.build(ROOT, top / "dist")
    shutil.copy(top / "dist" / SDIST, top / "SOURCES")
    settings = {"_topdir": top, "_tmppath": top, "__python3": sys.executable}
    words = [w for name, value in settings.items() for w in ("--define", f"{name} {value}")]
    # The names of Fedora's packages mean nothing to this machine.
    run("rpmbuild", *MACROS, *words, "--nodeps", *options, "-ba", SPEC)
    package, module = sorted((top / "RPMS").rglob("*.rpm"))
    (source,) = (top / "SRPMS").glob("*.rpm")
    return package, module, source


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if shutil.which("rpmbuild") is None or not Path("/usr/share/selinux/devel").exists():
        pytest.skip("there is no rpmbuild, or no selinux-policy-dev")
    return build(tmp_path_factory.mktemp("rpm"), "--nocheck")


def test_the_spec_file_is_understood_and_leaves_no_macro_behind() -> None:
    if shutil.which("rpmspec") is None:
        pytest.skip("there is no rpmspec here")
    text = run("rpmspec", *MACROS, "-P", SPEC)
    assert f"/hardsplice-{__version__}.tar.gz\n" in text
    sections = "package description prep generate_buildrequires build install check changelog files"
    scripts = "pre post preun postun posttrans"
    words = (
        *sections.split(),
        *scripts.split(),
        *["config", "dir", "doc", "ghost", "license", "verify"],
    )
    kept = set(re.findall(r"%\w+", text))
    assert kept <= {f"%{name}" for name in words}, kept


def test_rpmlint_finds_no_fault(package: Built) -> None:
    if shutil.which("rpmlint") is None:
        pytest.skip("there is no rpmlint here")
    done = subprocess.run(
        ["rpmlint", *package, SPEC],
        env={"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"]},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    found = re.findall(r"^\S+?: [EW]: ([\w%-]+).*$", done.stdout, re.MULTILINE)
    assert "packages" in done.stdout
    assert set(found) <= set(NO_FAULTS), done.stdout


def test_it_needs_libseccomps_own_binding_and_nothing_of_pip(package: Built) -> None:
    needs = run("rpm", "-q", "--requires", "-p", package[0]).splitlines()
    assert "(python3-libseccomp or libseccomp-python)" in needs
    assert not any("pyseccomp" in need or "prctl" in need for need in needs)
    metadata = Path("/usr/lib/python3/site-packages") / f"hardsplice-{__version__}.dist-info"
    assert "Requires-Dist: pyseccomp" not in content(package[0], metadata / "METADATA")


def content(package: Path, path: Path) -> str:
    """A file of the package."""
    archive = subprocess.run(["rpm2cpio", package], stdout=subprocess.PIPE, check=True).stdout
    taken = ["cpio", "--extract", "--quiet", "--to-stdout", f".{path}"]
    return subprocess.run(taken, input=archive, capture_output=True, check=True).stdout.decode()


def test_it_has_everything_that_packaging_has(package: Built) -> None:
    listed = run("rpm", "-q", "--list", "-p", package[0]).splitlines()
    names = {Path(path).name for path in listed}
    folders = ("man", "oci", "systemd", "completions")
    ours = [path for one in folders for path in (ROOT / "packaging" / one).iterdir()]
    wanted = {path.name.removesuffix(".bash") for path in ours}
    assert wanted
    assert {name for name in wanted if not {name, f"{name}.gz"} & names} == set()
    assert {"/etc/hardsplice", "/etc/hardsplice/README"} <= set(listed)
    assert {"/usr/libexec/hardsplice/oci-hook", "/usr/libexec/cni/hardsplice"} <= set(listed)
    shared = {"/usr/libexec/cni", "/usr/share/containers/oci", "/usr/share/containers/oci/hooks.d"}
    assert shared <= set(listed), "a folder that nobody owns stays behind"
    assert any(path.endswith("/hardsplice/py.typed") for path in listed)
    assert sum("/policies/" in path and path.endswith(".toml") for path in listed) == len(
        list((ROOT / "policy").glob("*.toml"))
    )


def test_the_selinux_module_is_a_package_of_its_own_where_there_is_selinux(package: Built) -> None:
    needs = run("rpm", "-q", "--requires", "-p", package[0]).splitlines()
    assert "(hardsplice-selinux if selinux-policy-targeted)" in needs
    listed = run("rpm", "-q", "--list", "-p", package[1])
    assert "/usr/share/selinux/packages/targeted/hardsplice.pp.bz2\n" in listed
    scripts = run("rpm", "-q", "--scripts", "-p", package[1])
    assert "-i /usr/share/selinux/packages/targeted/hardsplice.pp.bz2" in scripts
    assert "-r hardsplice" in scripts


@pytest.mark.parametrize("command", ["hardsplice", "hardsplicectl"])
def test_its_commands_are_isolated(command: str, package: Built) -> None:
    script = content(package[0], Path("/usr/bin") / command)
    assert script.splitlines()[0] == "#!/usr/bin/python3 -I"


def test_engines_start_the_isolated_interpreter_at_once(package: Built) -> None:
    *_, command = content(package[0], Path("/usr/libexec/hardsplice/docker-proxy")).splitlines()
    arch, home = "/usr/lib64/python3/site-packages", "/usr/lib/python3/site-packages"
    assert command.startswith("exec /usr/bin/python3 -I -S ")
    assert command.endswith(
        f" -X hardsplice={arch}:{home} {home}/hardsplice/isolated.py"
        ' hardsplice.frontends.docker_proxy "$@"'
    )


SYSTEMCTL = """#!/bin/sh
echo "$@" >> {log}
case $* in
*disable*) shift 4; exec {systemctl} --root={root} disable "$@" ;;
esac
"""


@pytest.mark.parametrize("remaining", [0, 1])
def test_its_instances_end_with_it_and_outlive_an_upgrade(
    remaining: int, package: Built, tmp_path: Path
) -> None:
    """Its script, with a systemctl that works on a folder. Rpm tells how many versions remain."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        pytest.skip("there is no systemd here")
    units, root, log = ROOT / "packaging/systemd", tmp_path / "root", tmp_path / "log"
    shutil.copytree(units, root / "usr/lib/systemd/system")
    instances = ("hardsplice@blue.service", "hardsplice-service@web.service")
    run(systemctl, f"--root={root}", "enable", *instances, "hardsplice-exporter.socket")
    links = root / "etc/systemd/system"
    assert sum(path.is_symlink() for path in links.rglob("*")) == 3

    (tmp_path / "systemctl").write_text(SYSTEMCTL.format(log=log, systemctl=systemctl, root=root))
    (tmp_path / "systemctl").chmod(0o755)
    scripts = run("rpm", "-q", "--queryformat", "%{PREUN}", "-p", package[0])
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["sh", "-e", "-c", scripts, "sh", str(remaining)], env=environment, check=True)
    kept = sum(path.is_symlink() for path in links.rglob("*"))
    if remaining:
        assert (kept, log.exists()) == (3, False)
        return
    assert kept == 0
    stopped, disabled = log.read_text().splitlines()
    assert stopped == "stop hardsplice@*.service hardsplice-service@*.service"
    assert disabled.startswith("--no-reload disable --now ")


@pytest.mark.packages
@pytest.mark.timeout(1200)
def test_its_own_check_passes(tmp_path: Path) -> None:
    """Unit tests and those of policies, against the package as it was installed."""
    build(tmp_path)
