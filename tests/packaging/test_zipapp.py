# SPDX-License-Identifier: GPL-2.0-or-later
"""One file that runs where Python and libseccomp are: the same bytes from every build, complete, in
the sandbox as any other hardsplice, and of no use to anybody once it has started.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from hardsplice import __version__
from tests.support import procfs
from tests.support.frontends import assert_leads_to, docker_proxy
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports, run
from tests.support.serving import served
from tests.support.stream import PATIENCE, eventually
from tools import dist, zipapp

pytest.importorskip("pyseccomp", reason="it is put into the archive")

ROOT = Path(__file__).parents[2]
TIME = "1764201600"
pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def build(source: Path, target: Path, umask: int = 0o022, **settings: str) -> Path:
    settings = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": TIME, **settings}
    done = subprocess.run(
        [sys.executable, "-m", "tools.zipapp", str(target)],
        cwd=source, env=settings, umask=umask, check=True, timeout=100, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert done.stdout == f"{target}/hardsplice.pyz\n{target}/hardsplice.pyz.cdx.json\n"
    return target / "hardsplice.pyz"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("built"))


@pytest.fixture
def archive(built: Path, user_directory: Path) -> Path:
    """A copy that everybody can run."""
    return Path(shutil.copy(built, user_directory / "hardsplice.pyz"))


@pytest.fixture
def archived(archive: Path) -> Iterator[Program]:
    """hardsplice from there; the first line names the system's Python."""
    with contextlib.closing(Program(str(archive))) as program:
        yield program


