# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: what each option gives, where options end, and what contradicts what."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hardsplice import __version__
from hardsplice.app import command_line, start
from hardsplice.app.command_line import parse_args
from hardsplice.app.modes import detect_mode
from hardsplice.app.option_table import OPTIONS, SECTIONS
from hardsplice.app.options import Mode, Options, Verbosity, for_service
from hardsplice.app.usage import page
from hardsplice.kernel.ephemeral import read_ephemeral_range
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.lifetimes import Lifetimes
from hardsplice.model.protocol import Protocol

EPHEMERAL = (32768, 60999)


def parse(*argv: str) -> Options:
    return parse_args(argv, ephemeral=lambda: EPHEMERAL)


def refusal(*argv: str) -> str:
    """The one line that a wrong command line gives."""
    with pytest.raises(HardspliceError) as caught:
        parse(*argv)
    (line,) = caught.value.lines()
    assert line.startswith("hardsplice: cannot ")
    return line


# What is given


def test_nothing_given_runs_the_shell_with_no_ports() -> None:
    assert parse() == Options(
        mode=Mode.COMMAND,
        command=(),
        pid=None,
        netns=None,
        userns=None,
        netns_only=False,
        map_auto=False,
        netns_quit=True,
        inbound=(),
        outbound=(),
        control=None,
        control_from_namespace=False,
        metrics=None,
        inherited=(),
        inbound_auto=(),
        outbound_auto=(),
        any_port=frozenset(),
        versions=(4, 6),
        workers=1,
        foreground=True,
        verbosity=Verbosity.NORMAL,
        log_file=None,
        log_size=1 << 20,
        log_format="text",
        log_flows=False,
        pid_file=None,
        runas=None,
        sandbox="best-effort",
        drain=0,
        idle_timeout=0,
        datagrams=Lifetimes(30, 120, 4096),
        ready_fd=None,
        exit_fd=None,
        audit=None,
    )


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["-4"], "versions", (4,)),
        (["--log-format", "json"], "log_format", "json"),
        (["--log-flows"], "log_flows", True),
        (["--ipv6-only"], "versions", (6,)),
        (["--netns", "/proc/1/ns/net"], "netns", "/proc/1/ns/net"),
        (["--netns", "./blue"], "netns", "./blue"),
        (["--netns=blue"], "netns", "/run/netns/blue"),
        (["--netns-only", "1"], "netns_only", True),
        (["--map-auto", "true"], "map_auto", True),
        (["--no-netns-quit", "1"], "netns_quit", False),
        (["--netns", "blue"], "foreground", False),
        (["1"], "foreground", False),
        (["-f", "1"], "foreground", True),
        (["-f", "--", "true"], "foreground", True),
        (["-q"], "verbosity", Verbosity.QUIET),
        (["-d"], "verbosity", Verbosity.DEBUG),
        (["--trace"], "verbosity", Verbosity.TRACE),
        (["-d", "--trace"], "verbosity", Verbosity.TRACE),
        (["-l", "log"], "log_file", "log"),
        (["-Prun.pid"], "pid_file", "run.pid"),
        (["--pid=a=b"], "pid_file", "a=b"),
        (["-P", "-"], "pid_file", "-"),
        (["-P", "--weird"], "pid_file", "--weird"),
        (["-P", "first", "-P", "last"], "pid_file", "last"),
        (["--workers", "2"], "workers", 2),
        (["--workers=64"], "workers", 64),
        (["--drain", "1"], "drain", 1),
        (["--idle-timeout=86400"], "idle_timeout", 86400),
        (["--sandbox=strict"], "sandbox", "strict"),
        (["--sandbox", "best-effort"], "sandbox", "best-effort"),
        (["--ready-fd", "3"], "ready_fd", 3),
        (["--exit-fd", "4"], "exit_fd", 4),
        (["--splice-only", "--host-lo-to-ns-lo"], "sandbox", "best-effort"),
    ],
)
def test_an_option_sets_its_field(argv: list[str], field: str, value: object) -> None:
    assert getattr(parse(*argv), field) == value


