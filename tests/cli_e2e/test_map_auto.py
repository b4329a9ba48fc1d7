# SPDX-License-Identifier: GPL-2.0-or-later
"""--map-auto: a COMMAND that becomes other users, as servers do."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.cli_e2e.test_errors import check
from tests.support import procfs
from tests.support.accounts import FIRST, NAMES, Account, account
from tests.support.product import Instance, Program, can_bind, free_ports, run
from tests.support.stream import PATIENCE, eventually

Launch = Callable[..., Instance]
# Accounts are made in mount namespaces of the tests' own.
pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left_behind")]
WWW = 33  # an id that isn't root's, inside
AS_WWW = ("setpriv", f"--reuid={WWW}", f"--regid={WWW}", "--clear-groups")


@pytest.fixture
def user() -> Iterator[Account]:
    missing = [name for name in ("newuidmap", "newgidmap") if shutil.which(name) is None]
    missing += [f"/etc/{name}" for name in NAMES if not os.path.exists(f"/etc/{name}")]
    if missing:
        pytest.skip(f"there is no {' '.join(missing)}")
    with account() as made:
        yield made


def outside(inside: int) -> int:
    """Whom an id is on the machine."""
    return FIRST + inside - 1


# --- what it is given -----------------------------------------------------------------------------


def test_it_becomes_another_user(program: Program, user: Account) -> None:
    script = (
        "id -u; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups | tr -s ' \\n' ' ';"
        f"echo; {' '.join(AS_WWW)} sh -c 'id -u; id -g; id -G'"
    )
    done = run(program, user, "-q", "--map-auto", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [
        "0", " 0 0 1 1 1 65536 0 0 1 1 1 65536 allow ", "33", "33", "33", "",
    ]  # fmt: skip


def test_without_it_there_is_only_root(program: Program, user: Account) -> None:
    done = run(program, user, "-q", "--", *AS_WWW, "true")
    assert done.returncode != 0
    assert "Invalid argument" in done.stderr


def test_what_it_makes_belongs_to_its_subordinate_ids(program: Program, user: Account) -> None:
    script = "touch root; touch www; chown 33:34 www; umask 0; mkdir open"
    done = run(program, user, "-q", "--map-auto", "--", "sh", "-c", f"cd {user.home}; {script}")
    assert done.returncode == 0, done.stderr
    owners = {}
    for name in ("root", "www"):
        found = (user.home / name).stat()
        owners[name] = (found.st_uid, found.st_gid)
    assert owners == {"root": (user.uid, user.uid), "www": (outside(33), outside(34))}


def test_root_s_command_has_those_of_the_user_that_it_runs_as(
    program: Program, user: Account
) -> None:
    """Without newuidmap, which root has no need of."""
    words = ("-q", "--map-auto", "--runas", user.name, "--", *AS_WWW, "id", "-u")
    done = run(program, user.root, *words, environment={"PATH": "/usr/sbin:/usr/bin:/bin"})
    assert (done.returncode, done.stdout) == (0, "33\n"), done.stderr


CONFIGURATION = """
daemon off; user www-data; pid {home}/nginx.pid; error_log stderr; worker_processes 1;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; uwsgi_temp_path {home}/uwsgi;
    fastcgi_temp_path {home}/fastcgi; scgi_temp_path {home}/scgi;
    server {{ listen 80; root {home}/html; }}
}}
"""


def _nginx(user: Account) -> tuple[str, ...]:
    if shutil.which("nginx") is None:
        pytest.skip("there is no nginx")
    html = user.home / "html"
    html.mkdir()
    (html / "index.html").write_text("served\n")
    path = user.home / "nginx.conf"
    path.write_text(CONFIGURATION.format(home=user.home))
    return "nginx", "-e", "stderr", "-p", str(user.home), "-c", str(path)


def test_nginx_serves(launch: Launch, user: Account) -> None:
    """Its master is the user, its worker one of the subordinate ids; SIGQUIT ends it in order."""
    port = free_ports()
    words = _nginx(user)
    spec = ("-t", f"127.0.0.1/{port}:80")
    instance = launch(user, "-q", "--map-auto", *spec, "--", *words).wait_ready()

    def answer() -> bytes | None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            client.request("GET", "/")
            return client.getresponse().read()
        except (ConnectionError, http.client.HTTPException):
            return None  # it does not listen yet
        finally:
            client.close()

    assert eventually(answer, lambda: f"no answer; {instance.messages()}") == b"served\n"
    family = procfs.tree(instance.pid)
    owners = {int(procfs.status(pid)["Uid"].split()[1]) for pid in family}
    assert owners == {user.uid, outside(WWW)}
    instance.process.send_signal(signal.SIGQUIT)
    assert instance.wait() == 0, instance.messages()
    assert not any(map(procfs.alive, family))
    assert can_bind("127.0.0.1", port)


def test_and_without_subordinate_ids_it_does_not(program: Program, user: Account) -> None:
    done = run(program, user, "-q", "--", *_nginx(user))
    assert done.returncode != 0
    assert "(22: Invalid argument)" in done.stderr


# --- what stays as it is --------------------------------------------------------------------------


def _become(launch: Launch, user: Account, *options: str) -> tuple[Instance, dict[str, int]]:
    """A COMMAND that has become somebody else, and the processes by their names."""
    instance = launch(
        user, "-q", "--map-auto", *options, "-t", f"127.0.0.1/{free_ports()}:80", "--",
        "setpriv", f"--reuid={WWW}", f"--regid={WWW}", "--clear-groups", "sleep", "1000",
    ).wait_ready()  # fmt: skip

    def members() -> dict[str, int] | None:
        found = {name: pid for pid, name in procfs.names(instance.pid).items()}
        return found if "sleep" in found else None

    return instance, eventually(members, "COMMAND does not run")


def test_none_of_hardsplice_s_own_processes_has_one_of_them(launch: Launch, user: Account) -> None:
    """Nor a right more; and none lets processes with these ids look into it."""
    instance, family = _become(launch, user)
    for name, pid in family.items():
        status = procfs.status(pid)
        expected = outside(WWW) if name == "sleep" else user.uid
        for ids in ("Uid", "Gid"):
            assert status[ids].split() == [str(expected)] * 4, name
        if name == "sleep":
            continue
        assert status["Seccomp"] == "2"
        assert int(status["CapEff"], 16) == (1 << 5 if name == "hs-init" else 0), name
        for who in (outside(WWW), outside(1)):
            look = ["setpriv", f"--reuid={who}", "--clear-groups", "--inh-caps=-all"]
            for attempt in (["cat", f"/proc/{pid}/environ"], ["kill", str(pid)]):
                done = subprocess.run([*look, *attempt], capture_output=True, check=False)
                assert done.returncode != 0, (name, attempt)
    instance.process.terminate()
    assert instance.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("stopped", [(), ("hs-init",), ("hs-guard",)])
def test_whoever_command_is_all_ends(
    launch: Launch, user: Account, stopped: tuple[str, ...], number: signal.Signals
) -> None:
    instance, family = _become(launch, user)
    for name in stopped:
        os.kill(family[name], signal.SIGSTOP)
    instance.process.send_signal(number)
    instance.wait()
    eventually(lambda: not any(map(procfs.alive, family.values())), "some are left", within=2)


def test_who_has_one_of_them_is_not_heard_on_the_control_socket(
    launch: Launch, user: Account
) -> None:
    path = user.home / "control"
    instance, _ = _become(launch, user, "--control", str(path))
    path.chmod(0o666)  # so that it isn't its mode that keeps them out
    done = subprocess.run(
        ["setpriv", f"--reuid={outside(WWW)}", "--clear-groups", "--inh-caps=-all", "curl", "-s",
         "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", str(path),
         "http://hardsplice/v1/status"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == "403"
    instance.process.terminate()
    assert instance.wait() == 128 + signal.SIGTERM


# --- where there are none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "line", "reason"),
    [
        ("uid", "", "hs-tests has no entry in /etc/subuid"),
        ("gid", "", "hs-tests has no entry in /etc/subgid"),
        ("uid", "hs-tests:9:x", "hs-tests has no entry in /etc/subuid"),
        ("uid", "hs-tests:3000000000:1000", "1000 of 65534 user ids in /etc/subuid"),
        ("gid", "hs-tests:3000000000:65533", "65533 of 65534 group ids in /etc/subgid"),
    ],
)
def test_who_was_given_too_few_is_told(
    program: Program, user: Account, kind: str, line: str, reason: str
) -> None:
    port = free_ports()
    user.give(kind, line)
    done = run(program, user, "-t", f"127.0.0.1/{port}:80", "--map-auto", "--", "true")
    check(done, says=reason, hints="usermod --add-subuids")
    assert can_bind("127.0.0.1", port)


def test_where_newuidmap_is_missing_its_package_is_named(program: Program, user: Account) -> None:
    starter = ("env", "PATH=/nowhere")
    done = run(program, user, "--map-auto", "--", "/bin/true", starter=starter)
    check(done, says="cannot run newuidmap", hints="uidmap")


def test_what_newuidmap_refuses_is_told(program: Program, user: Account) -> None:
    """Under no_new_privs it has no rights of its own."""
    argv, environment = program.argv(user)
    at = argv.index("setpriv")
    done = subprocess.run(
        [*argv[:at], "setpriv", "--no-new-privs", *argv[at:], "--map-auto", "--", "true"],
        env=environment, cwd="/", capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    check(done, says="newuidmap: ", hints="no_new_privs")


def test_whose_group_is_another_than_the_account_s_is_told(program: Program, user: Account) -> None:
    argv, environment = program.argv(user)
    other = [word.replace("--regid=", "--regid=1") for word in argv]
    done = subprocess.run(
        [*other, "--map-auto", "--", "true"], env=environment, cwd="/", capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    check(done, says="different user", hints="group")


def test_a_range_that_is_not_one_s_own_is_refused(program: Program, user: Account) -> None:
    """By newuidmap, which reads the same files: here they changed in between, as it seems to us."""
    user.give("uid", f"hs-tests:{FIRST}:65536\nhs-tests:{FIRST + 10}:65536")
    done = run(program, user, "--map-auto", "--", "true")
    check(done, says="newuidmap: ")


def test_ids_that_a_container_does_not_have_are_named(program: Program, user: Account) -> None:
    """Root there may have an entry in its /etc/subuid that its own user namespace doesn't map."""
    for kind in ("uid", "gid"):
        user.give(kind, f"root:{FIRST}:65536")
    done = run(program, user, "--map-auto", "--", "true", starter=("unshare", "-Ur"))
    check(done, says="cannot map subordinate ids", hints="has to have all of them")


def test_root_is_told_that_a_user_can_be_named(program: Program, user: Account) -> None:
    done = run(program, user.root, "--map-auto", "--", "true")
    check(done, says="has no entry in /etc/subuid", hints="--runas USER")
