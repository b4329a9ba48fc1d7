# SPDX-License-Identifier: GPL-2.0-or-later
"""COMMAND where the kernel refuses a fresh /proc, as in a container whose /proc is masked: it has
the one that is there, which shows hardsplice's processes, and gets nothing of them.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.support.netns import Identity
from tests.support.product import Program, free_ports
from tests.support.stream import PATIENCE

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]

# As container engines do it: a PID namespace, in whose /proc some parts are covered.
MASKED = """
mount -t proc none /proc
mount -t tmpfs none /proc/irq
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec "$@"
"""
OPEN = 'mount -t proc none /proc; exec "$@"'

# What COMMAND can try on a process that it sees in /proc, by the names in /proc/PID/comm.
ATTACK = r"""
import json, os, signal, sys
def reading(name):
    def read(pid):
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
        return os.close(fd) is None
    return read
def listing(name):
    return lambda pid: os.listdir(f"/proc/{pid}/{name}") is not None
def writing(name, text):
    def write(pid):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(text)
        return True
    return write
def signalling(pid):  # a folder of /proc is a pidfd, too
    signal.pidfd_send_signal(os.open(f"/proc/{pid}", os.O_DIRECTORY), 0)
    return True
TRIES = {"environ": reading("environ"), "maps": reading("maps"), "mem": reading("mem"),
         "auxv": reading("auxv"), "root": listing("root"), "cwd": listing("cwd"),
         "descriptor": reading("fd/0"), "namespace": reading("ns/net"),
         "oom_score_adj": writing("oom_score_adj", "1000"),
         "coredump_filter": writing("coredump_filter", "1"),
         "clear_refs": writing("clear_refs", "1"), "signal": signalling}
got = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    name = open(f"/proc/{pid}/comm").read().strip()
    if not name.startswith(sys.argv[1]):
        continue
    got.setdefault(name, [])
    for what, attempt in TRIES.items():
        try:
            if attempt(pid):
                got[name].append(what)
        except OSError:
            pass
print(json.dumps(got))
"""
# It may send signals to its own PID 1, as ever: the kernel spares that.
GOT: dict[str, list[str]] = {
    "hs-host": [], "hs-namespace": [], "hs-relay-in": [], "hs-guard": [], "hs-init": ["signal"],
}  # fmt: skip


def surrounded(identity: Identity, script: str, argv: list[str], *, own: bool) -> list[str]:
    """A command in such a container: of the identity's own, in a user namespace, or root's."""
    enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    if own:
        return identity.wrap(
            [*enter, "--user", "--map-root-user", "sh", "-ec", script, "sh", *argv]
        )
    return [*enter, "sh", "-ec", script, "sh", *identity.wrap(argv)]


def run(
    program: Program, identity: Identity, script: str, *options: str, own: bool = False
) -> subprocess.CompletedProcess[str]:
    argv, environment = program.argv(identity)
    argv = argv[len(identity.wrap([])) :]
    words = [*argv, "-t", f"127.0.0.1/{free_ports()}:80", *options]
    words += ["/usr/bin/python3", "-I", "-c", ATTACK, "hs-"]
    return subprocess.run(
        surrounded(identity, script, words, own=own),
        env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("own", [False, True], ids=["root's container", "a user's container"])
def test_it_goes_on_with_the_one_that_is_there_and_gets_nothing(
    own: bool, program: Program, identity: Identity
) -> None:
    if own and identity.is_root:
        pytest.skip("root's container is the other one")
    done = run(program, identity, MASKED, own=own)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == GOT
    assert "COMMAND has the /proc that is here" in done.stderr
    for option in ("unmask=ALL", "systempaths=unconfined"):
        assert option in done.stderr


def test_the_same_attempts_get_everything_of_a_process_that_is_not_protected() -> None:
    """The row without hardsplice: a process of the same user."""
    user = Identity("user", 39_999)
    attack = ["/usr/bin/python3", "-I", "-c", ATTACK, "sleep"]
    script = MASKED.replace('exec "$@"', 'sleep 1000 & "$@"; kill $!')
    done = subprocess.run(
        surrounded(user, script, attack, own=True),
        capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    (got,) = json.loads(done.stdout).values()
    assert len(got) == 12


def test_where_a_fresh_one_can_be_had_it_sees_none_of_them(
    program: Program, identity: Identity
) -> None:
    done = run(program, identity, OPEN)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"hs-init"}
    assert "/proc" not in done.stderr


def test_root_that_is_to_stay_root_is_refused(program: Program) -> None:
    """Its /proc could not be made read-only as a whole."""
    done = run(program, Identity("root"), MASKED, "--runas", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "unmask=ALL" in done.stderr.splitlines()[-1]


def test_without_a_user_namespace_of_its_own_it_is_refused(program: Program) -> None:
    """It would have every right over the processes that it sees. A copy of what others masked
    can't be unmasked: the kernel locks it.
    """
    copied = MASKED.replace('"$@"', 'unshare --user --map-root-user --mount "$@"')
    done = run(program, Identity("root"), copied, "--netns-only")
    assert (done.returncode, done.stdout) == (1, "")
    refusal, hint = done.stderr.splitlines()[-2:]
    assert "shows more than COMMAND may see" in refusal
    assert "unmask=ALL" in hint
