# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs that speak by datagrams, through hardsplice: names, streams, files, shells."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.netns import Identity, Namespace, clean_environment
from tests.support.product import Instance, free_ports
from tests.support.stream import (
    MIB,
    PATIENCE,
    Stream,
    Violation,
    eventually,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
Launch = Callable[..., Instance]

_PACKAGES = {
    "dnsmasq": "dnsmasq-base",
    "unbound": "unbound",
    "dig": "bind9-dnsutils",
    "dnsperf": "dnsperf",
    "iperf3": "iperf3",
    "gtlsserver": "ngtcp2-server",
    "gtlsclient": "ngtcp2-client",
    "openssl": "openssl",
    "mosh-server": "mosh",
    "mosh-client": "mosh",
    "wg": "wireguard-tools",
    "wireguard-go": "wireguard-go",
    "openvpn": "openvpn",
}
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def program_named(name: str) -> str:
    """The program's path; skips where it isn't installed."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: {_PACKAGES[name]})")
    return found


@dataclass
class Stand:
    """A namespace, and what is started in it and on the host for one test."""

    identity: Identity
    namespace: Namespace
    folder: Path
    stack: contextlib.ExitStack

    def inside(self, *words: str) -> list[str]:
        """The command, run in the namespace as its owner."""
        enter = ["nsenter", "-t", str(self.namespace.pid), "-n"]
        if not self.identity.is_root:
            enter += ["-U", "--preserve-credentials"]
        return self.identity.wrap([*enter, *words])

    def start(self, words: list[str], **environment: str) -> subprocess.Popen[str]:
        """Start a command that ends with the test; its output can be read."""
        process = subprocess.Popen(
            words, cwd="/", env=clean_environment({"LC_ALL": "C.UTF-8", **environment}), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.stack.callback(process.communicate)
        self.stack.callback(process.kill)
        return process


@pytest.fixture
def stand(identity: Identity, namespace: Namespace, user_directory: Path) -> Iterator[Stand]:
    """Root's, and an ordinary user's."""
    with contextlib.ExitStack() as stack:
        yield Stand(identity, namespace, user_directory, stack)


def said(words: list[str], **environment: str) -> str:
    """What a command says; a Violation if it fails."""
    done = subprocess.run(
        words, cwd="/", env=clean_environment({"LC_ALL": "C.UTF-8", **environment}), text=True,
        stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PATIENCE * 2,
    )  # fmt: skip
    if done.returncode != 0:
        raise Violation(f"{' '.join(words)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def await_line(process: subprocess.Popen[str], what: str) -> str:
    """The output up to a line that has `what` in it."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if what in line:
            return read
    raise Violation(f"it ended without {what!r}: {read}")


# --- names ---


LONG = [f"{'x' * 250}{number}" for number in range(14)]  # texts of one name
UNBOUND = """server:
  directory: "{folder}"
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  interface: 127.0.0.1
  port: 53
  edns-buffer-size: 4096
  max-udp-size: 4096
  local-zone: "test." static
  local-zone: "some.test." redirect
  local-data: "some.test. A 192.0.2.7"
"""


def dnsmasq(_: Stand) -> list[str]:
    """As root of its user namespace, with no group to change to: setgroups(2) is denied there."""
    return [
        program_named("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv",
        "--no-hosts", "--pid-file=", "--user=root", "--group=", "--listen-address=127.0.0.1",
        "--bind-interfaces", "--edns-packet-max=4096", "--address=/some.test/192.0.2.7",
        *(f"--txt-record=long.test,{text}" for text in LONG),
    ]  # fmt: skip


def unbound(stand: Stand) -> list[str]:
    """Without the rights that it would give up."""
    path = stand.folder / "unbound.conf"
    texts = [f"  local-data: 'long.test. TXT \"{text}\"'\n" for text in LONG]
    path.write_text(UNBOUND.format(folder=stand.folder) + "".join(texts))
    return [program_named("unbound"), "-d", "-c", str(path)]


@pytest.fixture(params=[dnsmasq, unbound])
def resolver(request: pytest.FixtureRequest, stand: Stand, launch: Launch) -> int:
    """A port that leads to a server of names at port 53 in the namespace, by UDP and by TCP."""
    program_named("dig")
    port = free_ports()
    stand.start(stand.inside(*request.param(stand)))
    spec = f"127.0.0.1/{port}:53"
    launch(stand.identity, "-f", "-t", spec, "-u", spec, str(stand.namespace.pid)).wait_ready()
    eventually(lambda: _asked(port, "some.test") == "192.0.2.7\n", "no name is answered")
    return port


def _asked(port: int, *words: str) -> str:
    command = ["dig", "@127.0.0.1", "-p", str(port), "+short", "+tries=1", "+time=2", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE
    ).stdout


@pytest.mark.parametrize("how", ["+notcp", "+tcp"])
def test_names(resolver: int, how: str) -> None:
    """dig asks, by UDP and by TCP on ports of the same number."""
    assert _asked(resolver, how, "some.test") == "192.0.2.7\n"


def test_long_answers(resolver: int) -> None:
    """An answer of some kilobytes by one datagram, and one that is cut short and asked for again
    by TCP."""
    for options in (["+bufsize=4096", "+ignore"], ["+bufsize=512"]):
        answer = _asked(resolver, *options, "long.test", "TXT")
        assert answer.count("\n") == 14, options


def test_many_names(resolver: int, tmp_path: Path) -> None:
    """dnsperf gets an answer to each question, many at once from several ports."""
    dnsperf = program_named("dnsperf")
    questions = tmp_path / "questions"
    questions.write_text("".join(f"n{number}.some.test A\n" for number in range(200)))
    told = said(
        [dnsperf, "-s", "127.0.0.1", "-p", str(resolver), "-d", str(questions), "-n", "20",
         "-c", "8", "-q", "40"]
    )  # fmt: skip
    assert re.search(r"Queries completed: +4000 \(100.00%\)", told), told


# --- streams ---


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_iperf3(stand: Stand, launch: Launch, back: bool) -> None:
    """iperf3 -u at a rate that a telephone needs, twice: nothing is lost or out of order."""
    iperf3, port = program_named("iperf3"), free_ports()
    server = stand.start(stand.inside(iperf3, "--server", "--forceflush", "--port", "5201"))
    await_line(server, "Server listening")
    spec = f"127.0.0.1/{port}:5201"
    launch(stand.identity, "-f", "-t", spec, "-u", spec, str(stand.namespace.pid)).wait_ready()
    told = said(
        [iperf3, "--client", "127.0.0.1", "--port", str(port), "--udp", "--bitrate", "20M",
         "--parallel", "2", "--length", "1400", "--bytes", "1M", "--json",
         *(["--reverse"] if back else [])]
    )  # fmt: skip
    counted = json.loads(told)["end"]["sum"]
    assert counted["packets"] >= 700
    assert counted["lost_packets"] == 0


def test_quic(stand: Stand, launch: Launch) -> None:
    """A file by HTTP/3, both ends of which come with ngtcp2."""
    server, client = program_named("gtlsserver"), program_named("gtlsclient")
    key, certificate = stand.folder / "key.pem", stand.folder / "certificate.pem"
    said(
        [program_named("openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2",
         "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost",
         "-keyout", str(key), "-out", str(certificate)]
    )  # fmt: skip
    key.chmod(0o644)
    content = bytes(Stream().at(0, MIB)) * 3
    (stand.folder / "served").mkdir(mode=0o755)
    (stand.folder / "served" / "file").write_bytes(content)
    (stand.folder / "got").mkdir()
    stand.start(
        stand.inside(
            server, "--quiet", "--htdocs", str(stand.folder / "served"), "127.0.0.1", "443",
            str(key), str(certificate),
        )
    )  # fmt: skip
    port = free_ports()
    launch(
        stand.identity, "-f", "-u", f"127.0.0.1/{port}:443", str(stand.namespace.pid)
    ).wait_ready()

    def fetched() -> bool:
        (stand.folder / "got" / "file").unlink(missing_ok=True)
        done = subprocess.run(
            [client, "--quiet", "--exit-on-all-streams-close", "--timeout=5s",
             "--download", str(stand.folder / "got"), "127.0.0.1", str(port),
             f"https://localhost:{port}/file"],
            capture_output=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        return done.returncode == 0 and (stand.folder / "got" / "file").exists()

    eventually(fetched, "the file comes")
    assert (stand.folder / "got" / "file").read_bytes() == content


# --- a shell ---


def test_mosh(stand: Stand, launch: Launch) -> None:
    """A shell by mosh: what is typed is run, its output comes, and both ends end with it."""
    server, client = program_named("mosh-server"), program_named("mosh-client")
    begun = subprocess.run(
        stand.inside(server, "new", "-i", "127.0.0.1", "-p", "60001", "--", "/bin/sh"),
        cwd="/", env=clean_environment({"LC_ALL": "C.UTF-8", "TERM": "xterm", "HOME": "/"}),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    detached = os.pidfd_open(int(re.findall(r"detached, pid = (\d+)", begun.stderr)[0]))
    stand.stack.callback(_end, detached)
    inner, secret = re.findall(r"MOSH CONNECT (\d+) (\S+)", begun.stdout)[0]
    port = free_ports()
    launch(
        stand.identity, "-f", "-u", f"127.0.0.1/{port}:{inner}", str(stand.namespace.pid)
    ).wait_ready()
    ours, theirs = pty.openpty()
    stand.stack.callback(os.close, ours)
    termios.tcsetwinsize(theirs, (24, 80))  # mosh-client can't do with the size that it has: 0, 0
    process = subprocess.Popen(
        [client, "127.0.0.1", str(port)], stdin=theirs, stdout=theirs, stderr=theirs,
        env=clean_environment({"LC_ALL": "C.UTF-8", "TERM": "xterm", "MOSH_KEY": secret}),
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    stand.stack.callback(process.wait)
    stand.stack.callback(process.kill)
    os.write(ours, b"echo $((6 * 7))00\n")
    assert b"4200" in appearing(ours, until=b"4200")
    os.write(ours, b"exit\n")
    appearing(ours)
    assert process.wait(PATIENCE) == 0
    assert select.select([detached], [], [], PATIENCE)[0], "its server goes on"


def appearing(terminal: int, until: bytes | None = None) -> bytes:
    """What appears on a terminal, until that does, or its other side is closed."""
    seen, deadline = b"", time.monotonic() + PATIENCE
    while (until is None or until not in seen) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            try:
                seen += os.read(terminal, 65_536)
            except OSError:  # EIO: the other side is closed
                break
    return seen


def _end(handle: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    os.close(handle)
