# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that end listeners; each has a process of its own, since a book can be opened only once
in one.
"""

from __future__ import annotations

from tests.support import fresh

BEGIN = """
import errno, os, socket, time
from hardsplice.net import retiring
from hardsplice.kernel import socketcalls
from hardsplice.sandbox.address_book import USUAL, Book
from hardsplice.ipc.channel import close_all
sink = retiring.open_sink()
book = Book(USUAL, [], 1, is_written=True)
book.open()
book.pin(is_writer=True)
class Timers:
    due = None
    def after(self, seconds, callback):
        self.due = callback
timers, told, misused = Timers(), [], []
one = retiring.Retiring(book, sink)
one.begin(timers, told.append)
one.on_misuse = misused.append
def code_of(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def listener(family, address, port=0):
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if not port:
        with socket.socket(family) as probe:  # the kernel takes back a port that it chose
            probe.bind((address, 0))
            port = probe.getsockname()[1]
    made.bind((address, port))
    made.setblocking(False)
    made.listen()
    return made
def go_on(until, seconds=0.02):
    while timers.due and not until():
        due, timers.due = timers.due, None
        time.sleep(seconds)
        due()
"""


def run(program: str) -> list[str]:
    """The words that a program prints."""
    return fresh.output(BEGIN + program).split()
