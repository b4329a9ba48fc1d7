#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Make this machine ready for `make demo` (bootstrap.sh run), for building what is released
# (bootstrap.sh build) or for `make test` (bootstrap.sh test), or take the virtual environment away again (bootstrap.sh clean).
#
# System packages are looked for as the commands and files that are needed, and only what is
# missing is installed, with apt-get, by root or through sudo. What pip installs depends on a few
# files only; their checksum is kept in the environment, so that a later call does nothing but
# compare it.
set -euo pipefail

# Whatever the caller's umask is: root's packages, and an environment that other users may read.
umask 022
export LC_ALL=C.UTF-8
PATH="$PATH:/usr/sbin:/sbin"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

readonly profile="${1:-}"
readonly venv="${VENV:-.venv}"
missing=()

say() { printf 'bootstrap: %s\n' "$*" >&2; }

fail() {
    printf 'bootstrap: %s\n' "$@" >&2
    exit 1
}

# --- system packages -----------------------------------------------------------------------------

has_command() { command -v "$1" >/dev/null; }

# has_file PATTERN...: whether any of them matches a file.
has_file() {
    local pattern
    for pattern; do
        ! compgen -G "$pattern" >/dev/null || return 0
    done
    return 1
}

system_python_has() { /usr/bin/python3 -c "import $1" 2>/dev/null; }

# need PACKAGE TEST...: note the Debian package as missing unless the test holds.
need() {
    local package=$1
    shift
    "$@" || missing+=("$package")
}

install_missing() {
    ((${#missing[@]})) || return 0
    has_command apt-get || fail "cannot find what these Debian packages hold: ${missing[*]}" \
        "install their like on this system, then try again"
    local as_root=()
    if ((EUID != 0)); then
        has_command sudo || fail "cannot install ${missing[*]}: neither root nor sudo" \
            "as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    "${as_root[@]}" apt-get -qq update ||
        say "apt-get update failed; going on with the package lists that are here"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 \
        --no-install-recommends install "${missing[@]}" </dev/null >/dev/null ||
        fail "cannot install ${missing[*]}: see above"
    hash -r
    missing=()
}

# What runs need: cheap enough to be looked at on every call.
need_tools() {
    need libseccomp2 has_file '/usr/lib*/*/libseccomp.so.2' '/usr/lib*/libseccomp.so.2'
    [[ $profile == run ]] || need git has_command git
    [[ $profile != build ]] || return 0
    need util-linux has_command setpriv
    need util-linux has_command nsenter
    [[ $profile == test ]] || return 0
    need libmagic1 has_file '/usr/lib*/*/libmagic.so.1' '/usr/lib*/libmagic.so.1' # reuse
    need rpm has_command rpmbuild
    need cpio has_command cpio
    need rpmlint has_command rpmlint
    need selinux-policy-dev has_file /usr/share/selinux/devel/Makefile
    need mmdebstrap has_command mmdebstrap
    need setools has_command sesearch
    need iproute2 has_command ip
    need rootlesskit has_command rootlessctl
    need bubblewrap has_command bwrap
    need curl has_command curl
    need uidmap has_command newuidmap
    need procps has_command ps
    need strace has_command strace
    need dnsmasq-base has_command dnsmasq # tests/relay_udp: the next ten
    need bind9-dnsutils has_command dig
    need dnsperf has_command dnsperf
    need iperf3 has_command iperf3
    need ngtcp2-server has_command gtlsserver
    need ngtcp2-client has_command gtlsclient
    need mosh has_command mosh-server
    need wireguard-tools has_command wg
    need wireguard-go has_command wireguard-go
    need openvpn has_command openvpn
    need groff-base has_command groff
    need mandoc has_command mandoc
    need man-db has_command man
    [[ ! -e /usr/lib/systemd/systemd ]] || need systemd-container has_command systemd-nspawn
    need python3-prctl system_python_has prctl # it is what a real systemd starts in tests/service
    need python3-seccomp system_python_has seccomp # the other binding, and what packages depend on
}

# What pip needs in order to fetch packages, and the tests to read the kernel's headers.
need_build_tools() {
    need ca-certificates has_file /etc/ssl/certs/ca-certificates.crt
    [[ $profile != test ]] || need cpp has_command cpp
}

can_install() { has_command apt-get && { ((EUID == 0)) || has_command sudo; }; }

# The packages that are missing of those with which python-prctl is compiled: it has no wheels.
prctl_lacks() {
    has_command gcc || echo gcc
    has_file /usr/include/stdio.h || echo libc6-dev
    has_file /usr/include/sys/capability.h || echo libcap-dev
    has_headers "$python" || case $python in
    /usr/bin/python3*) echo "${python##*/}-dev" ;;
    *) echo Python.h ;;
    esac
}

# The tests compare with python-prctl. Runs do without it where there is no compiler.
need_prctl() {
    [[ $profile == test ]] && can_install || return 0
    local package
    for package in $(prctl_lacks); do
        [[ $package == Python.h ]] || missing+=("$package") # that one isn't Debian's
    done
}

# --- Python --------------------------------------------------------------------------------------

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# The system's own Python comes first: every user may run it, and it is what packages use.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        if has_command "$candidate" && is_new_enough "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

has_venv() {
    "$1" -c 'import importlib.util; import sys
sys.exit(not all(map(importlib.util.find_spec, ("ensurepip", "venv"))))'
}

has_headers() {
    local code='import sysconfig; print(sysconfig.get_path("include"))'
    [[ -x $1 ]] && has_file "$("$1" -c "$code")/Python.h"
}

need_python() {
    if [[ -n ${PYTHON:-} ]]; then
        has_command "$PYTHON" || fail "cannot run PYTHON=$PYTHON: no such program"
        is_new_enough "$PYTHON" || fail "cannot use PYTHON=$PYTHON: not Python 3.11 or newer"
        python=$(command -v "$PYTHON")
    elif ! python=$(find_python); then
        python=/usr/bin/python3
        [[ ! -e $python ]] || fail "cannot find Python 3.11 or newer: $python is older" \
            "install one beside it and name it: make PYTHON=/path/to/python3.11 ..."
        missing+=(python3 python3-venv)
        return 0
    fi
    has_venv "$python" || case $python in
    /usr/bin/python3*) missing+=("${python##*/}-venv") ;;
    *) fail "cannot use $python: it has no venv" ;;
    esac
}