def test_accepted_options_change_nothing() -> None:
    assert parse("--splice-only", "--host-lo-to-ns-lo") == parse()
    # As Podman has pasta: no UDP either way, again and again.
    none = ("-t", "none", "-u", "none", "-T", "none", "-U", "none")
    assert parse(*none, "-unone", "--udp-ports=none", "--udp-ns", "none") == parse("-t", "none")


def test_ports_are_parsed_for_each_direction() -> None:
    given_ports = parse("-t", "8080:80", "-T5432", "--tcp-ports=90", "--tcp-ns", "all,~22")
    assert [(f.port, f.target_port) for f in given_ports.inbound] == [(90, 90), (8080, 80)]
    assert {5432} == {f.port for f in given_ports.outbound if f.required}
    assert not {22, 32768, 60999} & {f.port for f in given_ports.outbound}
    assert {21, 32767, 61000} <= {f.port for f in given_ports.outbound}


def test_udp_ports_are_asked_for_as_tcp_ports_are() -> None:
    given_ports = parse("-t", "80", "-u", "5353:53", "-U53", "-u", "0:123", "--udp-timeout=5")
    shown = [(f.id, f.protocol, f.port, f.target_port) for f in given_ports.inbound]
    assert shown == [(1, "tcp", 80, 80), (2, "udp", 5353, 53), (3, "udp", 0, 123)]
    assert [(f.id, f.protocol, f.port) for f in given_ports.outbound] == [(4, "udp", 53)]
    assert given_ports.groups == {("inbound", "tcp"), ("inbound", "udp"), ("outbound", "udp")}
    assert given_ports.datagrams == Lifetimes(5, 120, 4096)


def test_one_number_is_two_ports_of_two_protocols() -> None:
    given_ports = parse("-t", "53", "-u", "53")
    assert [f.name for f in given_ports.inbound] == ["port 53", "UDP port 53"]


def test_passed_listeners_of_both_protocols_can_be_asked_for() -> None:
    asked = parse("-t", "inherit:80", "-u", "inherit:53", "-u", "inherit:dns:54").inherited
    assert [(one.names, one.port, one.protocol) for one in asked] == [
        ((), 80, "tcp"), ((), 53, "udp"), (("dns",), 54, "udp")
    ]  # fmt: skip


def test_ports_change_at_run_time_only_where_that_is_asked_for() -> None:
    assert parse("-t", "80", "-T", "all").dynamic == frozenset()
    assert parse("-t", "auto").dynamic == {("inbound", "tcp")}
    assert parse("-T", "auto,~22", "-t", "80").dynamic == {("outbound", "tcp")}
    assert parse("-u", "auto", "-t", "80", "-U", "53").dynamic == {("inbound", "udp")}
    both = parse("-T", "auto,80-89", "-t", "auto")
    assert both.dynamic == {("inbound", "tcp"), ("outbound", "tcp")}
    assert both.outbound == both.inbound == ()
    assert both.auto(Direction.OUTBOUND)[0].target_ports() == set(range(80, 90))
    assert len(both.auto(Direction.INBOUND)) == 1


def test_the_ephemeral_range_is_read_only_where_there_are_ports() -> None:
    def fail() -> tuple[int, int]:
        raise AssertionError

    parse_args(["-f", "true"], ephemeral=fail)
    with pytest.raises(AssertionError):
        parse_args(["-t", "80"], ephemeral=fail)


def test_options_are_frozen() -> None:
    with pytest.raises(AttributeError):
        parse().netns = "x"  # type: ignore[misc]


