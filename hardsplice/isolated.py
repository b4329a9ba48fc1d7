# SPDX-License-Identifier: GPL-2.0-or-later
"""An interpreter that nobody but hardsplice has a say in.

A Python that was started in the usual way reads PYTHON* variables, some of which change the system
calls that it makes later on (PYTHON_JIT, PYTHONPERFSUPPORT, PYTHONMALLOC), looks for modules in the
current directory and on PYTHONPATH before its own, and runs sitecustomize, usercustomize and what
.pth files say. Under a filter that kills, each of them is a way to be killed. So every command of
hardsplice begins again, once, in an isolated interpreter: `python -I -S`. That is an exec: number,
parent and descriptors of the process stay what they were, and so does the environment, which is
COMMAND's and says nothing to an isolated interpreter.

Without site there are no folders of packages either. Where they are goes along as a -X option,
which is on nobody's command line but our own. They come after Python's own modules, and hardsplice
itself is taken from where it was found, whatever else is in that folder.

This file is both the module and the script that the isolated interpreter runs; of an archive
(packaging/zipapp) that is the archive's own script. It may import nothing but what an interpreter
has loaded by then.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import sys

# No warning: to show one, Python opens the source that it is about. And no code from whoever may
# write to its memory, as Python 3.14 has it; older ones don't know the word, and don't mind.
_OPTIONS = ("-I", "-S", "-W", "ignore", "-X", "disable-remote-debug")
_FOLDERS = "hardsplice"  # the -X option's name
_ENOMEM, _EMFILE = 12, 24  # asm-generic/errno-base.h
_MEMORY_HINT = "there is too little memory: see ulimit -v"
_SHORTAGE = (
    f"hardsplice: cannot start hardsplice: {os.strerror(_ENOMEM)}\nhardsplice: {_MEMORY_HINT}\n"
).encode()


def begin(module: str) -> None:
    """Begin again as the isolated ``module``, of which ``main`` is called; return where that has
    happened already.
    """
    end_by_interrupt()
    if (sys.flags.isolated and sys.flags.no_site) or not sys.executable:
        return
    restore_environment()
    archive = getattr(globals()["__loader__"], "archive", None)  # a zipimporter has it
    script = os.path.realpath(archive) if archive else os.path.abspath(__file__)
    # An archive has all that it needs, and nothing installed has a say in it.
    folders = f"{_FOLDERS}={'' if archive else os.pathsep.join(_package_folders())}"
    cached = ["-B"] if sys.flags.dont_write_bytecode else []
    command = [sys.executable, *_OPTIONS, *cached, "-X", folders, script, module, *sys.argv[1:]]
    try:
        os.execv(sys.executable, command)
    except OSError as error:
        sys.exit(f"hardsplice: cannot start {sys.executable!a}: {error.strerror}")


def end_by_interrupt() -> None:
    """Have SIGINT end this process, as any other one, instead of an exception wherever it is."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def restore_environment() -> None:
    """Take out of the environment what the interpreter itself put in: it sets LC_CTYPE where the
    locale is C (PEP 538), also where that is what it was.
    """
    name = b"LC_CTYPE"
    try:
        before = _given(name)
    except OSError:
        return
    if before is None:
        os.environb.pop(name, None)
    elif before != os.environb.get(name):
        os.environb[name] = before


def _given(name: bytes) -> bytes | None:
    """The value that a variable had when we were started. The environment is looked through piece
    by piece, in memory that is overwritten, so that no copy is left (command/environment.py). Of
    what is longer than a piece, as no locale's name is, nothing is found.
    """
    wanted = b"\0" + name + b"="
    kept = 4096  # bytes of the piece before
    room = bytearray(2 * kept)
    view = memoryview(room)  # a slice of the room itself would be a copy
    try:
        with open("/proc/self/environ", "rb", buffering=0) as file:
            while size := file.readinto(view[kept:]):
                at = room.find(wanted, 0, kept + size)
                end = room.find(b"\0", at + 1, kept + size)
                if at >= 0 and end >= 0:
                    return bytes(room[at + len(wanted) : end])
                view[:kept] = view[size : size + kept]
    finally:
        room[:] = bytes(len(room))
    return None


def _package_folders() -> list[str]:
    """Where modules are looked for now, but for Python's own folders, and for the first one: that
    is the current directory (-m), or the script's.
    """
    first = 0 if sys.flags.safe_path else 1
    own = os.path.dirname(os.__file__)
    return [
        folder
        for folder in sys.path[first:]
        if folder not in (own, os.path.join(own, "lib-dynload")) and not folder.endswith(".zip")
    ]


def has_begun() -> bool:
    """Whether this is the interpreter that `begin` started."""
    return _FOLDERS in sys._xoptions


def run() -> None:
    """What the isolated interpreter does: find hardsplice and its packages, and call ``main``."""
    end_by_interrupt()
    sys.unraisablehook = _say_nothing
    sys.excepthook = _say_shortage
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path.insert(0, home)
    from hardsplice import __path__ as _  # noqa: F401 - its modules are found from here on

    sys.path[:] = [folder for folder in sys.path if folder != home]  # an archive is there already
    folders = [home, *str(sys._xoptions[_FOLDERS]).split(os.pathsep)]
    sys.path += [each for each in dict.fromkeys(folders) if each and each not in sys.path]
    import gc
    from importlib import import_module

    from hardsplice import loading

    loading.begin()
    # What is made while a program starts is kept: to look through it for garbage, again and again,
    # takes a tenth of the start. Programs that go on turn it on (app/entering.py, ctl/__main__.py).
    gc.disable()
    name = sys.argv.pop(1)
    sys.argv[0] = name.partition(".")[0]
    try:
        status = import_module(name).main()
    except Exception as error:  # noqa: BLE001 - no traceback
        status = _not_loaded(error)
    sys.exit(status)


def _say_nothing(_: object) -> None:
    """An error that nobody can be given, as from a destructor where memory is short: Python would
    show it with its source, and open that.
    """


def _say_shortage(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """An error while one was told: as a rule there is no memory for that either."""
    if issubclass(kind, MemoryError):
        os.write(2, _SHORTAGE)
    else:
        sys.__excepthook__(kind, error, trace)  # type: ignore[arg-type]


def _not_loaded(error: Exception) -> str:
    """What is told where there is too little of something to load hardsplice itself, or a part of
    it is missing.
    """
    reason, hint = str(error), ""
    is_memory = isinstance(error, OSError) and error.errno == _ENOMEM
    # The interpreter's own code may lose a MemoryError on its way; its parser makes this of it.
    is_parsers = isinstance(error, ValueError) and "is required for" in reason
    if is_memory or is_parsers or isinstance(error, MemoryError | SystemError):
        reason, hint = os.strerror(_ENOMEM), _MEMORY_HINT
    elif isinstance(error, OSError):
        reason = error.strerror or reason
        hint = "raise the limit with ulimit -n" if error.errno == _EMFILE else ""
    elif isinstance(error, ModuleNotFoundError):
        reason, hint = f"there is no module {error.name}", "install what hardsplice needs"
    elif not isinstance(error, ImportError):
        reason = f"{type(error).__name__}: {error}"
    lines = [f"cannot start hardsplice: {reason}", *([hint] if hint else [])]
    return "\n".join(f"hardsplice: {line}" for line in lines)


if __name__ == "__main__":
    run()