# --- the virtual environment ---------------------------------------------------------------------

# An environment holds absolute paths and a certain Python's modules: moved, or with another Python
# behind it (a distribution's upgrade), it has to be made anew.
venv_key() { printf '%s %s %s' "$PWD" "$(readlink -f -- "$venv/bin/python")" "${PYTHON:-}"; }

wanted_key() {
    printf '%s %s' "$(venv_key)" "$(cat pyproject.toml tools/bootstrap.sh | sha256sum)"
}

# What tests need has all that the other profiles do.
is_current() {
    local made
    [[ -x $venv/bin/python ]] || return 1
    for made in "$profile" test; do
        [[ ! -f $venv/.ready-$made || $(<"$venv/.ready-$made") != "$(wanted_key)" ]] || return 0
    done
    return 1
}

remove_venv() {
    [[ -e $venv ]] || return 0
    [[ -f $venv/pyvenv.cfg ]] || fail "cannot remove $venv: not a virtual environment"
    rm -rf -- "$venv"
}

make_venv() {
    if [[ ! -x $venv/bin/python || ! -f $venv/.key || $(<"$venv/.key") != "$(venv_key)" ]]; then
        remove_venv
        say "making $venv with $("$python" --version) ($python)"
        "$python" -m venv "$venv"
        venv_key >"$venv/.key"
    fi
    local what=. lacks
    [[ $profile != test ]] || what='.[dev]'
    [[ $profile != build ]] || what='.[build]'
    mapfile -t lacks < <(prctl_lacks)
    if [[ $profile == build ]]; then
        : # which runs nothing
    elif ((${#lacks[@]})); then
        say "going on without python-prctl, whose calls hardsplice then makes itself:" \
            "to compile it takes ${lacks[*]}"
    elif [[ $profile == test ]]; then
        what='.[dev,prctl]'
    else
        what='.[prctl]'
    fi
    say "installing $what with pip"
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check install --use-pep517 \
        --editable "$what" ||
        fail "cannot install $what: see above"
    wanted_key >"$venv/.ready-$profile"
}

case $profile in
run | build | test)
    need_tools
    if ! is_current; then
        need_build_tools
        need_python
        need_prctl
    fi
    install_missing
    if ! is_current; then
        is_new_enough "$python" || fail "cannot use $python: not Python 3.11 or newer"
        make_venv
    fi
    ;;
clean)
    remove_venv
    ;;
*)
    fail "usage: bootstrap.sh run|build|test|clean"
    ;;
esac
