#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Surroundings in which Podman can be used as any user, and which leave nothing behind: a mount and a
# PID namespace with accounts, /run, cgroups and storage of their own. `podman.sh FOLDER UID WORDS...`
# runs a command in there, with the programs in $HELPERS before Podman's own; it ends, and everything that it started with it, when its parent does.
# With $SHARED_RUN its /run is that folder, as several users have one. With $DELEGATED it starts in
# the cgroup of that path, which is the user's: so Podman can pause containers.
set -eu
folder=$1 uid=$2
shift 2
mount --make-rprivate /
mkdir -p "$folder/home"
chown "$uid:$uid" "$folder/home"
{ cat /etc/passwd; echo "podman-test:x:$uid:$uid::$folder/home:/bin/sh"; } > "$folder/passwd"
{ cat /etc/group; echo "podman-test:x:$uid:"; } > "$folder/group"
echo "podman-test:$((uid * 65536)):65536" > "$folder/subids"
mount --bind "$folder/group" /etc/group
for place in subuid subgid; do mount --bind "$folder/subids" /etc/$place; done
[ "$uid" = 0 ] || mount --bind "$folder/passwd" /etc/passwd
if [ -n "${SHARED_RUN-}" ]; then mount --bind "$SHARED_RUN" /run; else mount -t tmpfs -o mode=755 none /run; fi
install -d -m 700 -o "$uid" -g "$uid" "/run/user/$uid"
cat > "$folder/storage.conf" <<END
[storage]
driver = "vfs"
graphroot = "$folder/home/storage"
runroot = "/run/user/$uid/storage"
END
if [ -c /dev/net/tun ]; then # for slirp4netns, which rootless networks have
    mknod -m 666 "$folder/tun" c 10 200
    mount --bind "$folder/tun" /dev/net/tun
fi
if [ "$uid" = 0 ]; then
    runtime=runc # crun raises a limit for root, which root may not do everywhere
else
    runtime=crun # which takes one hierarchy of cgroups, and not two kinds of them
    umount --recursive --lazy /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
fi
if [ -n "${DELEGATED-}" ]; then
    mkdir -p "/sys/fs/cgroup$DELEGATED/own"
    chown -R "$uid" "/sys/fs/cgroup$DELEGATED"
    echo $$ > "/sys/fs/cgroup$DELEGATED/own/cgroup.procs"
fi
cat > "$folder/containers.conf" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "$runtime"
helper_binaries_dir = [${HELPERS:+"\"$HELPERS\", "}"/usr/libexec/podman", "/usr/lib/podman"]
END
export CONTAINERS_CONF="$folder/containers.conf"
export HOME="$folder/home" XDG_RUNTIME_DIR="/run/user/$uid" CONTAINERS_STORAGE_CONF="$folder/storage.conf"
cd "$HOME"
[ "$uid" = 0 ] || set -- setpriv --reuid="$uid" --regid="$uid" --init-groups "$@"
exec "$@"
