# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that Python's standard library does not have. Only this module,
kernel/socketcalls.py, kernel/scm.py (sockets) and kernel/unotify.py (a call that a monitor serves)
make system calls through ctypes.

Each wrapper carries its call's own name, does nothing but call it, and raises OSError, like the
functions of ``os``. Constants that Python has are taken from Python. The rest are given with the
header they come from; where architectures differ there is a table.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import struct
import sys
from collections.abc import Iterable
from ctypes import c_char_p, c_int, c_long, c_size_t, c_ulong, c_void_p

from hardsplice.kernel.hints import NoReturn

libc = ctypes.CDLL(None, use_errno=True)
_errno = ctypes.get_errno

MACHINE = os.uname().machine

# linux/sched.h; the same on every architecture. (In os from Python 3.12 on.)
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/nsfs.h: _IO(0xb7, n). PowerPC writes "no argument" into the direction bits, the others write
# nothing.
_IO = 0x20000000 if MACHINE.startswith("ppc") else 0
NS_GET_USERNS = _IO | 0xB701
NS_GET_PARENT = _IO | 0xB702
NS_GET_NSTYPE = _IO | 0xB703
NS_GET_OWNER_UID = _IO | 0xB704

# linux/prctl.h: what python-prctl 1.8.1 does not know, what it would refuse, and what is done here
# where it is missing (prctl_fallback.py).
PR_SET_PDEATHSIG = 1
PR_GET_PDEATHSIG = 2
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECCOMP = 22
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_MDWE = 65
PR_MDWE_REFUSE_EXEC_GAIN = 1
SECCOMP_MODE_FILTER = 2

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2


class SockFprog(ctypes.Structure):
    """struct sock_fprog of linux/filter.h: a classic BPF program, its length counted in
    instructions.
    """

    _fields_ = (("len", ctypes.c_ushort), ("filter", c_void_p))


def fail(*names: object) -> NoReturn:
    """Raise the OSError for the errno that the last call left."""
    code = _errno()
    raise OSError(code, os.strerror(code), *names)


# --- processes, namespaces, privileges ------------------------------------------------------------

# Calls through it hold the interpreter's lock, as a fork must
_python = ctypes.PyDLL(None, use_errno=True)
_python.PyOS_BeforeFork.restype = None
_python.PyOS_AfterFork_Child.restype = None
_python.PyOS_AfterFork_Parent.restype = None


def _find_fork_hooks() -> list[list[object]]:
    """The interpreter's own lists of the hooks of ``os.register_at_fork``, from all modules: found
    by adding a hook and looking for it. It never discards them, but has no function that returns
    them.
    """

    def mark() -> None:
        """Nothing."""

    def holders() -> list[list[object]]:
        return [holder for holder in gc.get_referrers(mark) if type(holder) is list]

    gc.freeze()  # what is there isn't looked through: as a rule this hook is the first of all
    os.register_at_fork(before=mark, after_in_parent=mark, after_in_child=mark)
    found = holders()
    gc.unfreeze()
    return found if len(found) == 3 else holders()


_fork_hooks = _find_fork_hooks()


def fork() -> int:
    """fork(2) for a process that is locked down: 0 in the child.

    ``os.fork`` of Python 3.12 and later counts threads in /proc, to warn of them; there is no /proc
    any more. And it runs the hooks of all modules that happen to be imported: a filter doesn't
    foresee what these do (random seeds itself anew, logging takes its locks), nor is it of any use
    in a process with one thread.
    """
    for hooks in _fork_hooks:
        hooks.clear()
    _python.PyOS_BeforeFork()
    pid: int = _python.fork()
    code = _errno()
    if pid == 0:
        _python.PyOS_AfterFork_Child()
        return 0
    _python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, os.strerror(code))
    return pid


