# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job, seen at work: a real server without a network, reached through one host port.

Run by `make demo`. A web server is started by hardsplice in namespaces of its own, as an ordinary
user where that is possible. The page is fetched through the host port with an ordinary client; the
server's namespace is shown to hold nothing else; then every process is laid out with what the
kernel says about its sandbox. The exit status is 0 only if every check held.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from hardsplice.kernel.syscalls import CAPABILITIES
from hardsplice.model.roles import ROLES
from hardsplice.telemetry import audit
from tools import launch

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 15.0  # seconds that anything may take before the demonstration has failed
PAGE_SIZE = 1 << 20

# Run inside the server's namespaces: what is there, and how far one gets from there.
PROBE = """
import errno, json, socket, sys

def attempt(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(3)
        try:
            client.connect(address)
        except TimeoutError:
            return "timed out"
        except OSError as error:
            return errno.errorcode[error.errno]
        return "connected"

print(json.dumps({
    "interfaces": [name for _, name in socket.if_nameindex()],
    "outside": attempt(socket.AF_INET, ("192.0.2.1", 80)),
    "outside6": attempt(socket.AF_INET6, ("2001:db8::1", 80)),
    "host": attempt(socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))),
}))
"""


class Report:
    """Says what was seen, line by line, and remembers what did not hold."""

    def __init__(self) -> None:
        """Nothing has failed yet."""
        self.failures: list[str] = []

    def title(self, text: str) -> None:
        """Begin a part."""
        print(f"\n{text}", flush=True)

    def check(self, text: str, holds: bool, otherwise: object = "") -> bool:
        """One claim, and whether it holds; `otherwise` says what was seen where it does not."""
        print(f"  {'ok  ' if holds else 'FAIL'}  {text}", flush=True)
        if not holds:
            self.failures.append(f"{text}: {otherwise}" if otherwise else text)
            if otherwise:
                print(f"        {otherwise}", flush=True)
        return holds


