# SPDX-License-Identifier: GPL-2.0-or-later
"""Clean installations of Debian's releases, as folders, in which packages are built and tried.

mmdebstrap(1) makes them in $HARDSPLICE_CACHE (~/.cache/hardsplice), anew after 14 days, so that
only the first use needs the network. What is used is a copy. Root's rights are needed: a package
is installed by root, and what is installed has owners.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("clean_root.sh")
_PATIENCE = 900  # seconds to make a root in
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_AGE = 14 * 86400  # seconds after which what was made isn't today's release any more
_RECIPE = 1  # to be raised when roots are made in another way
BUILDER = 1000  # the user ID of an ordinary user, "builder", in each


class UnavailableError(Exception):
    """No such root can be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A release of Debian by its name, mmdebstrap's word for the packages that it consists of
    (``minbase`` or ``buildd``), and others. ``downloaded`` are packages that can be installed
    without the network, with all that they need.
    """

    suite: str
    variant: str
    installed: tuple[str, ...] = ()
    downloaded: tuple[str, ...] = ()

    def name(self) -> str:
        """What tells it from others, as the name of a folder."""
        key = hashlib.sha256(f"{_RECIPE} {self}".encode()).hexdigest()[:16]
        return f"root-{self.suite}-{self.variant}-{key}"


def made(recipe: Recipe, to: Path) -> Path:
    """A copy of its own, at ``to``. Raises UnavailableError."""
    cache = _ready()
    with _locked(cache / recipe.name()):
        subprocess.run(["cp", "--archive", "--reflink=auto", kept(recipe, cache), to], check=True)
    return to


def make(recipe: Recipe) -> None:
    """Have it in the cache, as new as any. Raises UnavailableError."""
    cache = _ready()
    with _locked(cache / recipe.name()):
        kept(recipe, cache)


def _ready() -> Path:
    """The cache, without what is too old."""
    if os.geteuid() != 0:
        raise UnavailableError("needs root, to make a clean root")
    for tool in ("mmdebstrap", "ip", "setpriv", "unshare"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"{tool} is not installed")
    cache = cache_folder()
    _remove_old(cache)
    return cache


def cache_folder() -> Path:
    """Where what is downloaded, and made of that, is kept."""
    chosen = os.environ.get("HARDSPLICE_CACHE")
    folder = Path(chosen) if chosen else Path.home() / ".cache" / "hardsplice"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kept(recipe: Recipe, cache: Path) -> Path:
    """The folder that is copied, made where there is none, or an old one. Those of other recipes
    are left alone. Raises UnavailableError.
    """
    folder = cache / recipe.name()
    if _is_old(folder):
        shutil.rmtree(folder)
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        if partial.is_dir():
            shutil.rmtree(partial)
        _make(recipe, partial)
        os.utime(partial)
        partial.rename(folder)
    return folder


def run(
    root: Path,
    *words: str,
    folder: str = "/",
    user: int = 0,
    network: bool = False,
    environment: Mapping[str, str] | None = None,
    timeout: float = _PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a root to its end, and with it everything that it started; what it says, on
    both streams, is in ``stdout``.
    """
    return subprocess.run(
        entering(
            root, *command(*words, user=user, environment=environment),
            folder=folder, network=network,
        ),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False, timeout=timeout, start_new_session=True,
    )  # fmt: skip


def command(*words: str, user: int = 0, environment: Mapping[str, str] | None = None) -> list[str]:
    """The words that run a command as a user in a root, with no more of an environment."""
    home = "/home/builder" if user == BUILDER else "/root"
    settings = {"PATH": _PATH, "HOME": home, "LC_ALL": "C.UTF-8", **(environment or {})}
    made = ["env", "--ignore-environment", *(f"{k}={v}" for k, v in settings.items()), *words]
    if user:
        ids = (f"--reuid={user}", f"--regid={user}", "--clear-groups")
        made = ["setpriv", *ids, *made]
    return made


def entering(
    root: Path, *words: str, folder: str = "/", network: bool = False, layer: Path | None = None
) -> list[str]:
    """The words of a command that runs one in a root, and ends with its parent. ``layer`` is
    a folder that is seen at the same path in there, and gets all that the command changes in the
    root; its path has no comma or colon.
    """
    own = ["--mount", "--pid", "--fork", "--kill-child=KILL", "--ipc", "--uts"]
    if not network:
        own.append("--net")
    begin = ["setpriv", "--pdeathsig=KILL", "unshare", *own]
    return [*begin, "bash", str(_SCRIPT), str(root), str(layer or ""), folder, *words]


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """While nobody else makes, copies or removes the folder. BlockingIOError if somebody does, and
    this isn't to wait for it.
    """
    with open(folder.with_suffix(".lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _is_old(folder: Path) -> bool:
    return folder.is_dir() and time.time() - folder.stat().st_mtime > _AGE


def _remove_old(cache: Path) -> None:
    """Those of recipes that have changed since are never asked for again."""
    for folder in cache.glob("root-*"):
        if _is_old(folder):
            with contextlib.suppress(BlockingIOError), _locked(folder, wait=False):
                shutil.rmtree(folder)


def _make(recipe: Recipe, folder: Path) -> None:
    words = [
        "mmdebstrap", "--quiet", "--mode=root", f"--variant={recipe.variant}",
        "--aptopt=Acquire::Languages none", "--aptopt=Acquire::Retries 3",
        # A mirror of sid may be behind. That what it has is Debian's is checked all the same.
        "--aptopt=Acquire::Check-Valid-Until false",
        f"--include={','.join((*recipe.installed, 'passwd', 'mount'))}",
        f"--customize-hook=chroot $1 useradd --create-home --uid {BUILDER} builder",
        recipe.suite, str(folder),
    ]  # fmt: skip
    _step(words)
    if recipe.downloaded:
        get = ("apt-get", "--quiet=2")
        for each in (("update",), ("install", "--yes", "--download-only", *recipe.downloaded)):
            done = run(folder, *get, *each, network=True)
            if done.returncode != 0:
                raise UnavailableError(f"apt-get {each[0]} failed: {_last(done.stdout)}")


def _step(words: Sequence[str]) -> None:
    environment = {**os.environ, "PATH": _PATH, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False, timeout=_PATIENCE,
    )  # fmt: skip
    if done.returncode != 0:
        raise UnavailableError(f"{words[0]} failed: {_last(done.stdout)}")


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["it says nothing"])[-1]
