# SPDX-License-Identifier: GPL-2.0-or-later
"""A policy that is not in order does not load, and the message names the rule and the mistake."""

from __future__ import annotations

import pytest

from hardsplice.model.errors import HardspliceError
from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.policy.format import parse_policy
from hardsplice.sandbox.policy.model import Comparison, Policy, resolve
from hardsplice.sandbox.seccomp import compile_policy

HEAD = """
role = "relay"
summary = "for this test"
capabilities = []
[descriptors]
CHANNEL = 3
"""
RULE = """
[[rule]]
call = "pipe2"
when = "flags == O_NONBLOCK|O_CLOEXEC"
why = "for this test"
where = "hardsplice.relay.tcp.seam.open_pipe"
"""
OTHER = """
role = "{role}"
summary = "for this test"
capabilities = []
{more}
[[rule]]
call = "close"
why = "for this test"
where = "hardsplice.relay.tcp.seam.open_pipe"
"""


def parse(text: str, **others: str) -> Policy:
    return parse_policy(text, "relay", read=others.__getitem__)


def rule(**changes: str | None) -> str:
    """RULE with lines replaced, added, or with None left out."""
    lines = dict(line.split(" = ", 1) for line in RULE.strip().splitlines()[1:])
    for key, value in changes.items():
        name = key.rstrip("_")
        if value is None:
            lines.pop(name, None)
        else:
            lines[name] = value
    return "\n[[rule]]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())


def test_a_policy_in_order_loads() -> None:
    policy = parse(HEAD + RULE)
    assert [one.call for one in policy.rules] == ["pipe2"]
    assert policy.rules[0].condition() == "flags == O_NONBLOCK|O_CLOEXEC"
    assert resolve(policy, "arm64") == {"pipe2": ((Comparison(1, None, 0o2004000),),)}


def test_alternatives_and_masks_are_read() -> None:
    when = '["fd == CHANNEL and flags & O_NONBLOCK|O_CLOEXEC == O_CLOEXEC", "flags == 0"]'
    text = rule(call='"recvmsg"', when=when, risk='"none"')
    assert resolve(parse(HEAD + text), "s390x") == {
        "recvmsg": (
            (Comparison(0, None, 3), Comparison(2, 0o2004000, 0o2000000)),
            (Comparison(2, None, 0),),
        )
    }


def test_a_rule_for_one_architecture_is_for_that_one() -> None:
    text = (
        HEAD
        + RULE
        + RULE.replace("[[rule]]", "[[i686.rule]]")
        .replace("pipe2", "close")
        .replace('when = "flags == O_NONBLOCK|O_CLOEXEC"', "")
    )
    policy = parse(text)
    assert [one.call for one in policy.rules_for("i686")] == ["pipe2", "close"]
    assert [one.call for one in policy.rules_for("arm64")] == ["pipe2"]


def test_a_call_allowed_in_any_way_has_no_alternatives_left() -> None:
    text = HEAD.replace("capabilities", 'include = ["runtime"]\ncapabilities')
    mine = rule(call='"close"', when=None)
    other = rule(call='"close"', when='"fd == CHANNEL"')
    included = HEAD.replace("relay", "runtime") + other
    assert resolve(parse(text + mine, runtime=included), "x86_64") == {"close": ((),)}