@pytest.mark.parametrize("quits", [False, True])
def test_a_service_is_asked_for_as_without_any_option(*, quits: bool) -> None:
    ports = frozenset((Direction.INBOUND, protocol) for protocol in Protocol)
    found = parse("--netns", "/x")._replace(netns_quit=quits, any_port=ports)
    assert for_service("/x", quits=quits) == found
    assert for_service(None, quits=quits) == found._replace(mode=Mode.OWN, netns=None)


def test_what_an_option_sets_is_a_field_or_is_worked_out() -> None:
    fields = set(Options._fields)
    inputs = {"ipv4_only", "ipv6_only", "quiet", "debug", "trace", "udp_inbound", "udp_outbound"}
    inputs |= {"udp_timeout", "udp_stream_timeout", "udp_flows"}
    assert {option.field for option in OPTIONS} - {""} - fields == inputs
    assert fields - {option.field for option in OPTIONS} <= command_line._WORKED_OUT


def test_the_table_names_options_that_there_are() -> None:
    names = [name for option in OPTIONS for name in option.names]
    assert len(set(names)) == len(names)
    for option in OPTIONS:
        assert {other for other, _ in option.excludes} <= set(names)
        assert option.needs is None or option.needs[0] in names
        assert not (option.value and option.answer)


# Where options end


@pytest.mark.parametrize(
    "command",
    [
        ["true"],
        ["ls", "-t", "-4", "--netns", "x", "--help"],
        # Words of COMMAND that would be errors, were they ours.
        ["cmd", "--net", "--debug=3", "-Z", "-t"],
        ["cmd", "--", "-x", "--"],
        ["-"],
        ["./123", "4"],
    ],
)
@pytest.mark.parametrize("before", [[], ["-t", "80"], ["-f4t80"], ["--tcp-ports", "80", "-f"]])
@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_the_first_word_that_is_no_option_begins_the_command(
    before: list[str], dashes: list[str], command: list[str]
) -> None:
    found = parse(*before, *dashes, *command)
    assert found.command == tuple(command)
    assert found.mode is Mode.COMMAND
    assert [f.port for f in found.inbound] == [80] * bool(before)


def test_after_two_dashes_a_command_may_look_like_an_option() -> None:
    assert parse("--", "-f").command == ("-f",)


@given(st.lists(st.text(), min_size=1, max_size=5))
@example(["--"])
def test_every_word_after_the_command_is_its_own(words: list[str]) -> None:
    assert parse("-d", "cmd", *words).command == ("cmd", *words)


def test_long_options_can_be_shortened_while_unambiguous() -> None:
    assert parse("--foregr", "--tcp-p", "80", "--sand=strict").sandbox == "strict"
    assert parse("--netns", "blue").netns == "/run/netns/blue"
    assert "--net could be --netns or --netns-only" in refusal("--net", "blue")
    assert "--net could be --netns or --netns-only" in refusal("--net=blue")


def test_every_option_is_understood_in_every_spelling() -> None:
    values = {"SPEC": "none", "SIZE": "1M", "N": "5", "MODE": "strict", "USER[:GROUP]": "0:0"}
    values |= {"N|auto": "auto", "FORM": "json", "SECONDS": "7"}
    for option in OPTIONS:
        if option.answer is not None:
            continue
        extra = [option.needs[0], "x"] if option.needs else []
        found = set()
        for name in option.names:
            value = [values.get(option.value, "x")] if option.value else []
            found.add(repr(parse(*extra, name, *value)))
        assert len(found) == 1, option.names


# Modes


@pytest.mark.parametrize(
    ("positional", "netns", "mode"),
    [
        ([], None, Mode.COMMAND),
        (["true"], None, Mode.COMMAND),
        (["1234x"], None, Mode.COMMAND),
        (["٣"], None, Mode.COMMAND),
        (["1234"], None, Mode.PID),
        ([], "/run/netns/x", Mode.NETNS),
    ],
)
def test_modes(positional: list[str], netns: str | None, mode: Mode) -> None:
    assert detect_mode(positional, netns) is mode


