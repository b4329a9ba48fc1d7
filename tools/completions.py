# SPDX-License-Identifier: GPL-2.0-or-later
"""What the three shells' completions have of the tables of options: lines for their files, whose
other lines are written by hand (packaging/completions).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from hardsplice.app.option_table import OPTIONS, SECTIONS
from hardsplice.app.options import Mode
from hardsplice.cli.parsing import Option
from hardsplice.ctl.cli import COMMANDS, COMMON, Command

_HELP = Option(("-h", "--help"), "show this")
_VERSION = Option(("--version",), "show it")


def _names(options: Iterable[Option]) -> list[str]:
    return [name for option in options for name in option.names]


def _with_value() -> list[Option]:
    return [option for option in OPTIONS if option.value]


def _about(option: Option) -> str:
    return option.help.partition(" (default:")[0]


def _letters(options: Iterable[Option]) -> str:
    return "".join(name[1] for name in _names(options) if not name.startswith("--"))


# --- bash -----------------------------------------------------------------------------------------


def bash_options() -> list[str]:
    """All names, and the letters of the short ones."""
    flags = [option for option in OPTIONS if not option.value]
    return [
        f"local flags={_letters(flags)} valued={_letters(_with_value())} all='",
        *(f"    {' '.join(_names(options))}" for options in SECTIONS.values()),
        "'",
    ]


def bash_with_values() -> list[str]:
    """The clause for a long option whose value is the next word."""
    names = [name for name in _names(_with_value()) if name.startswith("--")]
    return [*_alternatives(names), "    pending=$word", "    ;;"]


def bash_values() -> list[str]:
    """A clause for each kind of value."""
    by_offer: dict[str | tuple[str, ...], list[Option]] = {}
    for option in _with_value():
        by_offer.setdefault(option.offers, []).append(option)
    lines = []
    for offer, options in by_offer.items():
        if isinstance(offer, str):
            # A descriptor's number is nothing that bash could know.
            what = f"_hardsplice_{offer}" if offer != "descriptor" else ":"
        else:
            what = f"_hardsplice_words {shlex.quote(' '.join(offer))}" if offer else ":"
        lines += [*_alternatives(_names(options)), f"    {what}", "    ;;"]
    return lines


def _alternatives(names: list[str]) -> list[str]:
    """The head of a clause, on lines that aren't too long."""
    rows = [" | ".join(names[at : at + 6]) for at in range(0, len(names), 6)]
    return [*(f"{row} | \\" for row in rows[:-1]), f"{rows[-1]})"]


# --- zsh ------------------------------------------------------------------------------------------

_ZSH_ACTIONS = {
    "file": "_files",
    "netns": "_hardsplice_netns",
    "user": "_users",
    "descriptor": "_file_descriptors",
}


def zsh() -> list[str]:
    """The specifications for _arguments, as an array."""
    return ["specs=(", *(f"  {_zsh(option, _ruled_out(option))}" for option in OPTIONS), ")"]


def _ruled_out(option: Option) -> list[str]:
    """What isn't offered any more once an option was given."""
    if option.answer is not None:
        return ["-", "*"]
    others = [
        other
        for other in OPTIONS
        if other is not option
        and (
            _excludes(option, other)
            or _excludes(other, option)
            or (option.field and other.field == option.field)
        )
    ]
    itself = option.names if len(option.names) > 1 and not option.repeats else ()
    command = ["1", "*"] if option.only and option.only[0] is Mode.NETNS else []
    return [*command, *itself, *_names(others)]


def _excludes(one: Option, other: Option) -> bool:
    return any(name in other.names for name, _ in one.excludes)


def _zsh(option: Option, ruled_out: list[str]) -> str:
    """One specification, in quotes where it has to be."""
    before = "*" if option.repeats else f"({' '.join(ruled_out)})" if ruled_out else ""
    spelled = [
        name + ("" if not option.value else "=" if name.startswith("--") else "+")
        for name in option.names
    ]
    after = f"[{_zsh_text(_about(option), ']')}]"
    if option.value:
        action = (
            _ZSH_ACTIONS[option.offers]
            if isinstance(option.offers, str)
            else f"({' '.join(option.offers)})"
            if option.offers
            else ""
        )
        after += f":{_zsh_text(option.value.lower(), ':')}:{action}"
    if len(spelled) == 1:
        return _quoted(before + spelled[0] + after)
    return (_quoted(before) if before else "") + f"{{{','.join(spelled)}}}" + _quoted(after)


