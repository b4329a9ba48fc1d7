# SPDX-License-Identifier: GPL-2.0-or-later
"""The SBOM: what runs in hardsplice's processes, and under which licenses, as CycloneDX 1.6.

The packages are pyproject.toml's, each of which needs an entry here; what they need from the system
is here alone. No versions of these: a distribution, or pip, chooses them.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import tomllib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.version import current

# Serial numbers are made of the contents, in this namespace (RFC 9562, version 5).
_NAMES = uuid.uuid5(uuid.NAMESPACE_URL, "https://hardsplice.example/sbom")
_DEVELOPERS_ONLY = {"build", "dev"}


@dataclass(frozen=True)
class Component:
    """What is known of something that hardsplice needs."""

    license: str  # an SPDX expression
    kind: str = "pypi"  # the type of its package URL
    needs: tuple[str, ...] = ()  # names of others


KNOWN = {
    "pyseccomp": Component("MIT", needs=("libseccomp",)),
    "python-prctl": Component("GPL-3.0-or-later", needs=("libcap",)),
    "python": Component("Python-2.0", kind="generic"),
    "libseccomp": Component("LGPL-2.1-only", kind="generic"),
    "libcap": Component("BSD-3-Clause OR GPL-2.0-only", kind="generic"),
}
_ALWAYS = {"python": ">=3.11", "libseccomp": ">=2.5"}  # whatever pyproject.toml names besides


@dataclass(frozen=True)
class _Need:
    name: str
    versions: str
    is_required: bool
    is_direct: bool


def _needs(project: dict[str, Any]) -> dict[str, _Need]:
    """All that is needed, by name."""
    wanted = [(line, True) for line in project["dependencies"]]
    for extra, lines in project.get("optional-dependencies", {}).items():
        if extra not in _DEVELOPERS_ONLY:
            wanted += [(line, False) for line in lines]
    wanted += [(name + versions, True) for name, versions in _ALWAYS.items()]
    direct = len(wanted)  # what these need in turn is appended
    found: dict[str, _Need] = {}
    while wanted:
        line, is_required = wanted.pop(0)
        direct -= 1
        match = re.match(r"[\w.-]+", line)
        assert match is not None, line
        name = match[0].lower()
        if name in found and (found[name].is_required or not is_required):
            continue
        versions = line[match.end() :].split(";")[0].strip()
        found[name] = _Need(name, versions, is_required, direct >= 0)
        wanted += [(other + _ALWAYS.get(other, ""), is_required) for other in KNOWN[name].needs]
    return found


def _reference(name: str) -> str:
    return f"pkg:{KNOWN[name].kind}/{name}"


def _licenses(expression: str) -> list[dict[str, Any]]:
    is_one = " " not in expression
    return [{"license": {"id": expression}} if is_one else {"expression": expression}]


def _component(need: _Need) -> dict[str, Any]:
    reference = _reference(need.name)
    component: dict[str, Any] = {
        "type": "application" if need.name == "python" else "library",
        "bom-ref": reference,
        "name": need.name,
        "scope": "required" if need.is_required else "optional",
        "licenses": _licenses(KNOWN[need.name].license),
        "purl": reference,
    }
    if need.versions:
        component["properties"] = [{"name": "hardsplice:versions", "value": need.versions}]
    return component


def _read(root: Path, path: str) -> str:
    return (root / path).read_text(encoding="utf-8")


def name(root: Path) -> str:
    """The file's name."""
    return f"hardsplice-{current(root)}.cdx.json"


def text(root: Path, seconds: int) -> str:
    """The SBOM of the sources in ``root``, with a time in seconds since 1970. KeyError if a license
    is not known here.
    """
    project = tomllib.loads(_read(root, "pyproject.toml"))["project"]
    whole = f"pkg:pypi/{project['name']}@{current(root)}"
    needs = _needs(project)
    direct = sorted(_reference(one) for one in needs if needs[one].is_direct)
    links = {"Homepage": "website", "Documentation": "documentation", "Changelog": "release-notes"}
    urls = project["urls"].items()
    time = dt.datetime.fromtimestamp(seconds, dt.UTC)
    bom: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lifecycles": [{"phase": "build"}],
            "component": {
                "type": "application",
                "bom-ref": whole,
                "name": project["name"],
                "version": current(root),
                "description": project["description"],
                "licenses": _licenses(project["license"]),
                "purl": whole,
                "externalReferences": [
                    {"type": links[label], "url": url} for label, url in urls if label in links
                ],
            },
        },
        "components": [_component(needs[one]) for one in sorted(needs)],
        "dependencies": [
            {"ref": whole, "dependsOn": direct},
            *(
                {"ref": _reference(one), "dependsOn": sorted(map(_reference, KNOWN[one].needs))}
                for one in sorted(needs)
            ),
        ],
    }
    made = json.dumps(bom, indent=2)
    serial = uuid.uuid5(_NAMES, made).urn
    return json.dumps(bom | {"serialNumber": serial}, indent=2) + "\n"