def test_a_pid_is_a_number_and_no_command() -> None:
    found = parse("-t", "80", "1234")
    assert (found.mode, found.pid, found.command) == (Mode.PID, 1234, ())


def test_a_user_namespace_goes_with_a_network_namespace() -> None:
    found = parse("--netns", "/a", "--userns", "/b")
    assert (found.mode, found.netns, found.userns) == (Mode.NETNS, "/a", "/b")


@pytest.mark.parametrize(
    ("argv", "what", "next_step"),
    [
        (["--netns", "x", "12"], "combine --netns with PID '12'", "leave out one of the two"),
        (["--netns", "x", "ls"], "combine --netns with COMMAND 'ls'", "leave out --netns"),
        (["--netns", "x", "12", "a"], "combine --netns with COMMAND '12'", "leave out --netns"),
        (["--userns", "x"], "use --userns without --netns", "add --netns"),
        (["--userns", "x", "12"], "use --userns without --netns", "leave it out"),
        (["--userns", "x", "ls"], "use --userns without --netns", "leave it out"),
        (["12", "-t", "80"], "use PID '12'", "put options before it"),
        (["0"], "use PID '0'", "a container that does not run"),
        (["000"], "use PID '000'", "a container that does not run"),
        ([""], "use COMMAND or PID ''", "a variable is that was not set"),
        (["", "80"], "use COMMAND or PID ''", "a variable is that was not set"),
        (["-t", "80", "--", "\n"], "use COMMAND or PID '\\n'", "write one"),
        (["12\n13"], "use PID '12\\n13'", "not one number"),
        (["12 "], "use PID '12 '", "not one number"),
        (["9" * 5000], "use PID '999", "1 to 4194304"),
        (["--map-auto", "1"], "use --map-auto without COMMAND", "leave it out"),
        (["--map-auto", "--netns", "x"], "use --map-auto without COMMAND", "leave it out"),
        (["--map-auto", "--netns-only", "x"], "combine --netns-only with --map-auto", "leave out"),
        (["-4", "-6"], "combine -4 with -6", "leave out both"),
        (["-46"], "combine -4 with -6", "leave out both"),
        (["-q", "-d"], "combine -q with -d", "leave out one"),
        (["-q", "--trace"], "combine -q with --trace", "leave out one"),
        (["--metrics", "x"], "use --metrics without --control", "add --control"),
        (["--log-size", "1M"], "use --log-size without --log-file", "add --log-file"),
        (
            ["--netns-only", "--netns", "x", "--userns", "y"],
            "combine --netns-only with --userns",
            "leave out one",
        ),
    ],
)
def test_contradictions_are_refused_with_a_next_step(
    argv: list[str], what: str, next_step: str
) -> None:
    line = refusal(*argv)
    assert f"cannot {what}" in line
    assert next_step in line


