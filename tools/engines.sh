#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What `make test-engines` needs, on Debian, as root: installs the engines that are missing, makes
# trees of newer releases with theirs (tools/engine_trees.py), and prints the folders where the
# programs are that it only unpacks. Docker's package would start a daemon, and change the packet
# filter, as soon as it is installed.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly unpacked=/var/cache/hardsplice/engines
readonly docker=(docker.io containerd)

say() { printf 'engines: %s\n' "$*" >&2; }

has() { command -v "$1" >/dev/null || [[ -e $1 ]]; }

missing=()
need() { has "$2" || missing+=("$1"); }

need podman podman
need crun crun
need runc runc
need netavark /usr/lib/podman/netavark
need aardvark-dns /usr/lib/podman/aardvark-dns
need catatonit catatonit
need busybox-static busybox
need uidmap newuidmap
need slirp4netns slirp4netns
need fuse-overlayfs fuse-overlayfs
need iptables iptables
need containernetworking-plugins /usr/lib/cni/bridge
need rootlesskit rootlesskit-docker-proxy
need bubblewrap bwrap
need curl curl
need bind9-dnsutils dig
need dnsmasq-base dnsmasq
need mmdebstrap mmdebstrap

if ((EUID != 0)) || ! has apt-get; then
    say "tests skip what isn't here: only root installs engines, and on Debian"
    exit 0
fi
if ((${#missing[@]})); then
    say "installing ${missing[*]}"
    apt-get -qq update >&2 || say "apt-get update failed; going on with the package lists that are here"
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" \
        </dev/null >/dev/null || say "cannot install them all; tests skip what isn't here"
fi
if ! has dockerd && [[ ! -e $unpacked/usr/sbin/dockerd ]]; then
    say "unpacking ${docker[*]} in $unpacked"
    folder=$(mktemp -d)
    trap 'rm -rf -- "$folder"' EXIT
    chmod 755 "$folder" # apt's own user downloads
    if (cd "$folder" && apt-get -qq download "${docker[@]}") >&2; then
        mkdir -p "$unpacked"
        for package in "$folder"/*.deb; do
            dpkg-deb --extract "$package" "$unpacked"
        done
    else
        say "cannot download them; tests skip what isn't here"
    fi
fi
say "looking after trees with newer engines, which takes minutes the first time"
/usr/bin/python3 -B -m tools.engine_trees >&2 || say "tests skip what isn't here"
printf '%s' "$unpacked/usr/bin:$unpacked/usr/sbin"
