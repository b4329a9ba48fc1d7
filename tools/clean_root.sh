#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Runs a command with a folder as its root: `clean_root.sh ROOT LAYER WORKING_FOLDER WORDS...`. If
# LAYER isn't empty, it is a folder that is seen at the same path in there; all that is changed in the
# root is in LAYER/upper then, and the root is left as it is.
# tools/clean_root.py starts it in mount and PID namespaces of its own, and in a network namespace of
# its own unless the command may use the network. Of the machine the command sees /sys and six devices.
# Unlike one in a chroot, it may make user namespaces.
set -eu
root=$1 layer=$2 folder=$3
shift 3
PATH=/usr/sbin:/usr/bin:/sbin:/bin
die() { echo "clean_root.sh: $*" >&2; exit 1; }
[ $$ = 1 ] || die "not in a PID namespace of its own"

mount --make-rprivate /
ip link set lo up 2>/dev/null || :
if [ "$layer" ]; then
    mkdir -p "$layer/upper" "$layer/work" "$layer/root"
    mount -t overlay -o "lowerdir=$root,upperdir=$layer/upper,workdir=$layer/work" overlay "$layer/root"
    root=$layer/root
else
    mount --bind "$root" "$root"
fi
cd "$root"
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs -o mode=755 tmpfs dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
if [ "$layer" ]; then
    mkdir -p "./$layer"
    mount --bind "$layer" "./$layer"
fi
for name in full null random tty urandom zero; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
mkdir -m 755 dev/pts
mkdir -m 1777 dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for i in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${i%:*}" "dev/${i#*:}"; done
# The old root comes to lie on the new one, and is taken away from there: pivot_root(2), NOTES.
pivot_root . .
umount --lazy .
cd "$folder"
exec "$@"