def test_a_policy_may_be_nothing_but_others_together() -> None:
    text = HEAD.replace("capabilities", 'include = ["runtime"]\ncapabilities')
    included = HEAD.replace("relay", "runtime") + rule(call='"close"', when='"fd == CHANNEL"')
    assert [one.call for one in parse(text, runtime=included).rules_for("s390x")] == ["close"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("role = ", "Invalid value", id="not TOML"),
        pytest.param(HEAD, "there is neither a [[rule]] nor an include", id="no rule"),
        pytest.param(
            HEAD.replace('"relay"', '"init"') + RULE, "role: should be 'relay'", id="role"
        ),
        pytest.param(HEAD.replace("summary", "sumary") + RULE, "unknown key 'sumary'", id="key"),
        pytest.param(
            HEAD.replace("capabilities = []", "") + RULE, "capabilities: missing", id="caps"
        ),
        pytest.param(
            HEAD.replace("[]", '["CAP_EVERYTHING"]') + RULE,
            "unknown capability 'CAP_EVERYTHING'",
            id="unknown capability",
        ),
        pytest.param(
            HEAD.replace("[]", '["CAP_KILL", "CAP_CHOWN"]') + RULE,
            "a process may keep one at most",
            id="two capabilities",
        ),
        pytest.param(
            HEAD.replace("= 3", '= "3"') + RULE, "CHANNEL is not a descriptor", id="number"
        ),
        pytest.param(
            HEAD.replace("CHANNEL", "SOL_SOCKET") + RULE,
            "SOL_SOCKET can't be the name of a descriptor",
            id="a constant's name",
        ),
        pytest.param(HEAD + '[rule]\ncall = "close"', "rules are written as [[rule]]", id="table"),
        pytest.param(
            HEAD + rule(when_='"flags = 0"'), "can't read 'flags = 0'", id="one equals sign"
        ),
        pytest.param(
            HEAD + rule(when='"flags == 0x800"'), "can't read 'flags == 0x800'", id="a hexadecimal"
        ),
        pytest.param(
            HEAD + rule(when='"flags == O_NOBLOCK"'),
            "[[rule]] number 1 (pipe2): when: unknown constant O_NOBLOCK",
            id="unknown constant",
        ),
        pytest.param(
            HEAD + rule(when='"flgs == O_CLOEXEC"'),
            "no parameter flgs: pipe2 has pipefd, flags",
            id="unknown parameter",
        ),
        pytest.param(
            HEAD + rule(call='"sync"', when='"flags == 0"'),
            "sync is not in hardsplice/kernel/syscalls.py",
            id="call without parameters",
        ),
        pytest.param(
            HEAD + rule(when='"flags == 0 and flags == O_CLOEXEC"'),
            "flags is compared twice",
            id="compared twice",
        ),
        pytest.param(
            HEAD + rule(when='"flags & O_NONBLOCK == O_CLOEXEC"'), "can't hold", id="can't hold"
        ),
        pytest.param(HEAD + rule(when="7"), "neither a text nor a list of texts", id="a number"),
        pytest.param(HEAD + rule(why=None), "(pipe2): why: missing", id="no reason"),
        pytest.param(HEAD + rule(why='"  "'), "(pipe2): why: not a text", id="empty reason"),
        pytest.param(HEAD + rule(where=None), "(pipe2): where: missing", id="no function"),
        pytest.param(HEAD + rule(where='"os.pipe2"'), "nor the dotted name", id="not our function"),
        pytest.param(HEAD + rule(where='"libc"'), "source: goes with where", id="no source"),
        pytest.param(
            HEAD + rule(source='"somewhere"'), "source: goes with where", id="a source too many"
        ),
        pytest.param(HEAD + rule(call=None), "[[rule]] number 1: call: missing", id="no call"),
        pytest.param(
            HEAD + rule(call='"Pipe2"'), "not the name of a system call", id="call's name"
        ),
        pytest.param(HEAD + rule(whi='"typo"'), "(pipe2): unknown key 'whi'", id="rule's key"),
        pytest.param(
            HEAD + rule(call='"ptrace"', when=None),
            "(ptrace): risk: missing; say what a taken-over process could do with ptrace",
            id="no risk",
        ),
        pytest.param(
            HEAD + rule(except_='["mips"]'),
            "unknown architecture 'mips'",
            id="unknown architecture",
        ),
        pytest.param(HEAD + rule(except_="[]"), "names none or all", id="except nothing"),
        pytest.param(HEAD + "[mips]\n" + RULE, "unknown key 'mips'", id="section"),
        pytest.param(
            HEAD + RULE + RULE, "two rules for pipe2 with the same condition", id="same rule twice"
        ),
        pytest.param(
            HEAD + RULE + rule(when=None), "one of them without a condition", id="pointless rule"
        ),
        pytest.param(
            HEAD + rule(when='["flags == O_NONBLOCK", "flags == O_NONBLOCK"]'),
            "has one condition twice",
            id="same condition twice",
        ),
        pytest.param(
            HEAD + RULE + RULE.replace("[[rule]]", "[[i686.rule]]"),
            "two rules for pipe2 with the same condition",
            id="again for an architecture",
        ),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(HardspliceError) as caught:
        parse(text)
    assert str(caught.value).startswith("cannot load the policy relay.toml: ")
    assert message in str(caught.value)


def including(*names: str) -> str:
    return HEAD.replace("capabilities", f"include = {list(names)}\ncapabilities".replace("'", '"'))


def test_the_rules_of_an_included_policy_come_last() -> None:
    policy = parse(including("runtime") + RULE, runtime=OTHER.format(role="runtime", more=""))
    assert [(one.call, one.role) for one in policy.rules] == [
        ("pipe2", "relay"),
        ("close", "runtime"),
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (OTHER.format(role="runtime", more='include = ["init"]'), "runtime.toml needs init.toml"),
        (
            OTHER.format(role="runtime", more="[descriptors]\nCHANNEL = 4"),
            "CHANNEL is 4 in runtime",
        ),
        (HEAD.replace("relay", "runtime") + RULE, "with the same condition (runtime.toml)"),
        (
            HEAD.replace("relay", "runtime") + rule(when=None),
            "the one in runtime.toml without a condition",
        ),
    ],
)
def test_includes_that_don_t_fit_are_an_error(other: str, message: str) -> None:
    with pytest.raises(HardspliceError, match=r"cannot load the policy relay\.toml") as caught:
        parse(including("runtime") + RULE, runtime=other)
    assert message in str(caught.value)


def test_a_mistake_in_an_included_policy_is_put_down_to_that_one() -> None:
    with pytest.raises(HardspliceError, match=r"cannot load the policy runtime\.toml: role"):
        parse(including("runtime") + RULE, runtime=HEAD + RULE)


def test_a_policy_that_is_not_there_is_an_error() -> None:
    with pytest.raises(
        HardspliceError, match=r"cannot read the policy .*nobody\.toml: No such file"
    ):
        load_policy("nobody")


@pytest.mark.parametrize(
    ("call", "arch", "message"),
    [
        ("epoll_wait", "arm64", "epoll_wait: arm64 has no such system call"),
        ("recv", "s390x", "recv: s390x has no such system call"),
        ("recv", "x86_64", "recv: x86_64 has no such system call"),
        ("semop", "i686", "semop: i686 has no such system call"),
        ("no_such_call", "x86_64", "no_such_call: no system call that this libseccomp knows"),
    ],
)
def test_a_rule_for_a_call_that_an_architecture_lacks_is_an_error(
    call: str, arch: str, message: str
) -> None:
    policy = parse(HEAD + rule(call=f'"{call}"', when=None, risk='"for this test"'))
    with pytest.raises(HardspliceError, match="cannot compile the policy relay for") as caught:
        compile_policy(policy, arch)
    assert message in str(caught.value)
