# SPDX-License-Identifier: GPL-2.0-or-later
"""The three ways to start hardsplice, as a person or a container engine does."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.engines import answers
from tests.support.netns import Identity, Namespace, mounted
from tests.support.product import ROOT, Instance, Program, free_ports, run
from tests.support.stream import PATIENCE, Stream, eventually, expect, send

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def _passes(namespace: Namespace, port: int, inside: int = 80) -> None:
    """A client of the host's port reaches a server in the namespace."""
    stream = Stream()
    with namespace.socket(socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", inside))
        listener.listen()
        listener.settimeout(PATIENCE)
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client,
            listener.accept()[0] as server,
        ):
            server.settimeout(PATIENCE)
            send(client, stream, 100)
            expect(server, stream, 100)


# --- a namespace that exists ---


def test_pid(namespace: Namespace, identity: Identity, launch: Launch) -> None:
    port = free_ports()
    instance = launch(identity, "-f", "-t", f"127.0.0.1/{port}:80", str(namespace.pid)).wait_ready()
    _passes(namespace, port)
    instance.stop()


def test_path(namespace: Namespace, identity: Identity, launch: Launch) -> None:
    """Both namespaces by their paths; root needs to name the network namespace only."""
    port = free_ports()
    where = ["--netns", namespace.net_path]
    if not identity.is_root:
        where += ["--userns", namespace.user_path]
    instance = launch(identity, "-f", "-t", f"127.0.0.1/{port}:80", *where).wait_ready()
    _passes(namespace, port)
    instance.stop()


@pytest.mark.root
def test_name(launch: Launch) -> None:
    """As `ip netns add` makes them, under /run/netns."""
    root, port = Identity("root"), free_ports()
    name = f"hardsplice-test-{os.getpid()}"
    with Namespace(root) as namespace, mounted(namespace, Path("/run/netns") / name):
        where = ["--netns", name]
        instance = launch(root, "-f", "-t", f"127.0.0.1/{port}:80", *where).wait_ready()
        _passes(namespace, port)
        instance.stop()


@pytest.mark.root
def test_root_joins_a_users_namespaces(user: Identity, launch: Launch) -> None:
    """As a system's container engine does for a user's container."""
    port = free_ports()
    with Namespace(user) as namespace:
        spec = ("-t", f"127.0.0.1/{port}:80")
        instance = launch(Identity("root"), "-f", *spec, str(namespace.pid)).wait_ready()
        _passes(namespace, port)
        instance.stop()


@pytest.mark.root
def test_runas(user: Identity, launch: Launch) -> None:
    """Started as root, its processes are somebody else's."""
    root, port = Identity("root"), free_ports()
    with Namespace(root) as namespace:
        instance = launch(
            root, "-f", "--runas", f"{user.uid}:{user.uid}", "-t", f"127.0.0.1/{port}:80",
            str(namespace.pid),
        ).wait_ready()  # fmt: skip
        _passes(namespace, port)
        for pid in instance.processes():
            status = procfs.status(pid)
            assert status["Uid"].split() == [str(user.uid)] * 4, status["Name"]
            assert status["Gid"].split() == [str(user.uid)] * 4
            assert status["Groups"] == ""
        instance.stop()


