# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages of another architecture, unpacked into folders of a cache.

A program for another architecture needs that architecture's C library, interpreter and libraries,
and Debian has them all, built from the same sources. The host's own package database is left alone:
an apt with a root of its own, which believes that nothing is installed and that the other
architecture is the native one, works out what belongs together and fetches it, its signatures
checked with the host's keys; `dpkg-deb` unpacks it. No maintainer script runs.

Everything is kept under $HARDSPLICE_CACHE (~/.cache/hardsplice), so that only the first run needs
the network.
"""

from __future__ import annotations

import compileall
import fcntl
import hashlib
import os
import py_compile
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.arches.guest import MODULES
from tools.clean_root import cache_folder

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MIRROR = "http://deb.debian.org/debian/"
_TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "tar")
_PATIENCE = 600  # seconds for one step that uses the network
_RECIPE = 3  # to be raised when what is unpacked, or how, changes
# Since Debian 12 these are links into usr; older packages have files in them.
_MERGED = ("bin", "lib", "lib64", "sbin")
_PYTHON = ("python3", "python3-prctl", "libseccomp2", "libc-bin")


class Unavailable(Exception):
    """What is wanted can't be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Debian for one architecture, by Debian's names for both."""

    suite: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.suite}-{self.architecture}"


def python_tree(release: Release) -> Path:
    """A folder with a Python of this release and what hardsplice imports, to chroot or boot into.

    Raises Unavailable.
    """

    def unpack(folder: Path) -> None:
        for name in _MERGED:
            (folder / "usr" / name).mkdir(parents=True)
            (folder / name).symlink_to(f"usr/{name}")
        for package in _download(release, _PYTHON):
            _extract(package, folder)
        for name in ("dev", "proc", "root", "run", "srv", "sys", "tmp"):
            (folder / name).mkdir(exist_ok=True)
        for name in ("doc", "locale", "man", "zoneinfo"):
            shutil.rmtree(folder / "usr/share" / name, ignore_errors=True)
        for modules in folder.glob("usr/lib/python3*"):
            precompile(modules, folder)

    return _kept(f"tree-{release}", " ".join(_PYTHON), unpack)


def precompile(modules: Path, tree: Path) -> None:
    """Have bytecode beside modules, if the Python in the tree reads what this one writes. An
    emulated machine would take ten seconds for it; and no times of files, by which Python sees
    that bytecode is outdated, get into an initramfs.
    """
    if (tree / f"usr/lib/python3.{sys.version_info.minor}").is_dir():
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(modules, quiet=2, stripdir=tree, invalidation_mode=unchecked)


def kernel(release: Release, package: str) -> tuple[Path, tuple[Path, ...]]:
    """The kernel (vmlinux or vmlinuz) that a metapackage such as linux-image-arm64 stands for, and
    its modules among MODULES, in that order.

    Raises Unavailable.
    """

    def unpack(folder: Path) -> None:
        (archive,) = _download(release, [_newest(release, package)], alone=True)
        wanted = ["./boot/vmlinu*", *(f"*/kernel/net/ipv4/{name}.ko*" for name in MODULES)]
        _extract(archive, folder, "--wildcards", "--transform=s,.*/,,", *wanted)

    folder = _kept(f"kernel-{release}-{package}", f"{package} {MODULES}", unpack)
    modules = (next(folder.glob(f"{name}.ko*")) for name in MODULES)
    return next(folder.glob("vmlinu*")), tuple(modules)


def _extract(package: Path, folder: Path, *options: str) -> None:
    """What is in a package; folders of the tree that are links stay links."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
    ) as archive:
        _run(
            ["tar", "-x", "-C", folder, "--keep-directory-symlink", *options],
            stdin=archive.stdout,
        )
    if archive.returncode != 0:
        raise Unavailable(f"dpkg-deb failed on {package.name}")


