#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Install what the benchmark compares with, as Debian packages it. The benchmark itself installs
# nothing: it measures what it finds. Each package is named before it is installed, and of a
# package that brings a service with it, only the program is wanted.
set -euo pipefail

PATH="$PATH:/usr/sbin:/sbin"
missing=()

# want PACKAGE FILE...: note the package unless one of the commands or files is there.
want() {
    local package=$1 sign
    shift
    for sign; do
        if command -v "$sign" >/dev/null || [[ -e $sign ]]; then
            printf '%-14s there already (%s)\n' "$package" "$sign"
            return
        fi
    done
    printf '%-14s to be installed\n' "$package"
    missing+=("$package")
}

want gcc cc
want libc6-dev /usr/include/stdio.h
want strace strace
want util-linux nsenter
want passt pasta
want haproxy haproxy
want systemd /usr/lib/systemd/systemd-socket-proxyd /lib/systemd/systemd-socket-proxyd
want socat socat
want rootlesskit rootlesskit
want slirp4netns slirp4netns
want uidmap newuidmap

if ((${#missing[@]} == 0)); then
    echo "nothing to do"
    exit
fi
as_root=()
((EUID == 0)) || as_root=(sudo)
set -x
"${as_root[@]}" apt-get -qq update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 \
    --no-install-recommends install "${missing[@]}" </dev/null
{ set +x; } 2>/dev/null
if [[ " ${missing[*]} " == *" haproxy "* && -d /run/systemd/system ]]; then
    echo "the package haproxy enables a service, which nobody asked for here:"
    set -x
    "${as_root[@]}" systemctl disable --now haproxy.service
fi