_prctl = libc.prctl
_prctl.argtypes = (c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_capget = libc.capget
_capget.argtypes = (c_char_p, c_char_p)
_capset = libc.capset
_capset.argtypes = (c_char_p, c_char_p)
_unshare = libc.unshare
_unshare.argtypes = (c_int,)
_setns = libc.setns
_setns.argtypes = (c_int, c_int)
_mount = libc.mount
_mount.argtypes = (c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = libc.umount2
_umount2.argtypes = (c_char_p, c_int)
_signalfd = libc.signalfd
_signalfd.argtypes = (c_int, c_char_p, c_int)
_syscall = libc.syscall
_syscall.restype = c_long


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2), of options whose arguments are numbers."""
    result: int = _prctl(option, arg2, arg3, arg4, arg5)
    if result < 0:
        fail()
    return result


def set_name(name: str) -> None:
    """prctl(PR_SET_NAME): call this thread so; the kernel takes no more than 15 bytes."""
    text = ctypes.create_string_buffer(os.fsencode(name))
    prctl(PR_SET_NAME, ctypes.addressof(text))


def get_pdeathsig() -> int:
    """prctl(PR_GET_PDEATHSIG): the signal that the end of the parent sends; 0 for none."""
    number = c_int()
    prctl(PR_GET_PDEATHSIG, ctypes.addressof(number))
    return number.value


_CAPABILITIES_V3 = 0x20080522  # linux/capability.h: two words for each set
_SETS = "=6I"  # the lower words of the three sets, then the upper ones


def capget() -> tuple[int, int, int]:
    """capget(2) of this thread: the masks of what is effective, permitted and inheritable."""
    data = ctypes.create_string_buffer(struct.calcsize(_SETS))
    if _capget(struct.pack("=Ii", _CAPABILITIES_V3, 0), data) != 0:
        fail()
    words = struct.unpack(_SETS, data.raw)
    effective, permitted, inheritable = (words[n] | words[n + 3] << 32 for n in range(3))
    return effective, permitted, inheritable


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for this thread, with masks."""
    sets = (effective, permitted, inheritable)
    words = [one >> shift & 0xFFFFFFFF for shift in (0, 32) for one in sets]
    if _capset(struct.pack("=Ii", _CAPABILITIES_V3, 0), struct.pack(_SETS, *words)) != 0:
        fail()


def set_seccomp_filter(program: bytes) -> None:
    """Install a classic BPF program as a seccomp filter; it needs no_new_privs or CAP_SYS_ADMIN."""
    code = ctypes.create_string_buffer(program, len(program))
    fprog = SockFprog(len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(fprog))


def unshare(flags: int) -> None:
    """unshare(2); ``os.unshare`` exists from Python 3.12 on only."""
    if _unshare(flags) != 0:
        fail()


def setns(fd: int, kind: int) -> None:
    """setns(2); ``os.setns`` exists from Python 3.12 on only."""
    if _setns(fd, kind) != 0:
        fail()


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    kind_bytes = kind.encode() if kind is not None else None
    data_bytes = data.encode() if data is not None else None
    if _mount(os.fsencode(source), os.fsencode(target), kind_bytes, flags, data_bytes) != 0:
        fail(target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    if _umount2(os.fsencode(target), flags) != 0:
        fail(target)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2), which the C library has no function for."""
    number = _PIVOT_ROOT.get(MACHINE, 41)  # 41 is asm-generic/unistd.h's
    if sys.maxsize < 2**32:
        number = _PIVOT_ROOT_32.get(MACHINE, number)
    if _syscall(number, os.fsencode(new), os.fsencode(old)) != 0:
        fail(new)


def join_session_keyring() -> None:
    """keyctl(KEYCTL_JOIN_SESSION_KEYRING): have a new, empty session keyring in the place of the
    one that was inherited.
    """
    number = _KEYCTL.get(MACHINE, 219)  # 219 is asm-generic/unistd.h's
    if sys.maxsize < 2**32:
        number = _KEYCTL_32.get(MACHINE, number)
    if _syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        fail()


# From each architecture's asm/unistd.h; a 32-bit program may run on a 64-bit machine's kernel.
_PIVOT_ROOT = {"x86_64": 155, "i686": 217, "i386": 217, "armv7l": 218, "ppc64le": 203, "s390x": 217}
_PIVOT_ROOT_32 = {"x86_64": 217, "aarch64": 218, "armv8l": 218}

_KEYCTL = {"x86_64": 250, "i686": 288, "i386": 288, "armv7l": 311, "ppc64le": 271, "s390x": 280}
_KEYCTL_32 = {"x86_64": 288, "aarch64": 311, "armv8l": 311}
_KEYCTL_JOIN_SESSION_KEYRING = 1  # linux/keyctl.h

# linux/landlock.h; these numbers are the same on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_NET_PORT = 2


def landlock_abi() -> int:
    """The version of Landlock; OSError when there is none."""
    version: int = _syscall(
        _LANDLOCK_CREATE_RULESET, None, c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION
    )
    if version < 0:
        fail()
    return version


def landlock_create_ruleset(fs: int, net: int, scoped: int) -> int:
    """A ruleset that handles these rights. Attributes that are 0 at the end are left out, for older
    kernels.
    """
    words = [fs, net, scoped]
    while len(words) > 1 and words[-1] == 0:
        words.pop()
    attributes = struct.pack(f"={len(words)}Q", *words)
    fd: int = _syscall(_LANDLOCK_CREATE_RULESET, attributes, c_size_t(len(attributes)), 0)
    if fd < 0:
        fail()
    return fd


def landlock_add_port(ruleset: int, access: int, port: int) -> None:
    """Grant TCP access to a port."""
    rule = struct.pack("=QQ", access, port)
    if _syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_NET_PORT, rule, 0) != 0:
        fail()


def landlock_restrict_self(ruleset: int) -> None:
    """Put this process, for good, under a ruleset; it needs no_new_privs."""
    if _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
        fail()


# --- memory ---------------------------------------------------------------------------------------

MAP_FIXED_NOREPLACE = 0x100000  # linux/mman.h, Linux 4.17; before, the address is a hint
MADV_DONTFORK = 10  # asm-generic/mman-common.h
_MSEAL = 462  # Linux 6.10; the same on every architecture
_mmap = libc.mmap
_mmap.restype = c_void_p
_mmap.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
_madvise = libc.madvise
_madvise.argtypes = (c_void_p, c_size_t, c_int)


def map_shared(
    fd: int, size: int, protection: int, *, address: int | None = None, offset: int = 0
) -> int:
    """Map ``size`` bytes of a file, shared, and at ``address`` if there is one, where nothing may
    be yet: where they are. ``protection`` is mmap.PROT_*.
    """
    flags = mmap.MAP_SHARED | (MAP_FIXED_NOREPLACE if address is not None else 0)
    found: int | None = _mmap(address, size, protection, flags, fd, offset)
    if found is None or found == c_void_p(-1).value:
        fail()
    if address is not None and found != address:
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    return found


def madvise(address: int, size: int, advice: int) -> None:
    """madvise(2)."""
    if _madvise(address, size, advice) != 0:
        fail()


def mseal(address: int, size: int) -> None:
    """Keep a mapping as it is and where it is, for good (Linux 6.10, 64-bit)."""
    if _syscall(c_long(_MSEAL), c_void_p(address), c_size_t(size), c_ulong(0)) != 0:
        fail()


# --- events ---------------------------------------------------------------------------------------

SIGNALFD_SIGINFO = 128  # sizeof(struct signalfd_siginfo)
SI_KERNEL = 0x80  # asm-generic/siginfo.h: sent by the kernel itself, the terminal's Ctrl-C for one
_SIGSET_BYTES = 128  # glibc's sigset_t; musl's is as large


def signalfd(signals: Iterable[int]) -> int:
    """A descriptor that yields ``signals`` (blocked already) as struct signalfd_siginfo,
    non-blocking.
    """
    bits = 0
    for number in signals:
        bits |= 1 << (number - 1)
    # A sigset_t is an array of native longs: on big-endian machines the words are swapped inside,
    # not among themselves.
    mask = b"".join(
        struct.pack("@L", (bits >> shift) & (2 ** (8 * struct.calcsize("@L")) - 1))
        for shift in range(0, 64, 8 * struct.calcsize("@L"))
    )
    fd: int = _signalfd(-1, mask.ljust(_SIGSET_BYTES, b"\0"), os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        fail()
    return fd


def siginfo(record: bytes) -> tuple[int, int]:
    """Signal number and si_code of one struct signalfd_siginfo."""
    number, _, code = struct.unpack_from("=Iii", record)
    return number, code
