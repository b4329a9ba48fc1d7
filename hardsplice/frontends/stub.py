# SPDX-License-Identifier: GPL-2.0-or-later
"""What is left of a program once the server has its ports: a shell, under the same process number,
that holds the connection to the server and waits for a line on it. It takes a hundredth of what
Python does.

A line says that the container has ended, and then the shell ends. When a signal tells it to end, it
says so to the server, and waits for that line: by then no port is bound any more. If the server
hangs up without one, it has ended itself, and the shell becomes the program again, with the same
request: so ports come back. It holds the listeners of TCP ports, too: who connects meanwhile waits,
and is not refused.

A program that was started again in this way has nobody to tell an error to. It tries again for a
while, and then says in the system's log that it gives up. So does the shell where the program isn't
installed any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import resource
import signal
import sys
import syslog
import time
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address

from hardsplice.frontends.publishing import Published
from hardsplice.ipc import descriptors
from hardsplice.kernel.hints import NoReturn, TypeVar
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.errors import HardspliceError, in_a_line, printable, reason_of
from hardsplice.model.spec import Address

SHELL = "/bin/sh"
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
AGAIN_MAX, AGAIN_SECONDS = 8, 60.0  # servers that may end, and in which time

# Of processor time that the shell may take: it reads next to nothing. A server that was taken over
# could have it read, and keep in memory, a line without an end.
SECONDS = 5
NEXT_STEP = "restart the container to have its ports again"

# The shell's parameters: the connection's descriptor; where to write what when it is ready, which
# is not before it can be told to end; a socket to be removed at the end, and the number of its
# file, or nothing; the container's address, if a server has told it; the seconds of processor time
# that the program may take; the file that the interpreter runs; and the program. Others look for
# that by its name.
SCRIPT = """
{ printf %s "$0" >/proc/self/comm; } 2>/dev/null
fd=$1 told=$2 word=$3 path=$4 inode=$5 address=$6 seconds=$7 file=$8 python=$9
shift 9
finish() {
    [ -z "$path" ] || find "$path" -maxdepth 0 -inum "$inode" -exec rm -f {} + 2>/dev/null
    exit "$1"
}
give_up() {
    trap - EXIT
    logger -t "$0" -p daemon.err "hardsplice: cannot forward ports any more: $1@NEXT_STEP@"
    finish 1
}
leave() {
    trap - HUP INT TERM
    trap '' PIPE  # the server may have ended
    echo >&"$fd" 2>/dev/null
    while read -r line <&"$fd" && [ -n "$line" ]; do :; done
    finish 0
}
trap leave HUP INT TERM
printf "$word" >&"$told"
eval "exec $told>&-"
while read -r line <&"$fd"; do
    [ -n "$line" ] || finish 0
    address=$line
done
trap - HUP INT TERM
ulimit -S -t "$seconds"
shopt -s execfail 2>/dev/null  # where a shell has this, it runs no trap as exec fails
for pause in 1 2 4 8 0; do
    if [ ! -x "$python" ]; then missing=$python
    elif [ ! -r "$file" ]; then missing=$file
    else
        trap 'give_up "$python cannot be executed; "' EXIT
        exec "$python" -X "hardsplice-address=$address" "$@"
        give_up "$python cannot be executed; "
    fi
    sleep "$pause"  # it may be about to be replaced
