# SPDX-License-Identifier: GPL-2.0-or-later
"""What a distribution gets: a wheel that runs from anywhere, and an sdist from which all is built.

Built without network and without isolation, by the build backend of the environment that runs the
tests; installed into an environment of its own, which sees the runtime dependencies and nothing of
this checkout.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from hardsplice import __version__, isolated
from tests.support.bindings import origin
from tests.support.product import free_ports
from tests.support.stream import PATIENCE, eventually

ROOT = Path(__file__).parents[2]
POLICIES = {path.name for path in (ROOT / "policy").glob("*.toml")}


def run(*command: str | Path, cwd: Path, status: int = 0, path: str = os.defpath) -> str:
    """What a command prints, away from the checkout and its settings."""
    environment = {"PATH": path, "HOME": str(cwd), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, target: Path) -> Path:
    """Let the build backend make a `wheel` or an `sdist` of a source tree."""
    code = f"import sys; from hatchling.build import build_{kind} as b; b(sys.argv[1])"
    run(sys.executable, "-c", code, target, cwd=source)
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment into which the wheel was installed."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)

    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", code, cwd=home).strip())
    for name in ("pyseccomp", "prctl", "_prctl"):
        if found := origin(name):
            (packages / found.name).symlink_to(found)
    return home / "bin"


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_carries_every_policy_and_every_module(wheel: Path) -> None:
    assert POLICIES
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "hardsplice").rglob("*.py")}
    wanted = (
        modules | {f"hardsplice/policies/{name}" for name in POLICIES} | {"hardsplice/py.typed"}
    )
    assert wanted <= names(wheel)


def test_the_wheel_carries_nothing_but_the_package(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in names(wheel)}
    assert tops == {"hardsplice", f"hardsplice-{__version__}.dist-info"}


def test_the_wheel_needs_just_the_one_dependency_and_may_have_another(installed: Path) -> None:
    (info,) = installed.parent.glob("lib/python*/site-packages/hardsplice-*.dist-info")
    requires = importlib.metadata.Distribution.at(info).requires or []
    needed = {re.split(r"[^\w-]", line)[0] for line in requires if "extra ==" not in line}
    assert needed == {"pyseccomp"}
    (extra,) = [line for line in requires if re.search(r"extra == .prctl.", line)]
    assert extra.startswith("python-prctl")


def packed(name: str, folder: Path) -> Path:
    """A wheel with what is installed of a pure Python distribution, as a registry has it."""
    installed = importlib.metadata.distribution(name)
    wheel = folder / f"{name}-{installed.version}-py3-none-any.whl"
    left = ("__pycache__", "INSTALLER", "REQUESTED", "direct_url.json")  # the installer's own
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in installed.files or []:
            if not set(path.parts) & set(left):
                archive.write(str(path.locate()), str(path))
    return wheel


def test_pip_installs_it_without_a_compiler_and_it_serves(wheel: Path, tmp_path: Path) -> None:
    """And without python-prctl, which would have to be compiled."""
    registry, home, programs = (tmp_path / name for name in ("registry", "home", "programs"))
    for folder in (registry, home, programs):
        folder.mkdir()
    packed("pyseccomp", registry)
    shutil.copy(wheel, registry)
    venv.create(home, with_pip=False, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python")
    options = ("install", "--quiet", "--no-index", "--find-links", registry, "hardsplice")
    run(*pip, home / "bin" / "python", *options, cwd=home, path=str(programs))

    port = free_ports()
    serve = ("--debug", "-t", f"127.0.0.1/{port}:80", "--", "/usr/bin/python3", "-m", "http.server")
    with (
        (tmp_path / "said").open("w+") as said,
        subprocess.Popen(
            [home / "bin" / "hardsplice", *serve, "80"], cwd="/", env={"PATH": str(programs)},
            stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        ) as process,
    ):  # fmt: skip
        try:
            eventually(lambda: fetched(port) == 200, (tmp_path / "said").read_text, within=PATIENCE)
        finally:
            process.terminate()
        process.wait(PATIENCE)
    assert (
        "libseccomp by pyseccomp, prctl by hardsplice itself\n" in (tmp_path / "said").read_text()
    )


def fetched(port: int) -> int:
    """The status with which a server answers for its root; 0 for none."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(client), contextlib.suppress(OSError, http.client.HTTPException):
        client.request("HEAD", "/")
        return client.getresponse().status
    return 0