# Wrong values


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--nonsense"], ["--nonsense not recognized", "see hardsplice --help"]),
        (["-Z"], ["-Z not recognized", "see hardsplice --help"]),
        (["-n"], ["use -n: it is about pasta's tap interface", "leave it out"]),
        (["-e"], ["use -e: in the foreground messages go to standard error", "leave it out"]),
        (["--stderr"], ["use --stderr: in the foreground messages go to standard error"]),
        (["--no-splice"], ["use --no-splice: TCP is forwarded by splice(2) alone"]),
        (["--no-udp"], ["use --no-udp: UDP is forwarded where -u or -U asks", "leave it out"]),
        (["-fn", "x"], ["use -n: it is about pasta's tap interface", "leave it out"]),
        (["--config-net"], ["use --config-net: it is about pasta's tap", "leave it out"]),
        (["-t"], ["use --tcp-ports without a value", "write SPEC after --tcp-ports"]),
        (["--netns"], ["use --netns without a value", "write PATH|NAME after --netns"]),
        (["--netns", "-t", "80"], ["use --netns without a value: '-t' is an option"]),
        (["--netns", "-f4", "-t80"], ["use --netns without a value: '-f4' is an option"]),
        (["-P", "--netns=x", "-t80"], ["use -P without a value: '--netns=x' is an option"]),
        (["--netns", "--", "true"], ["use --netns without a value: '--' is an option"]),
        (["--net", "x"], ["option --net could be --netns or --netns-only"]),
        (["-u", "53/tcp"], ["parse -u '53/tcp': TCP ports are asked for by -t and -T"]),
        (["-Uinherit:53"], ["use -U 'inherit:53': listeners are passed on the host; write -u"]),
        (["-u", "none", "-u", "53"], ["combine -u none with -u '53'"]),
        (["--udp-timeout", "0"], ["parse --udp-timeout '0': it is not a time"]),
        (["--udp-flows=no"], ["parse --udp-flows 'no': it is not a number of flows"]),
        (["-p", "8080:80"], ["use -p '8080:80'", "write -t 8080:80"]),
        (["-fp8080:80/tcp"], ["use -p '8080:80/tcp'", "write -t 8080:80"]),
        (
            ["--publish=127.0.0.1:8080:80"],
            ["--publish '127.0.0.1:8080:80'", "-t 127.0.0.1/8080:80"],
        ),
        (["--publish", "53:53/udp"], ["use --publish '53:53/udp'", "by -u; write -u 53:53"]),
        (["-p"], ["use -p ''", "write -t SPEC"]),
        (["-p", "trace.pcap"], ["use -p: it is about pasta's tap interface"]),
        (["--control-from-namespace"], ["without --control", "add --control, or leave it out"]),
        (["--debug=3"], ["--debug must not have an argument", "see hardsplice --help"]),
        (["-t", "80-70"], ["parse -t '80-70'", "write 70-80"]),
        (["-T", "80:10.0.0.5,auto"], ["a target that auto can't watch", "leave out the address"]),
        (["-t=80"], ["parse -t '=80'", "is not a port"]),
        (["-4", "-t", "::1/80"], ["parse -t '::1/80'", "leave out -4"]),
        (["--netns", ""], ["parse --netns ''", "ip-netns(8)"]),
        (["--netns", ".."], ["parse --netns '..'", "ip-netns(8)"]),
        (["--userns", ""], ["use --userns with nothing", "write one after it"]),
        (["-P", ""], ["use --pid with nothing", "write one after it"]),
        (["-l", ""], ["use --log-file with nothing", "write one after it"]),
        (["--ready-fd", "-1"], ["parse --ready-fd '-1'", "write its number"]),
        (["--ready-fd", "x"], ["parse --ready-fd 'x'", "write its number"]),
        (["--exit-fd", "x"], ["parse --exit-fd 'x'", "write its number"]),
        *(
            ([f"--workers={wrong}"], ["parse --workers", "1 to 64, or auto"])
            for wrong in ("", "0", "65", "-1", "two")
        ),
        *(
            ([f"{option}={wrong}"], [f"parse {option}", "write seconds, 1 to 86400"])
            for option in ("--drain", "--idle-timeout")
            for wrong in ("", "0", "86401", "-1", "1.5", "1m", "ten")
        ),
        (["--sandbox", "lax"], ["parse --sandbox 'lax'", "write best-effort or strict"]),
        (["-l", "x", "--log-size", "x"], ["parse --log-size 'x'", "k, M or G"]),
        (["-l", "x", "--log-size", ""], ["parse --log-size ''", "k, M or G"]),
        (["-l", "x", "--log-size", "1T"], ["parse --log-size '1T'", "k, M or G"]),
        (["-l", "x", "--log-size", "-1"], ["parse --log-size '-1'", "k, M or G"]),
        (["-l", "x", "--log-size", "4095"], ["at least 4096 bytes", "write 1M"]),
        (["-l", "x", "--log-size", "9999999999G"], ["less than 8 EiB", "write 1M"]),
        (["--runas", "no-such-user"], ["there is no user 'no-such-user'", "write a login"]),
        (["--runas", "0:no-such-group"], ["there is no group 'no-such-group'", "write a group"]),
        (["--runas", "4294967295"], ["'4294967295' is not a user's number", "0 to 4294967294"]),
        (["--runas", "0:4294967295"], ["'4294967295' is not a group's number", "0 to"]),
        (["--runas", "²"], ["'²' is not a user's number", "0 to"]),
        (["--runas", "0:"], ["parse --runas '0:'", "write UID[:GID] or LOGIN[:GROUP]"]),
        (["--runas", ":0"], ["parse --runas ':0'", "write UID[:GID] or LOGIN[:GROUP]"]),
        (["--runas", ""], ["parse --runas ''", "write UID[:GID] or LOGIN[:GROUP]"]),
    ],
)
def test_a_wrong_value_gives_one_line_with_a_next_step(argv: list[str], parts: list[str]) -> None:
    line = refusal(*argv)
    for part in parts:
        assert part in line