done
give_up "$missing is gone; install hardsplice, and "
""".replace("@NEXT_STEP@", NEXT_STEP)
# Names of -X options: after an upgrade a shell of the old version starts the new one with these.
_AGAIN, _KEPT, _ADDRESS = "hardsplice-again", "hardsplice-listeners", "hardsplice-address"
Result = TypeVar("Result")


class Again(NamedTuple):
    """How often a program was started again since a moment, in CLOCK_MONOTONIC seconds."""

    times: int = 0
    since: float = 0.0

    def next(self, now: float) -> Again:
        """The same after one more time: it counts anew after a while."""
        if self.times == 0 or now - self.since > AGAIN_SECONDS:
            return Again(1, now)
        return Again(self.times + 1, self.since)

    @property
    def is_too_often(self) -> bool:
        """Whether it is not to be started once more."""
        return self.times > AGAIN_MAX


def _again() -> Again:
    """As the shell has told us."""
    times, _, since = str(sys._xoptions.get(_AGAIN, "")).partition(",")
    try:
        return Again(int(times), float(since))
    except ValueError:
        return Again()


class Kept(NamedTuple):
    """What the shell has kept for us."""

    listeners: Sequence[int] = ()  # of TCP ports
    moves: int | None = None  # where the container's new address is told


def take_kept() -> Kept:
    """What the shell has kept for us, the first time that it is asked."""
    told = str(sys._xoptions.pop(_KEPT, "")).split(",")
    try:
        first, count, has_moves = map(int, told)
    except ValueError:
        return Kept()
    stop = first + count
    return Kept(range(first, stop), stop if has_moves else None)


def address() -> Address | None:
    """The address that the container had at last, if it was told."""
    try:
        return ip_address(str(sys._xoptions.get(_ADDRESS, "")))
    except ValueError:
        return None


def command(given: Sequence[str], again: Again, listeners: range, *, has_moves: bool) -> list[str]:
    """The command line by which an interpreter runs this program once more; ``given`` is the one by
    which it was started.
    """
    words = [*given]
    for at in reversed(range(1, len(words))):
        if words[at].partition("=")[0] in (_AGAIN, _KEPT, _ADDRESS):
            del words[at - 1 : at + 1]
    told = {
        _AGAIN: f"{again.times},{again.since:.0f}",
        _KEPT: f"{listeners.start},{len(listeners)},{has_moves:d}",
    }
    options = [word for name, value in told.items() for word in ("-X", f"{name}={value}")]
    return [words[0], *options, *words[1:]]


def attempted(attempt: Callable[[], Result], is_over: Callable[[], bool] = lambda: False) -> Result:
    """What ``attempt`` returns. If it raises an error, that is raised, but where this program was
    started again, not before it was tried for a while; and the program ends if all ``is_over``.
    """
    again = _again()
    if not again.times:
        return attempt()
    failure: Exception = HardspliceError("forward", "ports any more", "servers end too often")
    for pause in () if again.is_too_often else (0.0, *PAUSES):
        time.sleep(pause)
        if is_over():
            os._exit(0)
        try:
            return attempt()
        except Exception as error:  # noqa: BLE001 - whatever it is, it may pass
            failure = error
    raise failure


def log(name: str, failure: HardspliceError) -> None:
    """Tell the system's log why a program ends that was started again, and what to do."""
    if _again().times:
        syslog.openlog(name, syslog.LOG_PID, syslog.LOG_DAEMON)
        text = f"hardsplice: {in_a_line(failure)}; {NEXT_STEP}"
        syslog.syslog(syslog.LOG_ERR, printable(text))


class Ready(NamedTuple):
    """How it is told that all ports are served."""

    fd: int  # where; from then on /dev/null is there
    word: str  # what, as printf(1) has it


def become(
    name: str,
    title: str,
    published: Published,
    ready: Ready,
    kept: Iterable[int],
    limit: tuple[int, int],
    socket: str | None,
) -> NoReturn:
    """Become the shell, which tells that it is ``ready``, and holds what is ``published``, and what
    is ``kept`` under its numbers, and standard input; all else is closed. ``limit`` is
    RLIMIT_NOFILE as it was; ``socket`` is removed at the end. OSError where there is no shell.

    The process has a ``name``, and a command line that begins with a ``title``.
    """
    kept = {0, 1, 2, ready.fd, *kept}
    places = [fd for fd in range(3, 10) if fd not in kept][:2]  # of one digit, for the shell
    first = max(9, *kept) + 1
    listeners = range(first, first + len(published.listeners))
    moves = () if published.moves is None else (published.moves,)
    sources = (published.connection, ready.fd, *published.listeners, *moves)
    places += range(first, first + len(sources) - 2)
    saved = [(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, places[-1] + 1), fd) for fd in (1, ready.fd)]
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, places[-1] + 1) for fd in sources]
    for fd, place in zip(moved, places, strict=True):
        os.dup2(fd, place)
    descriptors.null_standard_streams((1, 2, ready.fd))
    kept |= {*places}
    for fd in kept:
        os.set_inheritable(fd, True)
    descriptors.close_others(kept | {copy for copy, _ in saved})
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_DFL)
    given = [*map(str, places[:2]), ready.word]
    given += _removed(socket)
    given += [str(address() or ""), _limit_time(), sys.orig_argv[-1 - len(sys.argv)]]
    again = _again().next(time.monotonic())
    words = [sys.executable, *sys.orig_argv[1:]]
    program = command(words, again, listeners, has_moves=bool(moves))
    try:
        os.execv(SHELL, [titled(title), "-c", SCRIPT, name, *given, *program])
    except OSError as error:
        for copy, fd in saved:  # where an error is told
            os.dup2(copy, fd)
        raise HardspliceError("execute", SHELL, reason_of(error)) from error


def _limit_time() -> str:
    """Limit our processor time for the shell; what `ulimit -t` is told to have the limit back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = SECONDS + math.ceil(time.process_time())
    if all(limit < one for one in (soft, hard) if one != resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft)


def titled(title: str) -> str:
    """A title as a shell's own name, which ends with a shell's: some are one program with others,
    and go by that.
    """
    return f"{title}: {SHELL}"


def _removed(socket: str | None) -> list[str]:
    """What the shell removes at its end: a path, and the file's number; neither, where the file is
    gone already.
    """
    if socket is not None:
        with contextlib.suppress(OSError):
            return [socket, str(os.lstat(socket).st_ino)]
    return ["", ""]
