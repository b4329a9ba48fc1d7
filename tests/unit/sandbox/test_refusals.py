# SPDX-License-Identifier: GPL-2.0-or-later
"""What forbids namespaces and mounts: each hint is given where it is true, and nowhere else."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from hardsplice.sandbox import refusals, rights
from hardsplice.sandbox.landlock import HIDDEN, LACKED, lacked


def refused(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@pytest.fixture(autouse=True)
def asked_anew() -> None:
    refusals.is_filtered.cache_clear()


def test_calls_that_make_no_sense_change_nothing_and_reach_the_kernel() -> None:
    namespaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("user", "net", "mnt")}
    for name, probe in refusals._PROBES.items():
        if name != "pivot_root" or os.geteuid() == 0:
            assert refusals._reaches_kernel(probe), name
    after = {name: os.readlink(f"/proc/self/ns/{name}") for name in namespaces}
    assert after == namespaces


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EACCES])
def test_an_answer_that_the_kernel_would_not_give_is_a_filters(code: int) -> None:
    def probe() -> None:
        raise refused(code)

    assert not refusals._reaches_kernel(probe)


def test_where_there_is_no_filter_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that kills would end us."""
    monkeypatch.setattr(refusals, "is_filtered", lambda: False)
    monkeypatch.setattr(refusals, "_reaches_kernel", lambda _: pytest.fail("it is tried"))
    assert refusals.filter_hint() is None


@pytest.mark.parametrize(
    ("setting", "value", "is_off"),
    [
        ("user.max_user_namespaces", "0", True),
        ("user.max_user_namespaces", "96365", False),
        ("kernel.unprivileged_userns_clone", "0", True),
        ("kernel.unprivileged_userns_clone", "1", False),
    ],
)
def test_a_switch_is_named_where_it_is_off(
    setting: str, value: str, is_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "is_filtered", lambda: False)
    monkeypatch.setattr(refusals, "_switches", lambda: refusals._SWITCHES)
    monkeypatch.setattr(refusals, "_setting", lambda name: value if name == setting else None)
    hint = refusals.userns_hint(refused(errno.EPERM)) or ""
    assert (setting in hint) == is_off


NEWCOMER = "unprivileged_userns"  # what AppArmor calls a process that has created a namespace


@pytest.mark.parametrize(
    ("switch", "label", "is_privileged", "is_named"),
    [
        ("1", "unconfined", False, True),
        ("1", "", False, True),  # its label can't be read
        ("1", NEWCOMER, True, True),  # as far as its capabilities show
        ("1", f"{NEWCOMER}//&unconfined", True, True),
        ("1", "unconfined", True, False),
        ("1", "hardsplice", False, False),
        ("1", "docker-default", False, False),
        ("0", "unconfined", False, False),
        (None, "unconfined", False, False),
    ],
)
def test_apparmors_restriction_is_named_where_it_holds(
    switch: str | None,
    label: str,
    is_privileged: bool,
    is_named: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"kernel.apparmor_restrict_unprivileged_userns": switch}
    monkeypatch.setattr(refusals, "is_filtered", lambda: False)
    monkeypatch.setattr(refusals, "_setting", settings.get)
    monkeypatch.setattr(refusals, "_apparmor_label", lambda: label)
    monkeypatch.setattr(refusals, "_is_privileged", lambda: is_privileged)
    for find in (refusals.userns_hint, refusals.mount_hint, partial(refusals.limited_by, "pid")):
        for code in (errno.EPERM, errno.EACCES):
            assert ("/etc/apparmor.d/hardsplice" in (find(refused(code)) or "")) == is_named
        assert "/etc/apparmor.d" not in (find(refused(errno.ENOSPC)) or "")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("unconfined\n", "unconfined"),
        ("hardsplice (unconfined)\n", "hardsplice"),
        (f"{NEWCOMER} (enforce)\n\0", NEWCOMER),
    ],
)
def test_a_label_is_read_without_its_mode(
    text: str, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "current").write_text(text)
    files = (str(tmp_path / "nothing"), str(tmp_path / "current"))
    monkeypatch.setattr(refusals, "_APPARMOR_LABELS", files)
    assert refusals._apparmor_label() == label


def test_a_limit_that_is_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "is_filtered", lambda: False)
    hint = refusals.userns_hint(refused(errno.ENOSPC)) or ""
    assert "user.max_user_namespaces allows" in hint


def test_a_mount_that_an_lsm_forbids_is_told_from_one_that_has_no_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refusals, "is_filtered", lambda: False)
    assert "apparmor=unconfined" in (refusals.mount_hint(refused(errno.EACCES)) or "")
    assert refusals.mount_hint(refused(errno.EINVAL)) is None


def test_what_the_kernel_lacks_is_said_of_it_where_nobody_else_may_be_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refusals, "is_filtered", lambda: False)
    assert lacked() == LACKED
    monkeypatch.setattr(refusals, "is_filtered", lambda: True)
    assert lacked() == HIDDEN


@pytest.mark.parametrize("kind", ["uid", "gid"])
def test_who_is_nobody_in_its_user_namespace_is_told_so(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "is_filtered", lambda: False)
    monkeypatch.setattr(refusals, "_switches", lambda: ())
    monkeypatch.setattr(rights, "is_mapped", lambda _, one: one != kind)
    assert f"/proc/self/{kind}_map" in (refusals.userns_hint(refused(errno.EPERM)) or "")
