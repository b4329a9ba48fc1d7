# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that is this checkout's hardsplice under a foreign Python: for `pytest --hardsplice`.

Other than the guests, it runs among the host's own files and namespaces, so that whatever tests
start hardsplice can start it. `python -m tests.arches.launcher [SUITE]` makes it and
tells its path.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.arches import debian, folder
from tools.clean_root import cache_folder

# The commands, and where each begins. Each is a folder with a __main__.py, which is a program to
# Python.
_COMMANDS = {"hardsplice": "hardsplice.app.start", "hardsplicectl": "hardsplice.ctl.commands"}
_MAIN = """\
import sys
sys.path[0] = {sources!r}
from {module} import main
sys.exit(main(sys.argv[1:]))
"""
# The loader is named, since the program's own name for it leads to the host's, if to any. Nothing
# is said by environment variables, which a COMMAND would inherit.
_SCRIPT = """\
#!/bin/sh
exec {tree}/lib/ld-linux.so.2 --library-path {tree}/lib/i386-linux-gnu \\
    {tree}/usr/bin/python3 -I {program} "$@"
"""


def make(release: debian.Release) -> Path:
    """The launcher's path; beside it lies that of hardsplicectl. Raises debian.Unavailable."""
    tree = debian.python_tree(release)
    place = cache_folder() / f"hardsplice-{release}"
    shutil.rmtree(place, ignore_errors=True)
    sources = folder.stage(place / "sources")
    for name, module in _COMMANDS.items():
        program = place / f"{name}.program"
        program.mkdir()
        main = _MAIN.format(sources=str(sources), module=module)
        (program / "__main__.py").write_text(main)
        launcher = place / name
        launcher.write_text(_SCRIPT.format(tree=tree, program=program))
        launcher.chmod(0o755)
    return place / "hardsplice"


def _main() -> str | None:
    suite = sys.argv[1] if len(sys.argv) > 1 else "bookworm"
    try:
        print(make(debian.Release(suite, "i386")))
    except debian.Unavailable as reason:
        return f"cannot make an i386 hardsplice: {reason}"
    return None


if __name__ == "__main__":
    sys.exit(_main())
