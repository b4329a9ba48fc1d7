# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the programs of this room start. As in hardsplice/__main__.py, nothing is imported before
there is an interpreter of our own.
"""

from __future__ import annotations

from hardsplice import isolated


def oci_hook() -> int:
    """Run hardsplice-oci-hook; the exit status."""
    isolated.begin("hardsplice.frontends.oci_hook")
    from hardsplice.frontends import oci_hook as program

    return program.main()


def cni() -> int:
    """Run hardsplice-cni; the exit status."""
    isolated.begin("hardsplice.frontends.cni")
    from hardsplice.frontends import cni as program

    return program.main()


def rootlessport() -> int:
    """Run rootlessport; the exit status."""
    isolated.begin("hardsplice.frontends.rootlessport")
    from hardsplice.frontends import rootlessport as program

    return program.main()


def docker_proxy() -> int:
    """Run docker-proxy; the exit status."""
    isolated.begin("hardsplice.frontends.docker_proxy")
    from hardsplice.frontends import docker_proxy as program

    return program.main()
