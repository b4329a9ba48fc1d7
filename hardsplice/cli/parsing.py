# SPDX-License-Identifier: GPL-2.0-or-later
"""How a table of options is read from the words of a command line: where the options end, what each
word stands for, and which of them can't go together.

The first word that isn't an option belongs to COMMAND, and so does all that follows. argparse can't
do this, since it interprets every word. So this is done here, as getopt_long(3) with
POSIXLY_CORRECT does it: long options may be abbreviated, short ones may share a word.
"""

from __future__ import annotations

from types import SimpleNamespace

from hardsplice.cli import output
from hardsplice.kernel.hints import TYPE_CHECKING, Any, Literal
from hardsplice.kernel.record import NamedTuple
from hardsplice.model import foreign
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError, quote
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import in_our_words

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Option", "Word", "convert", "cut", "refuse_contradictions", "refuse_others_synopsis"]

# What a shell may offer for a value: these words, or something that it knows by itself.
Offer = tuple[str, ...] | Literal["file", "netns", "user", "descriptor"]


class Option(NamedTuple):
    """One option: everything about it but its paragraph in the manual."""

    names: tuple[str, ...]  # the short one first
    help: str
    value: str = ""  # what its value is called; a flag has none
    field: str = ""  # what it sets, if it sets anything
    default: Any = None
    const: Any = True  # what a flag sets
    parse: Callable[[str], Any] = str  # the value; raises HardspliceError
    repeats: bool = False  # each time a value more; where it doesn't, the last one holds
    offers: Offer = ()
    #: Other options, by their first names, that it can't be combined with, each with the reason.
    excludes: tuple[tuple[str, str], ...] = ()
    #: Another option, by its last name, that it is nothing without, with the reason.
    needs: tuple[str, str] | None = None
    #: The one synopsis that it goes with, with the reason.
    only: tuple[enum.Enum, str] | None = None
    answer: Callable[[], str] | None = None  # what is said, and then there is no more to do

    @property
    def full(self) -> str:
        """Its last name, which is the long one."""
        return self.names[-1]


# An option as it was typed: which, by what name, and its value.
Word = tuple[Option, str, str]


def cut(argv: Sequence[str], options: Iterable[Option]) -> tuple[list[Word], list[str]]:
    """The options, and the words after them. Raises HardspliceError for what is no option."""
    known = {name: option for option in options for name in option.names}
    found: list[Word] = []
    words = list(argv)
    while words and len(words[0]) > 1 and words[0][0] == "-":
        word = words.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            found.append(_long(word, words, known))
        else:
            found.extend(_cluster(word[1:], words, known))
    for option, name, text in found:
        if option.value and _is_option(text, known):
            reason = f"{quote(text)} is an option; {_wants(option)}"
            raise HardspliceError("use", f"{name} without a value", reason)
    return found, words


def _long(word: str, after: list[str], known: Mapping[str, Option]) -> Word:
    """A long option; its value may be the next word, which is taken then."""
    typed, equals, text = word.partition("=")
    meant = [name for name in known if name.startswith(typed)]
    if typed not in known and len(meant) > 1:
        raise wrong(f"option {typed} could be {' or '.join(meant)}")
    if not meant:
        raise _unknown(typed, text if equals else _next(after))
    name = typed if typed in known else meant[0]
    option = known[name]
    if not option.value:
        if equals:
            raise wrong(f"option {name} must not have an argument")
        return option, name, ""
    return option, name, text if equals else _take(option, after)


def _cluster(letters: str, after: list[str], known: Mapping[str, Option]) -> list[Word]:
    """Short options in one word; the last one's value may be the rest of it, or the next word."""
    found: list[Word] = []
    while letters:
        name, letters = f"-{letters[0]}", letters[1:]
        option = known.get(name)
        if option is None:
            raise _unknown(name, letters or _next(after))
        if option.value:
            found.append((option, name, letters or _take(option, after)))
            break
        found.append((option, name, ""))
    return found


def _next(after: list[str]) -> str:
    return after[0] if after else ""


def _take(option: Option, after: list[str]) -> str:
    if not after:
        raise HardspliceError("use", f"{option.full} without a value", _wants(option))
    return after.pop(0)


def _is_option(text: str, known: Mapping[str, Option]) -> bool:
    """Whether what stands in a value's place, because there is none, is what came next."""
    if text.startswith("--"):
        return text == "--" or text.partition("=")[0] in known
    return len(text) > 1 and text[0] == "-" and all(f"-{char}" in known for char in text[1:])


def _wants(option: Option) -> str:
    return f"write {option.value} after {option.full}"


def wrong(message: str) -> HardspliceError:
    """A HardspliceError for words that make no command line."""
    return HardspliceError("parse", "the command line", f"{message}; see hardsplice --help")


def _unknown(typed: str, value: str) -> HardspliceError:
    """An option that there is not, and what to write where it is another program's."""
    if foreign.is_publish(typed, value):
        return HardspliceError("use", f"{typed} {quote(value)}", _ports(value))
    if reason := foreign.why_not(typed):
        return HardspliceError("use", typed, f"{reason}; leave it out")
    return wrong(f"option {typed} not recognized")


def _ports(text: str) -> str:
    """What to do about ports that another program would forward."""
    named = foreign.protocols(text)
    protocol = Protocol.UDP if named == {Protocol.UDP} else Protocol.TCP
    if reason := foreign.of_another_protocol(text, protocol):
        return reason
    option = Direction.INBOUND.option(protocol)
    spec = in_our_words(text, protocol) or "SPEC"
    return f"ports are asked for by {option}; write {option} {spec}"


# --- what they mean -------------------------------------------------------------------------------


def convert(found: Iterable[Word], options: Iterable[Option]) -> SimpleNamespace:
    """What the fields are set to. Raises HardspliceError where a value is wrong, and SystemExit
    where one of the options is a question, which is answered then.
    """
    given = SimpleNamespace(**{one.field: one.default for one in options if one.field})
    for option, _, text in found:
        if option.answer is not None:
            output.answer(option.answer())
            raise SystemExit(0)
        value = option.parse(text) if option.value else option.const
        if not option.field:
            continue
        if option.repeats:
            value = (*getattr(given, option.field), value)
        setattr(given, option.field, value)
    return given


def refuse_contradictions(found: Iterable[Word]) -> None:
    """HardspliceError where one option rules another one out, or needs one that isn't there."""
    given = {name: option for option, _, _ in found for name in option.names}
    for option in given.values():
        for other, reason in option.excludes:
            if other in given:
                raise HardspliceError("combine", f"{option.names[0]} with {other}", reason)
    for option in given.values():
        if option.needs is not None and option.needs[0] not in given:
            other, reason = option.needs
            raise HardspliceError("use", f"{option.full} without {other}", reason)


def refuse_others_synopsis(found: Iterable[Word], mode: enum.Enum) -> None:
    """HardspliceError where an option doesn't go with the synopsis that this is."""
    for option, _, _ in found:
        if option.only is not None and option.only[0] is not mode:
            only, reason = option.only
            raise HardspliceError("use", f"{option.full} without {only.name}", reason)