def test_the_installed_command_says_its_version_from_anywhere(
    installed: Path, tmp_path: Path
) -> None:
    assert run(installed / "hardsplice", "--version", cwd=tmp_path) == f"hardsplice {__version__}\n"


def test_the_installed_hardsplicectl_says_its_version_too(installed: Path, tmp_path: Path) -> None:
    said = run(installed / "hardsplicectl", "--version", cwd=tmp_path)
    assert said == f"hardsplicectl {__version__}\n"


@pytest.mark.parametrize("command", ["hardsplice", "hardsplicectl", "hardsplice-oci-hook"])
def test_an_installed_command_runs_isolated(installed: Path, tmp_path: Path, command: str) -> None:
    """Whatever the environment says to Python; the script itself is the installer's."""
    for name in ("argparse", "json", "hardsplice"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was imported')\n")
    names = {"PYTHONWARNINGS": "error", "PYTHONPROFILEIMPORTTIME": "1", "PYTHONOPTIMIZE": "2"}
    done = subprocess.run(
        [installed / command, "--version"], cwd=tmp_path, env={"PATH": os.defpath, **names},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    last = done.stderr.splitlines()[-1:]
    assert (done.returncode, done.stdout) == (0, f"{command} {__version__}\n"), last
    assert not any(module in done.stderr for module in ("argparse", "hardsplice.app.options")), last


def test_the_scripts_of_distributions_run_isolated_from_the_first_line_on() -> None:
    line = re.compile(r"\s*sed -i '1s\|\.\*\|#!\S+python3}? -I\|' .*/hardsplice .*/hardsplicectl")
    for path in ("debian/rules", "rpm/hardsplice.spec"):
        lines = (ROOT / "packaging" / path).read_text().splitlines()
        assert any(map(line.fullmatch, lines)), path


ENGINE_PROGRAMS = ("oci_hook", "cni", "rootlessport", "docker_proxy")


def test_distributions_start_python_once_for_the_programs_of_engines() -> None:
    for path in ("debian/rules", "rpm/hardsplice.spec"):
        text = (ROOT / "packaging" / path).read_text()
        assert "packaging/engine-program.in" in text
        assert tuple(re.findall(r"engine_program[ ,](\w+)[ ,]", text)) == ENGINE_PROGRAMS, path


@pytest.mark.parametrize(("program", "option"), [("oci_hook", "--version"), ("docker_proxy", "-v")])
def test_a_program_of_engines_is_isolated_without_a_python_before_it(
    installed: Path, tmp_path: Path, program: str, option: str
) -> None:
    (packages,) = installed.parent.glob("lib/python*/site-packages")
    text = (ROOT / "packaging/engine-program.in").read_text()
    assert f"exec @PYTHON@ {' '.join(isolated._OPTIONS)} -X {isolated._FOLDERS}=" in text
    values = {"PYTHON": installed / "python", "FOLDERS": packages, "HOME": packages}
    for name, value in {**values, "PROGRAM": program}.items():
        text = text.replace(f"@{name}@", str(value))
    script = tmp_path / program
    script.write_text(text)
    script.chmod(0o755)
    for name in ("argparse", "json", "hardsplice"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was imported')\n")
    names = {"PYTHONPATH": str(tmp_path), "PYTHONPROFILEIMPORTTIME": "1", "PYTHONHOME": "/none"}
    done = subprocess.run(
        [script, option], cwd=tmp_path, env={"PATH": os.defpath, **names},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert __version__ in done.stdout


def test_the_installed_package_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    code = "import hardsplice; print(hardsplice.__file__)"
    found = Path(run(installed / "python", "-c", code, cwd=tmp_path).strip())
    assert found.is_relative_to(installed.parent)


@pytest.mark.parametrize("role", ["relay", "monitor"])
def test_an_installed_package_shows_its_policies_from_anywhere(
    installed: Path, tmp_path: Path, role: str
) -> None:
    command = ["-m", "hardsplice.policy", "show", "--role", role, "--arch", "x86_64"]
    assert "splice" in run(installed / "python", *command, cwd=tmp_path)


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "wheel"
    source.mkdir()
    target.mkdir()
    run("tar", "--extract", "--file", sdist, "--strip-components=1", cwd=source)
    assert names(build("wheel", source, target)) == names(wheel)