def test_ports_below_1024_inside_need_nothing(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    """Inside the namespace, its owner may listen on any port."""
    port = free_ports()
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(PATIENCE)
        spec = ("-T", f"127.0.0.1/80:{port}")
        instance = launch(identity, "-f", *spec, str(namespace.pid)).wait_ready()
        with namespace.socket(socket.AF_INET) as client:
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", 80))
            with listener.accept()[0] as server:
                server.sendall(b"hello")
                assert client.recv(5) == b"hello"
        instance.stop()


def test_options_that_pasta_users_pass(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    """They say what is so anyway: accepted, in silence."""
    port = free_ports()
    flags = ["--splice-only", "--host-lo-to-ns-lo", "-q"]
    spec = ("-t", f"127.0.0.1/{port}:80")
    instance = launch(identity, "-f", *flags, *spec, str(namespace.pid)).wait_ready()
    _passes(namespace, port)
    instance.stop()
    assert instance.messages() == ""


def test_debug_prints_the_stages_and_the_time(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    """The stages are those that DESIGN.md names, and begin one after the other."""
    instance = launch(
        identity, "-f", "-d", "-t", f"127.0.0.1/{free_ports()}:80", str(namespace.pid)
    ).wait_ready()
    instance.stop()
    told = re.findall(r"\[ *([\d.]+) ms\] stage (\w+)$", instance.messages(), re.MULTILINE)
    design = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
    (named,) = re.findall(r"^    (parse(?: → \w+)+)$", design, re.MULTILINE)
    assert [stage for _, stage in told] == named.split(" → "), instance.messages()
    times = [float(time) for time, _ in told]
    assert times == sorted(times)
    assert re.search(r"^hardsplice: ready in \d+ ms$", instance.messages(), re.MULTILINE)


def test_log_file(
    namespace: Namespace, identity: Identity, launch: Launch, user_directory: Path
) -> None:
    """Messages go there, and keep going there after lock-down: a refusal is told."""
    log, port = user_directory / "log", free_ports()
    instance = launch(
        identity, "-f", "-d", "-l", str(log), "-t", f"127.0.0.1/{port}:80", str(namespace.pid)
    ).wait_ready()
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        assert client.connect_ex(("127.0.0.1", port)) in (0, 104)
    eventually(lambda: "refused" in log.read_text(), lambda: f"log: {log.read_text()}", within=5)
    instance.stop()


# --- COMMAND ---


def _command(program: Program, identity: Identity, *words: str) -> subprocess.CompletedProcess[str]:
    return run(program, identity, *words)


def test_a_web_server(identity: Identity, launch: Launch) -> None:
    """The README's example."""
    port = free_ports()
    instance = launch(
        identity, "-t", f"{port}:80", "--", "/usr/bin/python3", "-m", "http.server", "80"
    ).wait_ready()
    assert answers(port) == 200
    instance.process.terminate()
    assert instance.wait() == 128 + signal.SIGTERM


def test_outbound_from_a_command(identity: Identity, program: Program) -> None:
    """What runs inside reaches the host's port, and nothing else of the host."""
    port = free_ports()
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(PATIENCE)
        code = (
            "import socket\n"
            "s = socket.create_connection(('127.0.0.1', 5432))\n"
            "s.sendall(b'q'); print(s.recv(9))\n"
            f"print(socket.socket().connect_ex(('127.0.0.1', {port})))\n"
        )
        argv, environment = program.argv(identity)
        running = subprocess.Popen(
            [*argv, "-T", f"5432:{port}", "--", "/usr/bin/python3", "-c", code],
            env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with listener.accept()[0] as server:
            server.settimeout(PATIENCE)
            assert server.recv(1) == b"q"
            server.sendall(b"answer")
        out, _ = running.communicate(timeout=PATIENCE)
    assert out == "b'answer'\n111\n"  # ECONNREFUSED: the namespace's own loopback
    assert running.returncode == 0


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)],
)
def test_status_is_the_commands(
    identity: Identity, program: Program, script: str, status: int
) -> None:
    """Its own, or 128 and the signal's number; PID 1 must not be immune against its own signals."""
    assert _command(program, identity, "--", "sh", "-c", script).returncode == status


def test_standard_streams_are_the_commands(identity: Identity, program: Program) -> None:
    ran = run(program, identity, "-q", "--", "sh", "-c", "cat; echo oops >&2", given="hello")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("hello", "oops\n", 0)


def test_options_end_at_the_command(identity: Identity, program: Program) -> None:
    """The first word that is no option starts it, and its own options are left alone."""
    ran = _command(program, identity, "-q", "echo", "-t", "nonsense", "--help")
    assert (ran.returncode, ran.stdout) == (0, "-t nonsense --help\n")


def test_the_command_is_root_in_namespaces_of_its_own(identity: Identity, program: Program) -> None:
    script = """
        id -u; id -g; hostname >/dev/null; echo $$
        for n in user net pid mnt ipc uts; do readlink /proc/self/ns/$n; done
        cat /sys/class/net/lo/operstate /proc/net/dev | wc -l
        ls -d /proc/[0-9]* | wc -l
    """
    ran = _command(program, identity, "--", "sh", "-c", script)
    assert ran.returncode == 0, ran.stderr
    uid, gid, own_pid, *namespaces = ran.stdout.split()[:9]
    processes = ran.stdout.split()[-1]
    assert (uid, gid) == ("0", "0")
    assert int(own_pid) < 10
    for kind, inside in zip(("user", "net", "pid", "mnt", "ipc", "uts"), namespaces, strict=True):
        assert inside != procfs.namespace(os.getpid(), kind), kind
    assert int(processes) < 10, "it sees processes of others"


def test_the_command_owes_us_nothing(identity: Identity, program: Program) -> None:
    """What hardsplice's own processes give up is theirs alone."""
    names = "NoNewPrivs|Seccomp_filters"
    ran = _command(program, identity, "--", "grep", "-E", names, "/proc/self/status")
    ours = procfs.status(os.getpid())
    assert ran.stdout.split() == [
        word for name in names.split("|") for word in (f"{name}:", ours[name])
    ]


def test_the_commands_loopback_is_up(identity: Identity, program: Program) -> None:
    code = (
        "import socket; l = socket.create_server(('127.0.0.1', 0));"
        "socket.create_connection(l.getsockname()); print('up')"
    )
    ran = _command(program, identity, "--", "/usr/bin/python3", "-W", "ignore", "-c", code)
    assert ran.stdout == "up\n", ran.stderr


def test_the_command_cannot_reach_its_guard_and_init(identity: Identity, launch: Launch) -> None:
    """It can neither see, signal nor trace hardsplice's processes."""
    instance = launch(
        identity, "-t", f"{free_ports()}:80", "--", "sh", "-c",
        "kill -9 -1; echo; cat /proc/*/comm; sleep 100", stdout=subprocess.PIPE,
    ).wait_ready()  # fmt: skip
    out = instance.process.stdout
    assert out is not None
    assert out.readline() == b"\n"
    seen = out.read1(10_000).decode()  # type: ignore[attr-defined]
    out.close()
    assert "hs-" not in seen.replace(_first_comm(seen), "", 1)
    family = instance.processes()
    assert len(family) >= 3
    assert all(procfs.alive(pid) for pid in family)
    instance.process.terminate()
    assert instance.wait() == 128 + signal.SIGTERM


def _first_comm(seen: str) -> str:
    """PID 1 of the namespace may be hardsplice's own."""
    return seen.splitlines()[0]


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH,
        signal.SIGALRM, signal.SIGPWR, signal.SIGRTMIN + 3,
    ],
)  # fmt: skip
def test_signals_reach_the_command(identity: Identity, launch: Launch, number: int) -> None:
    """The command handles it, and hardsplice ends only with the command."""
    instance = launch(
        identity, "--", "/usr/bin/python3", "-c",
        f"import signal, sys, time; signal.signal({int(number)}, lambda *_: sys.exit(42))\n"
        "print('set', flush=True)\n"
        "while True: time.sleep(0.01)",  # pause(2) would sleep on if the signal came just before
        stdout=subprocess.PIPE,
    ).wait_ready()  # fmt: skip
    assert instance.process.stdout is not None
    assert instance.process.stdout.readline() == b"set\n"
    instance.process.stdout.close()
    instance.process.send_signal(number)
    assert instance.wait() == 42


