# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the programs of this room start. As in hardsplice/__main__.py, nothing is imported before
there is an interpreter of our own.
"""

from __future__ import annotations

from hardsplice import isolated


def _run(module: str) -> int:
    name = f"hardsplice.frontends.{module}"
    isolated.begin(name)
    from importlib import import_module

    return int(import_module(name).main())


def oci_hook() -> int:
    """Run hardsplice-oci-hook; the exit status."""
    return _run("oci_hook")


def cni() -> int:
    """Run hardsplice-cni; the exit status."""
    return _run("cni")


def rootlessport() -> int:
    """Run rootlessport; the exit status."""
    return _run("rootlessport")


def docker_proxy() -> int:
    """Run docker-proxy; the exit status."""
    return _run("docker_proxy")
