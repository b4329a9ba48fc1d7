# SPDX-License-Identifier: GPL-2.0-or-later
"""What a COMMAND that keeps the real root may see of the kernel's settings, but not change.

A user namespace takes root's capabilities away, but not root's files: those of /proc/sys, sysfs and
their like control the machine, and most can be written by their owner without a capability. So they
become read-only mounts. The kernel locks all of these when the mount namespace is copied for
another user namespace (lock_mnt_tree, fs/namespace.c), and where a locked mount hides or restricts
a part of a file system, it refuses a fresh mount of it that would not (mount_too_revealing).
"""

from __future__ import annotations

import contextlib
import os
import stat

from hardsplice.kernel import linux, mounts
from hardsplice.kernel.mounts import Mount

# File systems that are the kernel's settings, wherever they are mounted.
_SETTINGS = {
    "proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf", "pstore",
    "efivarfs", "configfs", "selinuxfs", "smackfs", "binfmt_misc", "resctrl", "fusectl", "nfsd",
    "rpc_pipefs", "xenfs", "openpromfs",
}  # fmt: skip
_NO_CGROUP_NAMESPACES = "/proc/sys/user/max_cgroup_namespaces"


def make_settings_read_only() -> None:
    """Every mount of the kernel's settings in this mount namespace that can be reached. One that
    another mount covers stays covered.
    """
    for one in mounts.here().values():
        if one.kind in _SETTINGS and _can_be_reached(one):
            _make_read_only(one.path, one.flags)


def make_read_only(path: str) -> None:
    """The mount at a path, if there is one."""
    found = mounts.here().get(path)
    if found is not None:
        _make_read_only(path, found.flags)


def _can_be_reached(mount: Mount) -> bool:
    try:
        return os.stat(mount.path).st_dev == mount.device
    except (FileNotFoundError, NotADirectoryError):
        return False


def _make_read_only(path: str, flags: int) -> None:
    linux.mount("none", path, None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | flags)


def make_proc_read_only(proc: str = "/proc") -> None:
    """All of a fresh /proc but what is about processes: what is a folder, or can be written."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    for entry in os.scandir(proc):
        if entry.name.isdigit() or entry.is_symlink():
            continue
        if entry.is_dir() or entry.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
            linux.mount(entry.path, entry.path, None, linux.MS_BIND | linux.MS_REC)
            _make_read_only(entry.path, flags)


def refuse_cgroup_namespaces() -> None:
    """For the user namespaces below this one: root in a cgroup namespace may mount its part of the
    cgroup tree anew, to be written.
    """
    with contextlib.suppress(FileNotFoundError), open(_NO_CGROUP_NAMESPACES, "w") as limit:
        limit.write("0")
