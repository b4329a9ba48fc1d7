#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Boots systemd as a machine does, with root's rights and its own units, in a systemd-nspawn(1)
# container, by the words that follow FOLDER and PROGRAM. tests/support/nspawn.py runs this in a mount
# namespace of its own.
# The container's root is made here: a tmpfs, /usr read-only with what the test adds over it, an /etc
# of the test's own. Of the machine it can write to nothing; its network is its own.
set -eu
folder=$1 program=$2
shift 2
die() { echo "nspawn_root.sh: $*" >&2; exit 1; }

[[ $(readlink /proc/self/ns/mnt) != "$(readlink "/proc/$PPID/ns/mnt")" ]] || die "not in a mount namespace of its own"

root=$folder/root
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir -p "$root"/{usr,proc,sys,dev,run,tmp,var,etc,root,program}
mount -t overlay -o "ro,lowerdir=$folder/usr:/usr" overlay "$root/usr"
mount --bind "$program" "$root/program"
mount -o remount,bind,ro,nosuid "$root/program"
for name in bin sbin lib lib64; do ln -s usr/$name "$root/$name"; done
printf '%032x\n' 1 >"$root/etc/machine-id"
cp /usr/lib/os-release "$root/etc/os-release"
cp /etc/ld.so.cache "$root/etc/"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf 'passwd: files systemd\ngroup: files systemd\n' >"$root/etc/nsswitch.conf"
cp -r "$folder"/etc/. "$root/etc/"

exec "$@"
