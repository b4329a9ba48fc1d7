# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual against the parser, both ways. What holds for every page: integration/test_manuals.py.

The options are read from the page's source, where mdoc marks each.
"""

from __future__ import annotations

import re
import shlex

from hardsplice.app.command_line import parse_args
from hardsplice.app.option_table import OPTIONS, SECTIONS
from hardsplice.app.options import Mode
from hardsplice.model import foreign, ports, spec
from hardsplice.model.direction import Direction
from tests.unit.app.manual import SOURCE, documented, section, spec_examples

EPHEMERAL = (32768, 60999)


def test_the_manual_and_the_parser_have_the_same_options_with_the_same_values() -> None:
    assert documented() == {option.names: option.value or None for option in OPTIONS}


def test_options_stand_in_the_order_and_sections_of_the_help() -> None:
    titles = re.findall(r"^\.Ss (.*)$", section("OPTIONS"), re.MULTILINE)
    assert titles == [title.partition(" (")[0] for title in SECTIONS]
    assert list(documented()) == [option.names for option in OPTIONS]


def test_every_option_that_is_mentioned_exists() -> None:
    known = {name for option in OPTIONS for name in option.names}
    mentioned = {"-" + name for name in re.findall(r"\bFl ([-\w]+)", SOURCE)}
    assert mentioned
    assert mentioned <= known


def test_the_sections_of_a_manual_are_there_and_in_order() -> None:
    assert re.findall(r"^\.Sh (.*)$", SOURCE, re.MULTILINE) == [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "PORT SPECIFICATIONS",
        "LOG",
        "SERVICES",
        "CONTROL SOCKET",
        "CONTAINER ENGINES",
        "SIGNALS",
        "TERMINAL",
        "ENVIRONMENT",
        "FILES",
        "EXIT STATUS",
        "EXAMPLES",
        "DIFFERENCES FROM PASTA",
        "NOTES",
        "SECURITY",
        "SEE ALSO",
        "AUTHORS",
        "BUGS",
    ]


def test_the_defaults_are_the_parsers() -> None:
    options = parse_args([])
    for name in ("t , Fl --tcp-ports", "T , Fl --tcp-ns"):
        paragraph = SOURCE.partition(f".It Fl {name.replace('Fl --', 'Fl -')} ")[2]
        assert "The default is\n.Cm none ." in paragraph.partition(".It ")[0]
    assert options.inbound == options.outbound == ()
    assert f".Cm {options.sandbox} ,\nthe default" in SOURCE
    assert options.log_size == 1 << 20
    assert "the default is 1M" in SOURCE


def test_the_default_and_the_loopback_are_warned_of() -> None:
    notes = section("NOTES")
    assert "This differs from\n.Xr pasta 1 ,\nwhose default\n.Cm auto" in notes
    words = " ".join(notes.split())
    assert "listens on its loopback only, because it is meant to be private" in words


def test_the_grammar_is_that_of_the_module() -> None:
    def grammar(text: str) -> list[str]:
        lines = [line.strip() for line in text.splitlines() if ":=" in line]
        return [re.sub(r"   +\(.*", "", line) for line in lines]

    assert len(grammar(SOURCE)) == 7
    assert grammar(SOURCE) == grammar(spec.__doc__ or "")


def test_the_spec_examples_mean_what_they_say() -> None:
    counts = {"These twelve ports.": 12, "Nine ports.": 9}
    everything = 65535 - (EPHEMERAL[1] - EPHEMERAL[0] + 1)
    counts["All but these two and the ephemeral ones."] = everything - 2
    counts["All but the ephemeral ones, on the loopback address only."] = everything
    seen = set()
    autos = {
        "All ports that are listened on in the other namespace, except ephemeral ports.": (
            everything,
            None,
        ),
        "The same from port 1024 on, including ephemeral ports, without port 3306.": (
            65535 - 1024,
            None,
        ),
        "The same for clients on this machine only.": (everything, "127.0.0.1"),
    }
    for text, meaning in spec_examples():
        if "auto" in text:
            (auto,) = ports.lay_out([text], Direction.INBOUND, ephemeral=EPHEMERAL).autos
            address = str(auto.address) if auto.address else None
            assert (len(auto.listening_ports()), address) == autos.pop(meaning), text
            continue
        forwards = ports.parse([text], Direction.INBOUND, ephemeral=EPHEMERAL)
        if meaning in counts:
            assert len(forwards) == counts[meaning], text
            seen.add(meaning)
            continue
        numbers = [int(number) for number in re.findall(r"[Pp]ort (\d+)", meaning)]
        first = next((f for f in forwards if not numbers or f.port == numbers[0]), None)
        assert first is not None, text
        if len(numbers) > 1:
            assert first.target_port == numbers[1], text
    assert seen == set(counts)
    assert autos == {}
    assert len(spec_examples()) >= 15


def test_the_command_examples_are_understood() -> None:
    modes = []
    for line in re.findall(r"^\.Dl [$#] hardsplice (.*)$", SOURCE, re.MULTILINE):
        # The user of --runas may be missing where the tests run; root isn't.
        words = shlex.split(line.replace("nobody", "root"))
        modes.append(parse_args(words).mode)
    assert set(modes) == set(Mode) - {Mode.OWN}, "which is no synopsis"


def test_what_differs_from_pasta_is_said_of_options_that_there_are_or_that_are_refused() -> None:
    """The first are ours, which another test says; these are pasta's, and have an answer."""
    missing = section("DIFFERENCES FROM PASTA").partition("These are missing")[2]
    missing = re.sub(r"Fl -no-netns-quit", "", missing.partition("So are\n")[0])
    words = re.findall(r"(?<=[\s,])--?[A-Za-z][\w-]*(?<!-)(?=[\s,])", missing)
    words.remove("--dhcp")  # what names begin with
    assert len(words) > 15
    assert [word for word in words if foreign.why_not(word) is None] == []
