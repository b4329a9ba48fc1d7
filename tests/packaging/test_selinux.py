# SPDX-License-Identifier: GPL-2.0-or-later
"""The SELinux module: compiled, and linked with the whole reference policy of Debian, which is then
asked what hardsplice may do. test_lsm.py has it on a running system.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.packaged import engine_programs

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "packaging/selinux"
DEVEL = Path("/usr/share/selinux/devel/Makefile")
SYSTEM = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nowhere"}

# Each kind of path, and who has namespaces there
PATHS = {
    "/proc/PID/ns/net": ("Docker", "bubblewrap", "PrivateNetwork=yes"),
    "/run/netns/NAME": ("ip-netns(8)", "CNI", "Podman as root"),
    "/run/user/UID/netns/": ("rootless Podman",),
}
# And by a program's name whose it is
ENGINES = {
    "oci-hook": "Podman.*crun.*runc",
    "rootlessport": "Podman of ordinary users",
    "docker-proxy": "Docker",
    "hardsplice": "CNI",
}


def run(*command: str | Path, cwd: Path, timeout: float = 100) -> str:
    """What one of the system's programs prints."""
    done = subprocess.run(
        command, cwd=cwd, env=SYSTEM, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled module."""
    if not DEVEL.exists():
        pytest.skip("there is no selinux-policy-dev here")
    folder = tmp_path_factory.mktemp("selinux")
    for path in SOURCES.iterdir():
        shutil.copy(path, folder)
    said = run("make", "-f", DEVEL, "NAME=default", "hardsplice.pp", cwd=folder)
    assert "warning" not in said.lower()
    return folder / "hardsplice.pp"


def test_it_compiles_with_its_paths(module: Path) -> None:
    content = module.read_bytes()
    for path in ("/usr/bin/hardsplice\t", "/run/hardsplice(/.*)?"):
        assert path.encode() in content


def test_each_program_of_engines_has_a_label_and_stands_with_its_engine() -> None:
    """None has the label that leads to a domain of its own."""
    lines = (SOURCES / "hardsplice.fc").read_text().splitlines()
    labels = {line.split()[0]: line for line in lines if line.startswith("/usr/")}
    assert set(labels) == {"/usr/bin/hardsplice", *engine_programs()}
    for path in engine_programs():
        assert ":bin_t,s0)" in labels[path]
        engine = next(one for one in lines[lines.index(labels[path]) :: -1] if one[:1] == "#")
        assert re.search(ENGINES[path.rpartition("/")[2]], engine), path


def test_its_interfaces_can_be_used(module: Path) -> None:
    other = module.parent / "other"
    shutil.copytree(SOURCES, other)
    (other / "caller.te").write_text(
        "policy_module(caller, 1.0)\ntype caller_t;\ndomain_type(caller_t)\n"
        "hardsplice_domtrans(caller_t)\nhardsplice_stream_connect(caller_t)\n"
        "hardsplice_manage_runtime(caller_t)\n"
    )
    run("make", "-f", DEVEL, "NAME=default", "caller.pp", cwd=other)


@pytest.mark.parametrize("path", PATHS)
def test_each_path_of_namespaces_stands_with_who_needs_it(path: str) -> None:
    comments = re.findall(r"(?:^#.*\n)+", (SOURCES / "hardsplice.te").read_text(), re.MULTILINE)
    (comment,) = (one for one in comments if path in one)
    for who in PATHS[path]:
        assert who in comment.replace("\n# ", " ")


@pytest.mark.packages
@pytest.mark.root
@pytest.mark.timeout(400)
def test_linked_with_the_whole_policy_it_may_what_it_needs_and_no_more(
    module: Path, tmp_path: Path
) -> None:
    if shutil.which("sesearch", path=SYSTEM["PATH"]) is None:
        pytest.skip("there is no setools here")
    tmp_path.chmod(0o755)
    run("apt-get", "download", "--quiet", "selinux-policy-default", cwd=tmp_path)
    (deb,) = tmp_path.glob("*.deb")
    run("dpkg", "--extract", deb, "root", cwd=tmp_path)
    root = tmp_path / "root"
    (root / "var/lib/selinux/default").mkdir(parents=True, exist_ok=True)
    modules = sorted((root / "usr/share/selinux/default").glob("*.pp.bz2"))
    words = [word for one in (*modules, module) for word in ("--install", str(one))]
    run("semodule", "-p", root, "-s", "default", "-n", *words, cwd=tmp_path, timeout=300)
    (policy,) = (root / "etc/selinux/default/policy").iterdir()

    def rules(*asked: str) -> str:
        return run("sesearch", "-A", "-s", "hardsplice_t", *asked, policy, cwd=tmp_path)

    assert "read" in rules("-t", "nsfs_t", "-c", "file")
    for folder in ("ifconfig_runtime_t", "user_runtime_t", "user_tmp_t"):
        assert "search" in rules("-t", folder, "-c", "dir")
    assert "hardsplice_t domain:lnk_file" in rules("-t", "init_t", "-c", "lnk_file")
    for forbidden in ("execmem", "execstack", "execheap"):
        assert rules("-c", "process", "-p", forbidden) == ""
    written = rules("-c", "file", "-p", "create")
    assert set(re.findall(r"^allow \w+ (\w+):", written, re.MULTILINE)) == {
        "hardsplice_runtime_t",
        "hardsplice_tmpfs_t",
    }
    runtime = run("seinfo", "--attribute=pidfile", "--expand", policy, cwd=tmp_path)
    assert "hardsplice_runtime_t" in runtime.split()
    entered = run("sesearch", "-T", "-s", "init_t", "-t", "hardsplice_exec_t", policy, cwd=tmp_path)
    assert "process hardsplice_t;" in entered
    named = run("sesearch", "-T", "-t", "var_run_t", "-c", "dir", policy, cwd=tmp_path)
    assert "type_transition initrc_t var_run_t:dir hardsplice_runtime_t hardsplice;" in named
    labels = (root / "etc/selinux/default/contexts/files/file_contexts").read_text()
    assert "system_u:object_r:hardsplice_exec_t:s0" in labels
    shutil.rmtree(root)