def eventually(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Whether the condition comes to hold in time."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def free_port() -> int:
    """A port of the host's loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether a web server answers behind the port."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        client.request("HEAD", "/")
        return client.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        client.close()


def show_transfer(report: Report, port: int, page: bytes) -> None:
    """Fetch the page through the host port with an ordinary client."""
    url = f"http://127.0.0.1:{port}/page"
    if shutil.which("curl"):
        command = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", url]
        shown = f"$ curl {url}"
    else:
        code = "import sys, urllib.request as u; o = u.build_opener(u.ProxyHandler({}))"
        code += "; sys.stdout.buffer.write(o.open(sys.argv[1]).read())"
        command = [sys.executable, "-c", code, url]
        shown = f"$ python3 -c 'urllib.request ...' {url}"
    report.title(shown)
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    digest = hashlib.sha256(done.stdout).hexdigest()[:16]
    report.check(
        f"the page came through, byte for byte: {len(done.stdout):,} bytes, sha256 {digest}...",
        done.stdout == page,
        done.stderr.decode(errors="replace").strip() or f"status {done.returncode}",
    )


def show_isolation(report: Report, server: audit.Process) -> None:
    """Look at the world from inside the server's namespaces, and at the same from the host."""
    report.title("Inside the server's namespaces")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = int(other.getsockname()[1])
        command = ["nsenter", f"--target={server.pid}", "--user", "--net"]
        command += ["--preserve-credentials", sys.executable, "-c", PROBE, str(port)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if not report.check("they can be entered", done.returncode == 0, done.stderr.strip()):
            return
        seen = json.loads(done.stdout)
        with socket.socket() as client:
            reached = client.connect_ex(("127.0.0.1", port)) == 0

    interfaces = seen["interfaces"]
    report.check("the only interface is lo", interfaces == ["lo"], interfaces)
    unreachable = seen["outside"] == "ENETUNREACH"
    report.check("no route leads out over IPv4 (ENETUNREACH)", unreachable, seen["outside"])
    no_route6 = seen["outside6"] in ("ENETUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT")
    report.check(f"no route leads out over IPv6 ({seen['outside6']})", no_route6, seen["outside6"])
    report.check(
        f"port {port} of the host's loopback: the host gets through, the server ECONNREFUSED",
        reached and seen["host"] == "ECONNREFUSED",
        f"host {'connected' if reached else 'refused'}, server {seen['host']}",
    )


def show_processes(report: Report, processes: list[audit.Process]) -> None:
    """Lay out the process tree, and check each process of hardsplice's own."""
    report.title("Processes, as /proc has them")
    for line in audit.tables(processes):
        print(f"  {line}".rstrip())
    print()
    own = [process for process in processes if process.is_own]
    roles = {process.role for process in own}
    expected = {"hs-host", "hs-namespace", "hs-relay-in", "hs-guard", "hs-init"}
    report.check(
        "the two monitors, the inbound relay, the server's PID 1 and its guard are there",
        expected <= roles,
        roles,
    )
    report.check("no process for the direction that nobody asked for", "hs-relay-out" not in roles)
    for process in own:
        capabilities = kept_capabilities(process.comm)
        faults = process.faults(sum(1 << CAPABILITIES.index(name) for name in capabilities))
        report.check(
            f"{process.comm} ({process.pid}): {' and '.join(capabilities) or 'no capability'},"
            " no new privileges, seccomp filter",
            not faults,
            ", ".join(faults),
        )


def kept_capabilities(comm: str) -> list[str]:
    """What the policy of a process's role lets it keep."""
    policy = tomllib.loads((launch.CHECKOUT / "policy" / f"{ROLES[comm].policy}.toml").read_text())
    names: list[str] = policy["capabilities"]
    return names


def show_end(
    report: Report,
    program: subprocess.Popen[bytes],
    processes: list[audit.Process],
    port: int,
) -> None:
    """Ask hardsplice to end, and look for what it may have left behind."""
    report.title(f"$ kill {program.pid}")
    program.send_signal(signal.SIGTERM)
    try:
        status = program.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        report.check("it ends", False, f"still there after {PATIENCE:.0f} s")
        return
    report.check(f"it ended with status {status}", status in (0, 128 + signal.SIGTERM))
    report.check(
        "no process is left",
        eventually(lambda: not any(map(audit.is_alive, processes)), 2),
        [f"{process.comm} ({process.pid})" for process in processes if audit.is_alive(process)],
    )
    with socket.socket() as client:
        refused = client.connect_ex(("127.0.0.1", port)) != 0
    report.check("the port is closed", refused)


def demonstrate(report: Report, folder: Path) -> None:
    """Everything, in order; what can't be shown because something before it failed is left out."""
    launcher = launch.ordinary_user(folder)
    site = folder / "site"
    site.mkdir()
    page = secrets.token_bytes(PAGE_SIZE)
    (site / "page").write_bytes(page)
    port = free_port()
    arguments = [*launcher.options, "-t", f"127.0.0.1/{port}:80", "--"]
    server = ["-m", "http.server", "80"]
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"hardsplice on Linux {os.uname().release}, Python {version}, as {launcher.user}")
    report.title(f"$ hardsplice {shlex.join([*arguments, 'python3', *server])}")

    messages = folder / "messages"
    with messages.open("wb") as output:
        started = time.monotonic()
        program = subprocess.Popen(
            launcher.command("-m", "hardsplice", *arguments, launcher.python, *server),
            env=launcher.environment,
            cwd=site,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    processes: list[audit.Process] = []
    try:
        ready = eventually(lambda: program.poll() is not None or answers(port))
        waited = 1000 * (time.monotonic() - started)
        answered = ready and program.poll() is None
        if not report.check(f"the server answers after {waited:.0f} ms", answered):
            print(messages.read_text(errors="replace"), end="")
            return
        processes = launch.snapshot(program.pid)
        show_transfer(report, port, page)
        commands = [process for process in processes if not process.is_own]
        if report.check("the server is one of hardsplice's descendants", bool(commands)):
            show_isolation(report, commands[-1])
        show_processes(report, processes)
        show_end(report, program, processes, port)
    finally:
        end_processes(program, processes)


def end_processes(program: subprocess.Popen[bytes], processes: list[audit.Process]) -> None:
    """Whatever went wrong: leave nothing behind."""
    if program.poll() is None:
        program.terminate()
        try:
            program.wait(5)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
    for process in filter(audit.is_alive, processes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def main() -> int:
    """Run the demonstration; 0 if every check held."""
    report = Report()
    os.umask(0o022)  # the server's user has to read its page
    with tempfile.TemporaryDirectory(prefix="hardsplice-demo-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        demonstrate(report, folder)
    if report.failures:
        sys.stdout.flush()
        count = len(report.failures)
        print(f"\ndemo: {count} checks failed; the first: {report.failures[0]}", file=sys.stderr)
        return 1
    print("\nEvery check held.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
