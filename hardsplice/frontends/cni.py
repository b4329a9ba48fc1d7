# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice-cni: a plugin for the Container Network Interface that forwards a container's ports
(the capability portMappings), behind the plugin that gives the container its interface.

Each attachment of a container to a network has an instance of its own, which goes on when the call
ends, and ends with DEL, with GC, or with the namespace.
"""

from __future__ import annotations

import json
import os
import sys

from hardsplice import __version__
from hardsplice.frontends import cni_call
from hardsplice.frontends.cni_call import CniError, Configuration, Surroundings
from hardsplice.frontends.instances import Instances
from hardsplice.kernel.hints import Any
from hardsplice.model.errors import HardspliceError
from hardsplice.model.unforeseen import as_error

PROGRAM = "hardsplice-cni"
_LIMIT = 16 << 20  # bytes of a configuration


def add(configuration: Configuration, call: Surroundings) -> object:
    """Begin to forward; the result is that of the plugin before. Raises CniError."""
    options = cni_call.options_of(configuration, call)
    if options:
        with _instances(configuration).locked(call.attachment.name) as instance:
            instance.end()  # of a call whose end nobody saw
            instance.write_note(json.dumps(options).encode())
            try:
                instance.begin([*options, "--netns", call.netns])
            except BaseException:
                instance.end()
                raise
    return configuration.previous


def delete(configuration: Configuration, call: Surroundings) -> object:
    """End what ADD began, if anything is left of it."""
    with _instances(configuration).locked(call.attachment.name) as instance:
        instance.end()
    return None


def check(configuration: Configuration, call: Surroundings) -> object:
    """CniError unless what was asked for is forwarded."""
    options = cni_call.options_of(configuration, call)
    if not options:
        return None
    with _instances(configuration).locked(call.attachment.name) as instance:
        if not instance.runs():
            raise CniError(cni_call.NOT_AS_ASKED, "hardsplice does not run for this container")
        if instance.read_note() != json.dumps(options).encode():
            message = "hardsplice forwards other ports for this container"
            raise CniError(cni_call.NOT_AS_ASKED, message)
    return None


def collect(configuration: Configuration, _: Surroundings) -> object:
    """End whatever belongs to no attachment that there still is."""
    valid = cni_call.valid_attachments(configuration)
    instances = _instances(configuration)
    for name in instances.names():
        if name not in valid:
            with instances.locked(name) as instance:
                instance.end()
    return None


def status(configuration: Configuration, _: Surroundings) -> object:
    """CniError where ADD would fail whatever it is asked for."""
    from hardsplice.sandbox import libseccomp

    try:
        _instances(configuration)
        libseccomp.load()
    except (HardspliceError, ImportError, OSError) as error:
        failure = as_error(error, "load", "libseccomp")
        raise CniError(cni_call.UNAVAILABLE, str(failure), failure.hint or "") from None
    return None


COMMANDS = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}


def _instances(configuration: Configuration) -> Instances:
    return Instances("cni", configuration.network)


def run(text: bytes) -> object:
    """Serve one call; what is to be printed, or None. Raises CniError and HardspliceError."""
    call = cni_call.read_surroundings(os.environ)
    if call.command == "VERSION":
        return {
            "cniVersion": cni_call.version_of(text),
            "supportedVersions": list(cni_call.VERSIONS),
        }
    configuration = cni_call.read_configuration(text, call.command)
    return COMMANDS[call.command](configuration, call)


def main() -> int:
    """Run the plugin; the exit status."""
    if "CNI_COMMAND" not in os.environ:
        versions = ", ".join(cni_call.VERSIONS)
        print(f"{PROGRAM} {__version__}, a plugin for CNI {versions}", file=sys.stderr)
    text = b""
    try:
        text = sys.stdin.buffer.read(_LIMIT)
        answer = run(text)
    except Exception as error:  # noqa: BLE001 - the last resort: no traceback
        _say(_as_cni(error).answer(cni_call.version_of(text)))
        return 1
    if answer is not None:
        _say(answer)
    return 0


def _as_cni(error: Exception) -> CniError:
    if isinstance(error, CniError):
        return error
    failure = as_error(error, "serve", "this call")
    return CniError(cni_call.NOT_STARTED, f"hardsplice: {failure}", failure.hint or "")


def _say(answer: Any) -> None:
    print(json.dumps(answer))
