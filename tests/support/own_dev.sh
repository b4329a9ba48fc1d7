#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# `own_dev.sh FOLDER WORDS...` runs a command with a /dev of its own, in a mount namespace that it is
# in: devices that everybody may use, and a log that nobody reads.
set -eu
made=$1
shift
mount --make-rprivate /
mount -t tmpfs -o mode=755 none "$made"
for name in full null random tty urandom zero; do
    touch "$made/$name"
    mount --bind /dev/$name "$made/$name"
done
mkdir "$made/pts" "$made/net"
mkdir -m 1777 "$made/shm"
mount --bind /dev/pts "$made/pts"
mknod -m 666 "$made/net/tun" c 10 200
mknod -m 666 "$made/fuse" c 10 229
ln -s pts/ptmx "$made/ptmx"
ln -s /proc/self/fd "$made/fd"
for i in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${i%:*}" "$made/${i#*:}"; done
mount --move "$made" /dev
socat -u UNIX-RECVFROM:/dev/log,fork,mode=666 /dev/null &
exec "$@"
