# SPDX-License-Identifier: GPL-2.0-or-later
"""How an isolated interpreter finds and loads hardsplice's modules: by their names alone, and from
bytecode that is there already, in the calls that this takes. Python's own way lists folders, tries
endings of names and opens files as objects, at twice the cost, and a start has 150 of them.

The files are the same, and so is the rule: bytecode counts that Python of this version has made of
the source as it is. For all else Python's own way is taken, which compiles, and says what is wrong.
"""

from __future__ import annotations

import marshal
import os
import sys
from _frozen_importlib_external import (  # what importlib has under its names, loaded already
    MAGIC_NUMBER,
    SourceFileLoader,
    spec_from_file_location,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

_OURS = "hardsplice."
_CACHE = "__pycache__"
_HEADER = 16  # bytes of a file before its bytecode: PEP 552
_BY_TIME = bytes(4)  # its flags, where the source's time and size follow
_FLAGS = os.O_RDONLY | os.O_CLOEXEC


def begin() -> None:
    """Load them in this way from now on."""
    if not sys.flags.optimize and sys.pycache_prefix is None:
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds modules below the package, in the folder of the package that they are in."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a module is; None where others are to look for it."""
        if not name.startswith(_OURS) or not path:
            return None
        folder = f"{path[0]}/{name.rpartition('.')[2]}"
        for file, places in ((f"{folder}.py", None), (f"{folder}/__init__.py", [folder])):
            try:
                source = os.stat(file)
            except OSError:
                continue
            return spec_from_file_location(
                name,
                file,
                loader=_Loader(name, file, source),
                submodule_search_locations=places,
            )
        return None


class _Loader(SourceFileLoader):
    """Python's own, with fewer calls where there is nothing to compile."""

    def __init__(self, name: str, path: str, source: os.stat_result) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code."""
        try:
            code = self._cached()
        except (OSError, ValueError, EOFError, TypeError):  # of marshal, where it is cut short
            code = None
        return super().get_code(fullname) if code is None else code

    def _cached(self) -> CodeType | None:
        """The bytecode that there is; None where it is of another source or Python."""
        folder, _, name = self.path.rpartition("/")
        tag = sys.implementation.cache_tag
        fd = os.open(f"{folder}/{_CACHE}/{name.removesuffix('.py')}.{tag}.pyc", _FLAGS)
        try:
            data = os.read(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)
        found = (int(self._source.st_mtime), self._source.st_size)
        wanted = b"".join((value & 0xFFFFFFFF).to_bytes(4, "little") for value in found)
        if data[:_HEADER] != MAGIC_NUMBER + _BY_TIME + wanted:
            return None
        code: CodeType = marshal.loads(memoryview(data)[_HEADER:])
        return code