@given(st.lists(st.text(max_size=12) | st.sampled_from([
    name for option in OPTIONS for name in option.names if option.answer is None
]), max_size=6))  # fmt: skip
def test_any_words_give_options_or_a_failure(argv: list[str]) -> None:
    # An abbreviation or a cluster may still mean help, which is an answer and no error.
    outcome: HardspliceError | SystemExit | Options
    try:
        outcome = parse(*argv)
    except (HardspliceError, SystemExit) as error:
        outcome = error
    if isinstance(outcome, HardspliceError):
        assert all(line.isprintable() for line in outcome.lines())
    elif isinstance(outcome, SystemExit):
        assert outcome.code == 0


# The ephemeral range


def test_the_ephemeral_range_is_that_of_the_kernel() -> None:
    first, last = read_ephemeral_range()
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        assert file.read().split() == [str(first), str(last)]


@pytest.mark.parametrize("content", [None, "", "1", "a b", "1 2 3"])
def test_an_unreadable_ephemeral_range_is_the_kernels_default(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "range"
    if content is not None:
        path.write_text(content, encoding="ascii")
    assert read_ephemeral_range(str(path)) == EPHEMERAL


# Answers


def test_help_names_every_option_on_narrow_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        parse("--help")
    assert done.value.code == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert shown.startswith("usage: hardsplice ")
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 72
    for option in OPTIONS:
        left = "  " + ", ".join(option.names)
        assert sum(line.startswith((f"{left} ", f"{left}\n")) for line in lines) == 1
    assert "Examples:" in lines


def test_the_examples_of_the_help_are_understood() -> None:
    lines = page(SECTIONS).partition("Examples:")[2].splitlines()
    commands = [line.split("  ")[1].split()[1:] for line in lines if "  hardsplice" in line]
    assert [parse(*command).mode for command in commands] == [
        Mode.COMMAND,
        Mode.COMMAND,
        Mode.PID,
        Mode.NETNS,
    ]


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        parse("--version")
    assert done.value.code == 0
    assert capsys.readouterr().out == f"hardsplice {__version__}\n"


@pytest.mark.parametrize(
    ("words", "form"),
    [(["--audit"], "table"), (["--audit=json"], "json"), (["--audit-json"], "json"), ([], None)],
)
def test_audit_has_two_forms(words: list[str], form: str | None) -> None:
    assert parse_args([*words, "true"]).audit == form


def test_audit_among_the_words_of_command_is_left_alone() -> None:
    command = ("prog", "--audit=json", "--audit")
    assert parse_args(["--", *command]).command == command


def test_a_python_that_compiles_at_run_time_is_refused() -> None:
    """Since the filter would kill it later on, without a word."""

    class Jit:
        @staticmethod
        def is_enabled() -> bool:
            return True

    with pytest.raises(HardspliceError, match="it compiles machine code while it runs"):
        start._refuse_jit(Jit)
    start._refuse_jit(None)