_COUNT = """
import os, signal, sys, time
got = []
signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
if sys.argv[1] == "leaves": os.setpgid(0, 0)
print("set", flush=True)
while not got: time.sleep(0.01)  # pause(2) would sleep on if the signal came just before
until = time.monotonic() + 0.3
while time.monotonic() < until: time.sleep(0.01)
sys.exit(40 + len(got))
"""


@pytest.mark.parametrize("where", ["stays", "leaves"])
@pytest.mark.parametrize("to", ["hardsplice", "its group"])
def test_a_signal_reaches_the_command_once(
    identity: Identity, launch: Launch, to: str, where: str
) -> None:
    """Also one to all of the group, as shells and timeout(1) send it. Who has left the group gets
    it from hardsplice alone.
    """
    instance = launch(
        identity, "--", "/usr/bin/python3", "-c", _COUNT, where, stdout=subprocess.PIPE
    ).wait_ready()
    assert instance.process.stdout is not None
    assert instance.process.stdout.readline() == b"set\n"
    instance.process.stdout.close()
    if to == "hardsplice":
        instance.process.terminate()
    else:
        os.killpg(instance.pid, signal.SIGTERM)
    assert instance.wait() == 41


def test_the_shell_is_the_default(identity: Identity, program: Program) -> None:
    argv, environment = program.argv(identity)
    terminal, theirs = pty.openpty()
    child = subprocess.Popen(
        ["setsid", "--ctty", *argv], env={**environment, "SHELL": "/bin/sh"}, cwd="/",
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    try:
        os.write(terminal, b"exit 3\n")
        assert child.wait(PATIENCE) == 3
    finally:
        child.kill()
        child.wait()
        os.close(terminal)


def test_the_terminal_is_the_commands(identity: Identity, program: Program) -> None:
    """It has the terminal on its standard streams, and Ctrl-C there reaches it, once."""
    argv, environment = program.argv(identity)
    code = (
        "import os, signal, sys, time\n"
        "got = []\n"
        "signal.signal(signal.SIGINT, lambda number, _: got.append(number))\n"
        "print(os.isatty(0), os.isatty(1), flush=True)\n"
        "while not got: time.sleep(0.01)\n"
        "until = time.monotonic() + 0.3\n"
        "while time.monotonic() < until: time.sleep(0.01)\n"
        "sys.exit(40 + len(got))\n"
    )
    terminal, theirs = pty.openpty()
    child = subprocess.Popen(
        ["setsid", "--ctty", *argv, "-q", "--", "/usr/bin/python3", "-c", code],
        env=environment, cwd="/", stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    try:
        seen = b""
        while b"\n" not in seen:
            seen += os.read(terminal, 1000)
        assert seen == b"True True\r\n"
        os.write(terminal, b"\x03")
        assert child.wait(5) == 41
    finally:
        child.kill()
        child.wait()
        os.close(terminal)


def test_the_commands_guard_and_init_are_locked_down(identity: Identity, launch: Launch) -> None:
    """With COMMAND as with PID: every process of hardsplice's that stays.

    PID 1 of the new namespaces keeps CAP_KILL there, as its policy says: COMMAND may become
    another user.
    """
    port = free_ports()
    instance = launch(
        identity, "-t", f"{port}:80", "-T", f"5432:{port}", "--", "sleep", "100"
    ).wait_ready()

    def states() -> set[tuple[str, ...]]:
        names = ("Name", "Seccomp", "NoNewPrivs", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        found = [procfs.status(pid) for pid in instance.processes()]
        return {tuple(status[name] for name in names) for status in found}

    nothing = "0" * 16
    expected = {
        (name, "2", "1", nothing, nothing, nothing, nothing)
        for name in ("hs-host", "hs-namespace", "hs-relay-in", "hs-relay-out", "hs-guard")
    }

    # Ready is said when PID 1 has locked itself down too, and not before.
    # (COMMAND itself carries our command line until it has replaced it, maybe while we look.)
    found = {state for state in states() if state[0] not in ("hs-command", "sleep")}
    (init,) = found - expected
    assert found > expected
    assert init[:3] == ("hs-init", "2", "1")
    assert {int(caps, 16) for caps in init[3:]} <= {0, 1 << 5}
    instance.process.terminate()
    instance.wait()


def test_a_command_does_not_begin_before_pid_1_is_locked_down(
    program: Program, identity: Identity
) -> None:
    look = ("grep", "Seccomp:", "/proc/1/status")
    done = run(program, identity, "-q", "-t", f"127.0.0.1/{free_ports()}:80", "--", *look)
    assert (done.stdout, done.stderr) == ("Seccomp:\t2\n", "")


def test_help_and_version(program: Program) -> None:
    mine = Identity("me")
    assert run(program, mine, "--version").stdout.startswith("hardsplice ")
    helped = run(program, mine, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--tcp-ports" in helped.stdout


@pytest.mark.root
def test_command_without_a_user_namespace(program: Program) -> None:
    """--netns-only: root in the namespaces as outside, the network its own."""
    owner = "stat -Lc %i /proc/self/ns/user; stat -Lc %i /proc/self/ns/net"
    done = run(program, Identity("root"), "--netns-only", "--", "sh", "-c", owner)
    assert done.returncode == 0, done.stderr
    user, net = map(int, done.stdout.split())
    assert user == os.stat("/proc/self/ns/user").st_ino
    assert net != os.stat("/proc/self/ns/net").st_ino


def test_trace_tells_of_each_connection(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    port = free_ports()
    spec = f"127.0.0.1/{port}:80"
    instance = launch(identity, "-f", "--trace", "-t", spec, str(namespace.pid)).wait_ready()
    for _ in range(3):
        _passes(namespace, port)
    line = f"hardsplice: inbound, 127.0.0.1 port {port}: "
    eventually(lambda: instance.messages().count(f"{line}over\n") == 3, "three ends are told")
    assert instance.messages().count(f"{line}connected\n") == 3
    instance.stop()
