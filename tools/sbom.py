# SPDX-License-Identifier: GPL-2.0-or-later
"""SBOMs: what runs in hardsplice's processes, and under which licenses, as CycloneDX 1.6. There is
one of the wheel and the sdist, and one of the archive hardsplice.pyz.

The packages are pyproject.toml's, each of which needs an entry here; what they need from the system
is here alone. They have a range of versions, from which a distribution or pip chooses, but for
those that an artefact contains.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import tomllib
import uuid
from collections.abc import Mapping
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
class Contained:
    """A package that is in an artefact: its version, and the SHA-256 of its one module, hex."""

    version: str
    sha256: str


@dataclass(frozen=True)
class _Need:
    name: str
    versions: str
    is_required: bool
    is_direct: bool
    contained: Contained | None

    @property
    def reference(self) -> str:
        """Its package URL, with the version where there is one."""
        version = f"@{self.contained.version}" if self.contained else ""
        return f"pkg:{KNOWN[self.name].kind}/{self.name}{version}"


def _needs(project: dict[str, Any], contained: Mapping[str, Contained]) -> dict[str, _Need]:
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
        found[name] = _Need(name, versions, is_required, direct >= 0, contained.get(name))
        wanted += [(other + _ALWAYS.get(other, ""), is_required) for other in KNOWN[name].needs]
    return found


def _licenses(expression: str) -> list[dict[str, Any]]:
    is_one = " " not in expression
    return [{"license": {"id": expression}} if is_one else {"expression": expression}]


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _component(need: _Need) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "application" if need.name == "python" else "library",
        "bom-ref": need.reference,
        "name": need.name,
        "scope": "required" if need.is_required else "optional",
        "licenses": _licenses(KNOWN[need.name].license),
        "purl": need.reference,
    }
    if need.contained:
        component["version"] = need.contained.version
        component["hashes"] = _hashes(need.contained.sha256)
    elif need.versions:
        component["properties"] = [{"name": "hardsplice:versions", "value": need.versions}]
    return component


def _read(root: Path, path: str) -> str:
    return (root / path).read_text(encoding="utf-8")


def name(root: Path) -> str:
    """The file's name for the wheel and the sdist."""
    return f"hardsplice-{current(root)}.cdx.json"


def text(
    root: Path,
    seconds: int,
    contained: Mapping[str, Contained] | None = None,
    sha256: str | None = None,
) -> str:
    """The SBOM of what is built of the sources in ``root``, with a time in seconds since 1970.
    ``contained`` are packages, by their names, that are in the artefact; ``sha256``, hex, is the
    artefact's own, where it is one file. KeyError if a license is not known here.
    """
    project = tomllib.loads(_read(root, "pyproject.toml"))["project"]
    whole = f"pkg:pypi/{project['name']}@{current(root)}"
    needs = _needs(project, contained or {})
    direct = sorted(one.reference for one in needs.values() if one.is_direct)
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
                {
                    "ref": needs[one].reference,
                    "dependsOn": sorted(needs[other].reference for other in KNOWN[one].needs),
                }
                for one in sorted(needs)
            ),
        ],
    }
    if sha256:
        bom["metadata"]["component"]["hashes"] = _hashes(sha256)
    made = json.dumps(bom, indent=2)
    serial = uuid.uuid5(_NAMES, made).urn
    return json.dumps(bom | {"serialNumber": serial}, indent=2) + "\n"
