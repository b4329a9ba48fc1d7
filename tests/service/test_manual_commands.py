# SPDX-License-Identifier: GPL-2.0-or-later
"""Every example of the manual pages works as it stands there, but for the number of the process."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.service.test_readme_commands import Place, need
from tests.service.test_readme_commands import place as place  # noqa: PLC0414 - a fixture

pytestmark = [
    pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root, pytest.mark.timeout(120)
]  # fmt: skip

MAN = Path(__file__).parents[2] / "packaging" / "man"
PAGES = tuple(sorted(page.name for page in MAN.iterdir()))
# Engines start these: configuration is what people need, which tests/engines tries.
STARTED_BY_ENGINES = {"hardsplice-cni.1", "hardsplice-docker-proxy.1"}


@dataclass(frozen=True)
class Example:
    """What there has to be before a command is run, and what holds once it was: shell commands."""

    check: str
    before: str = ""
    program: str = ""  # that has to be installed
    end: str = ""


BLUE = "ip netns add blue; ip netns exec blue python3 -m http.server 80 &"
REMOVE_BLUE = "ip netns delete blue"
# What a socket unit does.
ACTIVATE = 'systemd-socket-activate --fdname=web.socket -l 127.0.0.1:8081 "$PWD"/bin/'
# By the command, without its prompt. 1234 is a process that `serve` has started.
EXAMPLES = {
    "hardsplice -t 8080:80 -- python3 -m http.server 80": Example("curl -fs 127.0.0.1:8080"),
    "hardsplice -T 5432 -- ./report": Example(
        "test -s got",
        before="python3 -m http.server 5432 &\n"
        "until curl -s 127.0.0.1:5432 >/dev/null; do sleep 0.05; done\ntouch got; chmod a+w got\n"
        "program report 'curl -s 127.0.0.1:5432 >got'",
    ),
    "hardsplice -t 0:80 -- ./server": Example(
        r"curl -fs 127.0.0.1:$(sed -n 's/.*listening on port \([0-9]*\) .*/\1/p' said)",
        before="program server 'exec python3 -m http.server 80'",
    ),
    "hardsplice -t 127.0.0.1/auto -- ./dev-server": Example(
        "curl -fs 127.0.0.1:8083",
        before="program dev-server 'exec python3 -m http.server 8083'",
    ),
    "hardsplice -t 127.0.0.1/2222:22 1234": Example("curl -fs 127.0.0.1:2222", before="serve 22"),
    "hardsplice -f --runas nobody -t 80,443 --netns blue": Example(
        "curl -fs 127.0.0.1:80 && { curl -s 127.0.0.1:443; [ $? = 56 ]; }",
        before=BLUE, program="ip", end=REMOVE_BLUE,
    ),
    "hardsplice -f -t inherit:web.socket:80 --netns blue": Example(
        "curl -fs 127.0.0.1:8081",
        before=BLUE, program="systemd-socket-activate", end=REMOVE_BLUE,
    ),
    "hardsplice --sandbox=strict -t 8000-8009,~8005 1234": Example(
        "curl -fs 127.0.0.1:8000 && { curl -s 127.0.0.1:8005; [ $? = 7 ]; }", before="serve 8000"
    ),
}  # fmt: skip
SCRIPT = """
cd "$1"
program() {
    printf '#!/bin/sh\\n%s\\n' "$2" >"$1"
    chmod a+x "$1"
}
serve() {
    unshare $unshare python3 -m http.server $1 &
    server=$!
    until grep -q ^python3 /proc/$server/cmdline; do sleep 0.05; done
}
until_it_holds() {
    for i in $(seq 100); do
        ( eval "$1" ) >/dev/null 2>&1 && echo "holds" && return
        sleep 0.1
    done
}
"""
END = "kill $(jobs -p) 2>/dev/null; wait"


def commands(page: str) -> list[tuple[str, str]]:
    """The prompts and commands of a page's examples."""
    text = (MAN / page).read_text(encoding="ascii").partition("\n.Sh EXAMPLES\n")[2]
    text = text.partition("\n.Sh ")[0].replace("\\-", "-").replace("\\(ti", "~")
    return re.findall(r"^\.Dl ([$#]) (.*)$", text, re.MULTILINE)


def script_for(place: Place) -> str:
    return f"unshare={'-n' if place.identity.is_root else '-Urn'}\n{SCRIPT}"


def test_each_page_has_examples_and_each_of_hardsplices_is_run() -> None:
    assert {page for page in PAGES if not commands(page)} == STARTED_BY_ENGINES
    assert [command for _, command in commands("hardsplice.1")] == list(EXAMPLES)


@pytest.mark.parametrize(("prompt", "command"), commands("hardsplice.1"))
def test_an_example_of_hardsplice(place: Place, prompt: str, command: str) -> None:
    example = EXAMPLES[command]
    need("curl", *filter(None, [example.program]))
    if prompt == "#" and not place.identity.is_root:
        pytest.skip("as root, says the prompt")
    place.own()
    line = (ACTIVATE if "inherit" in command else "") + command.replace("1234", "$server")
    script = "\n".join(
        (script_for(place), example.before, f"{line} &",
         f"until_it_holds {shlex.quote(example.check)}", example.end, END)
    )  # fmt: skip
    said = place.run(script, before="mount -t tmpfs tmpfs /run" if prompt == "#" else "")
    assert re.search("^holds$", said, re.MULTILINE), said


def test_the_examples_of_hardsplicectl(place: Place) -> None:
    """One after the other, as they stand there; the last one serves until it is ended."""
    need("curl")
    place.own()
    lines = [command for _, command in commands("hardsplicectl.1")]
    assert lines.pop() == "hardsplicectl exporter --listen 127.0.0.1:9820"
    steps = [f"{line.replace('1234', '$server')} || echo failed" for line in lines]
    script = "\n".join(
        (script_for(place), "serve 80", *steps, "hardsplicectl exporter --listen 127.0.0.1:9820 &",
         "until_it_holds 'curl -fs 127.0.0.1:9820/metrics'", END)
    )  # fmt: skip
    said = place.run(script)
    assert re.search("^holds$", said, re.MULTILINE), said
    assert "failed" not in said, said
    assert re.search(r"^1 +inbound", said, re.MULTILINE), said


def test_the_examples_of_policies(place: Place) -> None:
    place.own()
    words = " ".join(place.interpreter)
    steps = [f"{command} || echo failed" for _, command in commands("hardsplice-policy.5")]
    said = place.run(
        "\n".join(('cd "$1"', f'python3() {{ {words} "$@"; }}', *steps, "wc -c <relay.bpf"))
    )
    assert "failed" not in said, said
    assert "splice: any arguments" in said
    assert re.search(r"^relay: \d+ rules", said, re.MULTILINE)
    assert int(said.split()[-1]) > 800