def _kept(name: str, contents: str, unpack: Callable[[Path], None]) -> Path:
    """The folder of this name in the cache, made by `unpack` if it isn't there or is outdated.

    It gets its name when it is complete, and one process makes it at a time.
    """
    folder = cache_folder() / name
    wanted = hashlib.sha256(f"{_RECIPE} {contents}".encode()).hexdigest()
    stamp = folder.with_name(f"{name}.stamp")
    with open(folder.with_name(f"{name}.lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text(encoding="ascii") == wanted and folder.is_dir():
            return folder
        stamp.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        partial = folder.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        unpack(partial)
        partial.rename(folder)
        stamp.write_text(wanted, encoding="ascii")
    return folder


# --- the private apt ------------------------------------------------------------------------------


def _download(release: Release, packages: Sequence[str], *, alone: bool = False) -> list[Path]:
    """Packages, with all that they depend on unless `alone`, as files."""
    options = _indexed(release)
    archives = _root(release) / "archives"
    for old in archives.glob("*.deb"):
        old.unlink()
    command = ["download"] if alone else ["install", "--download-only", "--yes"]
    _run(["apt-get", *options, *command, *packages], cwd=archives)
    found = sorted(archives.glob("*.deb"))
    if not found:
        raise Unavailable(f"apt fetched nothing for {', '.join(packages)} of {release}")
    return found


def _newest(release: Release, metapackage: str) -> str:
    """The package with the kernel itself, which a metapackage depends on."""
    answer = _run(["apt-cache", *_indexed(release), "depends", "--important", metapackage])
    for line in answer.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    raise Unavailable(f"{release} has no {metapackage}")


@cache
def _indexed(release: Release) -> tuple[str, ...]:
    """apt's options for a root of its own, whose package lists are those of today."""
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            raise Unavailable(f"there is no {tool}; this needs Debian or one of its relatives")
    if not _KEYRING.exists():
        raise Unavailable(f"no {_KEYRING} to check signatures with: install debian-archive-keyring")
    mirror = _mirror()
    _probe(mirror, release)
    root = _root(release)
    for folder in ("archives/partial", "lists/partial"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "status").write_text("")
    source = f"deb [signed-by={_KEYRING}] {mirror} {release.suite} main\n"
    (root / "sources.list").write_text(source)
    settings = {
        "APT::Architecture": release.architecture,
        "APT::Architectures": release.architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",  # the cache may lie where the user _apt can't go
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Dir::Cache": f"{root}/",
        "Dir::Cache::Archives": f"{root}/archives/",
        "Dir::Etc::SourceList": f"{root}/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": f"{root}/",
        "Dir::State::Lists": f"{root}/lists/",
        "Dir::State::Status": f"{root}/status",
        "quiet": "2",
    }
    options = tuple(f"--option={name}={value}" for name, value in settings.items())
    _run(["apt-get", *options, "update"])
    return options


def _root(release: Release) -> Path:
    return cache_folder() / f"apt-{release}"


@cache
def _mirror() -> str:
    """The archive that this host uses itself, if it is a Debian; else the public one."""
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"],
        capture_output=True, text=True, check=False, timeout=_PATIENCE,
    )  # fmt: skip
    for line in asked.stdout.splitlines():
        origin, _, rest = line.partition(" ")
        label, _, uri = rest.partition(" ")
        if (origin, label) == ("Debian", "Debian") and uri.startswith("http"):
            return uri
    return _MIRROR


def _probe(mirror: str, release: Release) -> None:
    """Say early, and in words, that a release or an architecture isn't there; apt only warns."""
    folder = f"dists/{release.suite}/main/binary-{release.architecture}"
    address = f"{mirror.rstrip('/')}/{folder}/Release"
    try:
        with urllib.request.urlopen(address, timeout=30):
            pass
    except urllib.error.HTTPError as error:
        raise Unavailable(f"{mirror} has no {release}: {error}") from None
    except OSError as error:
        raise Unavailable(f"cannot reach {mirror}: {error}") from None


def _run(argv: Sequence[str | Path], **how: Any) -> str:
    """Run a tool to its end; what it printed, or Unavailable with its last complaint."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        argv, capture_output=True, text=True, check=False,
        timeout=_PATIENCE, env={**os.environ, "LC_ALL": "C.UTF-8"},
        **{"stdin": subprocess.DEVNULL, **how},
    )  # fmt: skip
    if done.returncode != 0:
        complaint = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        raise Unavailable(f"{argv[0]} failed: {complaint}")
    return done.stdout
