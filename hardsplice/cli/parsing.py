# SPDX-License-Identifier: GPL-2.0-or-later
"""How the command line is read: where its options end, what each word stands for, and the page that
--help shows. Which options there are, `cli` says.

Two parsers share the work. getopt knows where the options end: the first word that is none belongs
to COMMAND, and so does all that follows. argparse has no such notion; it looks at every word and
refuses one of COMMAND's that resembles an option of ours. So getopt cuts and resolves, with its
lists made from argparse's actions, and argparse gets `--name=value` words only, which it converts.
"""

from __future__ import annotations

import argparse
import getopt
from typing import TYPE_CHECKING, Any, NoReturn

from hardsplice.cli import output
from hardsplice.model import foreign
from hardsplice.model.errors import Failure, quote
from hardsplice.model.spec import in_our_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Parser", "cut"]


class Parser(output.Parser):
    """An ArgumentParser whose errors are Failures, and whose help is a page of sections."""

    def __init__(self) -> None:
        super().__init__(prog="hardsplice", usage=_USAGE, add_help=False, allow_abbrev=False)
        self.sections: dict[str, list[argparse.Action]] = {}

    def section(self, title: str) -> None:
        """Open a section of the help: the options added next stand in it."""
        self.sections[title] = []

    def flag(self, *names: str, help: str, action: str = "store_true", **settings: Any) -> None:  # noqa: A002
        self._note(self.add_argument(*names, help=help, action=action, **settings))

    def value(self, *names: str, metavar: str, help: str, **settings: Any) -> None:  # noqa: A002 - argparse's name
        self._note(self.add_argument(*names, metavar=metavar, help=help, **settings))

    def actions(self) -> list[argparse.Action]:
        """Every option, in the order of the help."""
        return [action for actions in self.sections.values() for action in actions]

    def _note(self, action: argparse.Action) -> None:
        list(self.sections.values())[-1].append(action)

    def format_help(self) -> str:
        lines = [_USAGE, "", _DESCRIPTION]
        for section, actions in self.sections.items():
            lines += ["", f"{section}:"]
            for action in actions:
                names = ", ".join(action.option_strings)
                left = f"  {names} {action.metavar}" if action.metavar else f"  {names}"
                lines.append(f"{left:<28}  {action.help}")
        return "\n".join([*lines, "", _EPILOG])

    def error(self, message: str) -> NoReturn:
        raise wrong(message)


_USAGE = """\
usage: hardsplice [OPTION]... [COMMAND [ARG]...]
       hardsplice [OPTION]... PID
       hardsplice [OPTION]... --netns PATH|NAME [--userns PATH]"""

_DESCRIPTION = """\
Join chosen TCP ports of a network namespace with ports of the host. It is a new
one, in which COMMAND (by default the shell) runs, or one that exists."""

_EPILOG = """\
SPEC is none (the default), all, auto (what is listened on over there), or ports
and ~exclusions; before them may stand a listening address, after each a target:
  8080  80,443  8000-8009  8080:80  127.0.0.1/22  5432:10.0.0.5/5433  all,~22
Port 0, with a target, is one that is free: -t 0:80 says which one it became.
A service manager's listener NAME is taken by -t inherit:NAME:PORT.

Examples:
  hardsplice -t 8080:80 -- ./server        its port 80 is the host's 8080
  hardsplice -T 5432 -- ./client           the host's port 5432 is its own
  hardsplice -t 127.0.0.1/2222:22 1234     for process 1234, in the background
  hardsplice -f -t 80 --netns blue         for /run/netns/blue

The manual is hardsplice(1).
"""


def wrong(message: str) -> Failure:
    """A Failure for words that make no command line."""
    return Failure("parse", "the command line", f"{message}; see hardsplice --help")


def cut(argv: Sequence[str], parser: Parser) -> tuple[list[str], list[str]]:
    """The options, each as one `--name` or `--name=value`, and the words after them."""
    spelling = {}
    short = ""
    long = []
    for action in parser.actions():
        takes_value = action.metavar is not None
        for name in action.option_strings:
            spelling[name] = action.option_strings[-1]
            if name.startswith("--"):
                long.append(name[2:] + "=" * takes_value)
            else:
                short += name[1:] + ":" * takes_value
    # getopt has no optional values. What is COMMAND's stays as it was typed.
    words = ["--audit-json" if word == "--audit=json" else word for word in argv]
    try:
        pairs, rest = getopt.getopt(words, short, long)
        rest = list(argv[len(argv) - len(rest) :])
    except getopt.GetoptError as error:
        raise _explain(error, argv, parser, spelling) from None
    words = []
    for name, text in pairs:
        full = spelling[name]
        takes_value = f"{full[2:]}=" in long
        if takes_value and _is_option(text, spelling):
            reason = f"{quote(text)} is an option; {_wants(parser, full)}"
            raise Failure("use", f"{name} without a value", reason)
        words.append(f"{full}={text}" if takes_value else full)
    return words, rest


def _is_option(text: str, spelling: Mapping[str, str]) -> bool:
    """Whether what stands in a value's place, because there is none, is what came next."""
    if text.startswith("--"):
        return text == "--" or text.partition("=")[0] in spelling
    return len(text) > 1 and text[0] == "-" and all(f"-{char}" in spelling for char in text[1:])


def _wants(parser: Parser, name: str) -> str:
    metavar = next(one.metavar for one in parser.actions() if name in one.option_strings)
    return f"write {metavar} after {name}"


def _explain(
    error: getopt.GetoptError, argv: Sequence[str], parser: Parser, spelling: Mapping[str, str]
) -> Failure:
    """What getopt could not make sense of, in our words."""
    typed = f"--{error.opt}"
    if len(error.opt) == 1 and not any(word.partition("=")[0] == typed for word in argv):
        typed = f"-{error.opt}"
    meant = [name for name in spelling if name.startswith(typed)]
    if len(meant) > 1 and typed not in spelling:
        return wrong(f"option {typed} could be {' or '.join(meant)}")
    if "requires argument" in error.msg:
        full = spelling[typed]
        return Failure("use", f"{full} without a value", _wants(parser, full))
    if "not recognized" not in error.msg:
        return wrong(error.msg)
    value = _value_of(typed, argv)
    if foreign.is_publish(typed, value):
        return Failure("use", f"{typed} {quote(value)}", _ports(value))
    if foreign.is_tap(typed):
        reason = "it is about pasta's tap interface, and there is none here; leave it out"
        return Failure("use", typed, reason)
    return wrong(error.msg)


def _value_of(typed: str, argv: Sequence[str]) -> str:
    """What stands behind an option that nobody knows."""
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, text = word.partition("=")
        if name == typed:
            return text if equals else after
        if len(typed) == 2 and word[:1] == "-" != word[1:2] and typed[1] in word:
            return word.partition(typed[1])[2] or after
    return ""


def _ports(text: str) -> str:
    """What to do about ports that another program would forward."""
    if foreign.is_other_protocol(text):
        return f"{foreign.NOT_TCP}; leave it out"
    return f"ports are asked for by -t; write -t {in_our_words(text) or 'SPEC'}"