def bom_of(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.cdx.json")


# --- the file ---


def test_two_builds_are_the_same_wherever_and_by_whom_they_are_made(
    built: Path, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    for name in dist.tracked(ROOT):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    for words in (["init", "--quiet"], ["add", "--all", "--force"]):
        subprocess.run(["git", *words], cwd=checkout, check=True)
    (checkout / "hardsplice" / "stray.py").touch()
    (checkout / "policy" / "stray.toml").touch()
    other = {"LC_ALL": "C", "TZ": "Pacific/Kiritimati", "HOME": "/nowhere", "PYTHONHASHSEED": "7"}
    made = build(checkout, tmp_path / "made", umask=0o077, **other)
    assert made.read_bytes() == built.read_bytes()
    assert made.stat().st_mode & 0o777 == 0o755
    bom = bom_of(made)
    assert bom.read_bytes() == bom_of(built).read_bytes()
    assert bom.stat().st_mode & 0o777 == 0o644


def test_it_has_every_module_and_policy_both_licenses_and_nothing_else(built: Path) -> None:
    tracked = [Path(name) for name in dist.tracked(ROOT)]
    modules = {
        str(path) for path in tracked if path.match("*.py") and path.parts[0] == "hardsplice"
    }
    policies = {
        f"hardsplice/policies/{path.name}" for path in tracked if path.match("policy/*.toml")
    }
    others = {"__main__.py", "pyseccomp.py", "licenses/hardsplice", "licenses/pyseccomp"}
    assert len(modules) > 100
    assert len(policies) > 5
    with zipfile.ZipFile(built) as archive:
        assert set(archive.namelist()) == modules | policies | others
        assert b"GNU GENERAL PUBLIC LICENSE" in archive.read("licenses/hardsplice")
        assert b"Permission is hereby granted" in archive.read("licenses/pyseccomp")
        assert {entry.date_time for entry in archive.infolist()} == {(2025, 11, 27, 0, 0, 0)}


def test_its_sbom_names_the_pyseccomp_that_is_in_it(built: Path) -> None:
    bom = json.loads(bom_of(built).read_text())
    version = metadata.version("pyseccomp")
    (contained,) = (one for one in bom["components"] if "version" in one)
    with zipfile.ZipFile(built) as archive:
        sha256 = hashlib.sha256(archive.read("pyseccomp.py")).hexdigest()
    assert contained["version"] == version
    assert contained["purl"] == contained["bom-ref"] == f"pkg:pypi/pyseccomp@{version}"
    assert contained["hashes"] == [{"alg": "SHA-256", "content": sha256}]
    assert "properties" not in contained, "a range of versions"
    sha256 = hashlib.sha256(built.read_bytes()).hexdigest()
    assert bom["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": sha256}]
    needs = {one["ref"]: one["dependsOn"] for one in bom["dependencies"]}
    assert needs[contained["purl"]] == ["pkg:generic/libseccomp"]
    assert contained["purl"] in needs[bom["metadata"]["component"]["purl"]]
    ranges = {
        one["name"]: one["properties"][0]["value"]
        for one in bom["components"]
        if "properties" in one
    }
    assert ranges == {"python": ">=3.11", "libseccomp": ">=2.5", "python-prctl": ">=1.8.1"}


def test_without_pyseccomp_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def distribution(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    monkeypatch.setattr(sys, "argv", ["zipapp", str(tmp_path)])
    assert zipapp.main() == 1
    assert capsys.readouterr().err == "zipapp: cannot find pyseccomp: pip install pyseccomp\n"
    assert not list(tmp_path.iterdir())


# --- the program ---


@pytest.mark.parametrize("name", ["hardsplice.pyz", "hs"])
def test_it_says_its_version_under_any_name_and_from_anywhere(
    archive: Path, identity: Identity, name: str
) -> None:
    link = archive.with_name(name)
    if link != archive:
        link.symlink_to(archive.name)
    done = subprocess.run(
        identity.wrap([str(link), "--version"]),
        env={}, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"hardsplice {__version__}\n", "")


@pytest.mark.parametrize("name", ["hardsplicectl", "hardsplicectl.pyz"])
def test_by_that_name_it_is_hardsplicectl(archive: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(archive)
    done = subprocess.run(
        [tmp_path / name, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == f"hardsplicectl {__version__}\n"


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("hardsplice-oci-hook", ["--version"], f"hardsplice-oci-hook {__version__}\n"),
        ("hardsplice-docker-proxy", ["-v"], f"docker-proxy of hardsplice {__version__}\n"),
        ("docker-proxy", ["-v"], f"docker-proxy of hardsplice {__version__}\n"),
        ("hardsplice-cni", [], '{"cniVersion": "1.0.0", "supportedVersions": '),
        ("hardsplice-rootlessport", ["x"], "hardsplice: cannot use arguments of rootlessport: "),
        ("rootlessport", ["x"], "hardsplice: cannot use arguments of rootlessport: "),
    ],
)  # fmt: skip
def test_by_an_engines_programs_name_it_is_that_program(
    name: str, words: list[str], said: str, archive: Path, identity: Identity
) -> None:
    link = archive.with_name(name)
    link.symlink_to(archive.name)
    done = subprocess.run(
        identity.wrap([str(link), *words]), cwd="/", env={"CNI_COMMAND": "VERSION"},
        input='{"cniVersion": "1.0.0"}', capture_output=True, text=True, check=False,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.startswith(said)
    assert done.returncode == (1 if "cannot" in said else 0)


def test_it_has_a_name_for_each_program_that_is_installed(built: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    engines = {
        name: entry.partition(":")[2] for name, entry in scripts.items() if "frontends" in entry
    }
    with zipfile.ZipFile(built) as opened:
        tree = ast.parse(opened.read("__main__.py"))
    (table,) = (
        ast.literal_eval(node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "ENGINE_PROGRAMS"
    )  # fmt: skip
    assert {names[0]: function for function, names in table.items()} == engines


@pytest.mark.root
def test_docker_can_publish_a_port_by_it(archive: Path) -> None:
    link = archive.with_name("docker-proxy")
    link.symlink_to(archive.name)
    port = free_ports(2)
    with socket.create_server(("127.0.0.1", port + 1)) as server:
        process, told = docker_proxy([str(link)], port, port + 1)
        try:
            assert told == b"0\n"
            assert "hs-host" in procfs.names(os.getpid()).values()
            assert_leads_to(server, port)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0


def test_an_old_python_is_told_what_it_lacks(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        ast.parse(opened.read("__main__.py"), feature_version=(3, 7))
    code = "import runpy, sys; sys.version_info = (3, 9, 2); runpy.run_path(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, archive], capture_output=True, text=True, check=False,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "hardsplice: cannot use this Python: it is 3.9",
        "hardsplice: run the file with Python 3.11 or newer: python3.11 hardsplice.pyz",
    ]


def test_it_uses_what_it_brings_and_nothing_of_a_stranger(
    archive: Path, identity: Identity, user_directory: Path
) -> None:
    for name in ("pyseccomp", "prctl", "argparse", "json", "hardsplice"):
        told = "import os; os.write(2, b'a stranger was imported'); os._exit(7)\n"
        (user_directory / f"{name}.py").write_text(told)
    done = subprocess.run(
        identity.wrap([str(archive), "--debug", "--sandbox=strict", "-t", "none", "--", "env"]),
        env={"PATH": os.defpath, "PYTHONPATH": str(user_directory), "PYTHONMALLOC": "debug"},
        cwd=user_directory, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "libseccomp by pyseccomp, prctl by hardsplice itself\n" in done.stderr
    assert f"PYTHONPATH={user_directory}\n" in done.stdout  # COMMAND has its environment as it was


@pytest.mark.parametrize("fate", ["stays", "is moved", "is deleted", "is replaced"])
def test_it_serves_whatever_becomes_of_the_file(
    fate: str,
    archive: Path,
    archived: Program,
    program: Program,
    identity: Identity,
    namespace: Namespace,
) -> None:
    """And its processes have given up what those of the usual hardsplice have."""

    def once_ready() -> None:
        if fate == "is moved":
            archive.rename(archive.with_name("elsewhere"))
        elif fate == "is deleted":
            archive.unlink()
        elif fate == "is replaced":
            archive.write_bytes(b"something else")

    found = served(archived, identity, namespace, once_ready=once_ready)
    assert [name for name, _ in found] == ["hs-host", "hs-namespace", "hs-relay-in", "hs-relay-out"]
    if fate == "stays":
        assert found == served(program, identity, namespace)


def test_an_audit_finds_every_layer_in_force(archived: Program, identity: Identity) -> None:
    words = (
        "--audit",
        "--sandbox=strict",
        "-t",
        f"127.0.0.1/{free_ports()}:80",
        "--",
        "sleep",
        ".5",
    )
    done = run(archived, identity, *words)
    assert done.returncode == 0, done.stderr
    assert "hs-relay-in" in done.stderr
    assert "not in force" not in done.stderr


def test_hardsplicectl_and_its_exporter_serve_without_the_file(
    archive: Path,
    identity: Identity,
    namespace: Namespace,
    user_directory: Path,
    launch: Callable[..., Instance],
) -> None:
    path, port = user_directory / "control", free_ports()
    launch(identity, "--control", str(path), "-t", "none", str(namespace.pid)).wait_ready()
    link = user_directory / "hardsplicectl"
    link.symlink_to(archive)
    ask = identity.wrap([str(link), "--socket", str(path)])
    with subprocess.Popen([*ask, "exporter", "--listen", f"127.0.0.1:{port}"]) as exporter:
        try:
            eventually(lambda: scraped(port), "the exporter answers", within=PATIENCE)
            done = subprocess.run([*ask, "status"], capture_output=True, check=True, text=True)
            assert f"serves process {namespace.pid}\n" in done.stdout
            archive.unlink()
            assert "hardsplice_up{" in scraped(port)
        finally:
            exporter.terminate()


def scraped(port: int) -> str:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(client), contextlib.suppress(OSError, http.client.HTTPException):
        client.request("GET", "/metrics")
        return client.getresponse().read().decode()
    return ""
