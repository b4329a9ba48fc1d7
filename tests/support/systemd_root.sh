#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Starts systemd as PID 1 where it can reach nothing of this machine. tests/support/systemd.py runs
# this as an ordinary user, who is root only in new user, mount, PID, cgroup, IPC and UTS namespaces.
# The root is made here: a tmpfs with /usr and the program under test read-only, and units of the
# tests' own, none of systemd's (tmpfiles, for one, would empty /tmp). Nothing starts unless all that
# is seen to be so.
set -eu
folder=$1 program=$2
die() { echo "systemd_root.sh: $*" >&2; exit 1; }

# Before anything is mounted: root here must be nobody outside.
read -r inside outside count </proc/self/uid_map
[[ $inside == 0 && $outside != 0 && $count == 1 ]] || die "not in a user namespace of an ordinary user"
[[ $$ == 1 ]] || die "not the first process of a PID namespace"

root=$folder/root
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir -p "$root"/{usr,program,units,proc,sys,dev,run,tmp,var/log,etc,old}
for name in sys dev run tmp; do # what is mounted already systemd leaves alone
    mount -t tmpfs -o mode=755 tmpfs "$root/$name"
done
mkdir -p "$root"/sys/fs/cgroup "$root"/dev/{shm,pts}
for name in dev/shm dev/pts; do
    mount -t tmpfs -o mode=755 tmpfs "$root/$name"
done
for name in bin sbin lib lib64; do ln -s usr/$name "$root/$name"; done
for name in usr program; do
    source=/usr
    [[ $name == usr ]] || source=$program
    mount --bind "$source" "$root/$name"
    mount -o remount,bind,ro,nosuid "$root/$name"
done
cp "$folder"/units/* "$root/units/"
for name in null zero full random urandom; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
touch "$root/dev/console" # standard input is a terminal of the test's own: what is said goes there
mount --bind "$(tty)" "$root/dev/console"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
printf '%032x\n' 1 >"$root/etc/machine-id"
: >"$root/etc/os-release"

cd "$root"
pivot_root . old
umount -l old
cd /

# Now nothing may be left of the machine's own file systems but what is read-only.
for path in / /tmp /run /var /etc /dev /sys /units; do
    [[ $(stat -f -c %T "$path") == tmpfs ]] || die "$path is no tmpfs"
done
[[ -z $(find /old /tmp /var ! -type d) ]] || die "something is in the new root that nobody put there"
for path in /usr /program /proc/sys; do
    ! touch "$path/hardsplice-was-here" 2>/dev/null || die "$path can be written to"
done
while read -r _ _ _ _ path options _; do
    case $path in
        / | /sys | /dev | /dev/shm | /dev/pts | /run | /tmp | /proc | /sys/fs/cgroup | /dev/null | /dev/zero | /dev/full | /dev/random | /dev/urandom | /dev/console) ;;
        *) [[ ,$options, == *,ro,* ]] || die "$path is mounted writable" ;;
    esac
done </proc/self/mountinfo

exec env -i container=test PATH=/usr/sbin:/usr/bin \
    SYSTEMD_UNIT_PATH=/units SYSTEMD_GENERATOR_PATH=/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/none \
    /usr/lib/systemd/systemd --system --unit=tests.target --log-target=console --log-level=info \
    --show-status=0
