# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of policies: where they are, and reading one. A start reads what was made of them
(sandbox/policy/table.py).
"""

from __future__ import annotations

from pathlib import Path

from hardsplice.kernel.hints import Any
from hardsplice.model.errors import HardspliceError, reason_of
from hardsplice.sandbox.policy.format import parse_policy
from hardsplice.sandbox.policy.model import Policy

__all__ = ["load_policy", "policy_directory"]


def policy_directory() -> Path:
    """Where the policies are: inside an installed package or an archive, beside the package in a
    checkout.
    """
    package = Path(__file__).resolve().parents[2]
    installed = package / "policies"
    is_installed = installed.is_dir() or not package.is_dir()
    return installed if is_installed else package.parent / "policy"


def load_policy(role: str) -> Policy:
    """The policy of a role, read and checked; HardspliceError says what is wrong, and where."""
    return parse_policy(_read(role), role, _read)


def _read(role: str) -> str:
    """The text of a policy, by the loader of this module: that can read from an archive too."""
    path = policy_directory() / f"{role}.toml"
    loader: Any = globals()["__loader__"]
    try:
        text: str = loader.get_data(str(path)).decode()
    except OSError as error:
        raise HardspliceError("read", f"the policy {path}", reason_of(error)) from None
    return text
