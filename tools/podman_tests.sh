#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What `make test-podman` needs, on Debian, as root: Podman's own system tests, as the source package of
# the Podman that is installed has them, and what these use. Prints the folder that has them.
set -euo pipefail

say() { printf 'podman tests: %s\n' "$*" >&2; }

if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    say "only root fetches them, and on Debian"
    exit 1
fi
missing=()
for program in bats ncat jq socat curl podman; do
    command -v "$program" >/dev/null || missing+=("$program")
done
command -v cc >/dev/null || missing+=(gcc libc6-dev)
if ((${#missing[@]})); then
    say "installing ${missing[*]}"
    apt-get -qq update >&2
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" \
        </dev/null >/dev/null
fi
read -r source version suite < <(
    # shellcheck disable=SC2016 # dpkg's variables, not ours
    dpkg-query -W -f '${source:Package} ${source:Version} ' podman
    . /etc/os-release
    echo "$VERSION_CODENAME"
)
tests=/var/cache/hardsplice/podman-tests-${version//[^[:alnum:].]/-}
if [[ ! -d $tests ]]; then
    say "fetching the source of $source $version"
    folder=$(mktemp -d)
    trap 'rm -rf -- "$folder"' EXIT
    chmod 755 "$folder" # apt's own user downloads
    mkdir -p "$folder/lists/partial" "$folder/source"
    echo "deb-src http://deb.debian.org/debian $suite main" >"$folder/sources"
    from=(
        -o "Dir::Etc::sourcelist=$folder/sources" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$folder/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    )
    apt-get -qq "${from[@]}" update >&2
    (cd "$folder/source" && apt-get -qq --download-only "${from[@]}" source "$source=$version") >&2
    tar --extract --file "$folder/source/"*.orig.tar.* --directory "$folder/source" --wildcards '*/test/*'
    mkdir -p "${tests%/*}"
    mv "$folder/source/"*/test "$tests"
fi
printf '%s' "$tests"