def _zsh_text(text: str, special: str) -> str:
    return text.replace("\\", "\\\\").replace(special, f"\\{special}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish -----------------------------------------------------------------------------------------


def fish_argparse() -> list[str]:
    """The options in the form of fish's argparse, by which COMMAND is found."""
    return [
        f"set -a options {' '.join(map(_fish_argparse, options))}" for options in SECTIONS.values()
    ]


def _fish_argparse(option: Option) -> str:
    value = ("=+" if option.repeats else "=") if option.value else ""
    return "/".join(name.lstrip("-") for name in option.names) + value


def fish() -> list[str]:
    """A line for each option."""
    return [f"$option {_fish(option)}" for option in OPTIONS]


_FISH_OFFERS = {
    "file": "-r -F",
    "netns": "-x -a '(__hardsplice_netns)'",
    "user": "-x -a '(__fish_complete_users)'",
    "descriptor": "-x",
}


def _fish(option: Option) -> str:
    words = [
        f"-{'l' if name.startswith('--') else 's'} {name.lstrip('-')}" for name in option.names
    ]
    if isinstance(option.offers, str):
        words.append(_FISH_OFFERS[option.offers])
    elif option.value:
        words.append(f"-x -a '{' '.join(option.offers)}'" if option.offers else "-x")
    text = _about(option).replace("\\", "\\\\").replace("'", "\\'")
    return " ".join([*words, f"-d '{text}'"])


# --- hardsplicectl's ------------------------------------------------------------------------------


def _commands() -> Iterator[tuple[str, Command]]:
    """Every command and action, with the words that name it."""
    for command in COMMANDS:
        yield command.name, command
        for action in command.actions:
            yield f"{command.name} {action.name}", action


def ctl_bash_options() -> list[str]:
    """The options with values."""
    options = [*COMMON, *(option for _, command in _commands() for option in command.options)]
    valued = _names(option for option in options if option.value)
    files = _names(option for option in options if option.offers == "file")
    return [f"local valued='{' '.join(valued)}' files='{' '.join(files)}'"]


def ctl_bash_words() -> list[str]:
    """What is offered after which words."""
    common = [*(name for option in COMMON for name in option.names), "--help"]
    names = [command.name for command in COMMANDS]
    lines = [f"'') offered='{' '.join([*names, '--version', *common])}' ;;"]
    for words, command in _commands():
        offered = [*(action.name for action in command.actions), *_names(command.options)]
        if offered:
            many = "*" if any(word.repeats for word in command.words) else ""
            lines.append(f"' {words}'{many}) offered='{' '.join([*offered, *common])}' ;;")
    return [*lines, f"*) offered='{' '.join(common)}' ;;"]


def ctl_zsh() -> list[str]:
    """The body of the function."""
    names = [command.name for command in COMMANDS]
    own = [command for command in COMMANDS if command.actions or command.options]
    lines = ["local -a common", "common=("]
    lines += [f"  {_zsh(option, [])}" for option in COMMON]
    lines += [f"  {_zsh(_HELP, ['-', '*'])}", ")"]
    lines.append(f"case ${{words[(r)({'|'.join(command.name for command in own)})]}} in")
    for command in own:
        options = [*command.options, *(o for action in command.actions for o in action.options)]
        actions = " ".join(action.name for action in command.actions)
        rest = f"'*:action:({actions})'" if actions else "'*: : '"
        lines += _zsh_clause(command.name, [*(_zsh(option, []) for option in options), rest])
    version = _zsh(_VERSION, ["-", "*"])
    return [*lines, *_zsh_clause("*", [version, f"'1:command:({' '.join(names)})'"]), "esac"]


def _zsh_clause(pattern: str, specs: list[str]) -> list[str]:
    rows = ["    _arguments $common", *(f"      {spec}" for spec in specs)]
    return [f"  {pattern})", *(f"{row} \\" for row in rows[:-1]), rows[-1], "    ;;"]


def ctl_fish() -> list[str]:
    """A line for each command, action and option."""
    names = " ".join(command.name for command in COMMANDS)
    seen = "__fish_seen_subcommand_from"
    line = "complete -c hardsplicectl"
    lines = [f'{line} -n "not {seen} {names}" -a "{names}"']
    for command in COMMANDS:
        if command.actions:
            actions = " ".join(action.name for action in command.actions)
            condition = f"{seen} {command.name}; and not {seen} {actions}"
            lines.append(f"{line} -n \"{condition}\" -a '{actions}'")
    lines += [f"{line} {_fish(option)}" for option in (*COMMON, _HELP)]
    lines.append(f'{line} -n "not {seen} {names}" {_fish(_VERSION)}')
    for _, command in _commands():
        lines += [
            f'{line} -n "{seen} {command.name}" {_fish(option)}' for option in command.options
        ]
    return lines
