# SPDX-License-Identifier: GPL-2.0-or-later
"""The installed package on kernels with AppArmor and with SELinux, in machines of their own: this
one's kernel may have neither. Debian 13 has AppArmor 4, which knows the profile's rule.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support import guest
from tests.support.clean import INSTALL, ROOT, succeeds

pytestmark = [
    pytest.mark.packages,
    pytest.mark.root,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("suite", ["trixie"], indirect=True, scope="session"),
]

# What Ubuntu does to programs without a profile, done by one: they may not create user namespaces.
# Each program of the package is then started as its engine does, and says nothing yet.
RESTRICTED = r"""
set -eu
cat >/tmp/ordinary <<'PROFILE'
abi <abi/4.0>,
profile ordinary {
  capability, network, unix, signal, ptrace, mount, umount, remount, pivot_root,
  / r,
  /** rwlkm,
  /** pix,
}
PROFILE
apparmor_parser --replace /tmp/ordinary
ordinary="aa-exec --profile=ordinary -- env"
user="$ordinary setpriv --reuid=1000 --regid=1000 --clear-groups"
! $user hardsplice -- true || exit 1
apparmor_parser --replace /etc/apparmor.d/hardsplice
! $user unshare --user true || exit 1
echo "COMMAND is $($user hardsplice -- cat /proc/self/attr/current)"
mkfifo /tmp/silent
exec 9<>/tmp/silent
for program in $(dpkg --listfiles hardsplice | grep -E '/(libexec/hardsplice|cni)/.'); do
    set -- $user $program
    expected=
    case $program in */docker-proxy)
        set -- $ordinary $program -host-port 8080 -container-ip 127.0.0.1 -container-port 80
        expected=0 ;;
    esac
    "$@" <&9 3>/tmp/told &
    for _ in $(seq 300); do
        read -r label _ </proc/$!/attr/current || break
        [ "$label:$(cat /tmp/told)" != "hardsplice:$expected" ] || break
        sleep 0.1
    done
    echo "$program is $label, told $(cat /tmp/told)"
    kill $! || :
done
"""


def test_the_apparmor_profile_is_that_of_each_program_with_namespaces(clean: Path) -> None:
    succeeds(clean, *INSTALL)
    (clean / "srv/restricted").write_text(RESTRICTED)
    said = guest.run(clean, guest.MOUNTED + guest.ending("/srv/restricted"))
    assert "hardsplice: cannot create namespaces: Permission denied\n" in said
    assert "COMMAND is hardsplice (unconfined)\n" in said
    programs = re.findall(r"^/usr/(\S+) is (.*)$", said, re.MULTILINE)
    assert dict(programs) == {
        "lib/cni/hardsplice": "hardsplice, told ",
        "libexec/hardsplice/docker-proxy": "hardsplice, told 0",
        "libexec/hardsplice/oci-hook": "hardsplice, told ",
        "libexec/hardsplice/rootlessport": "hardsplice, told ",
    }


# --- SELinux ---

# The root is labelled as an installation labels it, once the policy is there, and systemd started.
# What the kernel has unpacked can't be labelled.
LABELLED = """
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/null >/dev/console 2>&1
mkdir -p /run/root
mount -t tmpfs -o size=3g,mode=755 tmpfs /run/root
cp -a /bin /etc /home /lib* /root /sbin /srv /usr /var /run/root
cd /run/root
mkdir dev proc run sys
mkdir -m 1777 tmp
mount -t selinuxfs selinuxfs /sys/fs/selinux
load_policy
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t selinuxfs selinuxfs sys/fs/selinux
chroot . setfiles -F /etc/selinux/default/contexts/files/file_contexts /
umount sys/fs/selinux sys proc
umount /sys/fs/selinux
mount --move . /
exec chroot . /lib/systemd/systemd --show-status=0 --log-level=crit
"""
# Its root is a tmpfs, a script is who uses it, and plays engines.
PERMISSIVE = ("container_engine_t", "dockerd_t", "ifconfig_t", "init_t", "initrc_t")
INSTALL_MODULE = """
cd /srv/selinux
make -f /usr/share/selinux/devel/Makefile NAME=default hardsplice.pp
semodule -n -s default -i hardsplice.pp -i permissive.cil
"""
UNIT = """
[Service]
Type=oneshot
ExecStart=sh -c "{ending}"
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
"""
SERVED = r"""
set -eu
fetch() { python3 -c "from urllib.request import *; print(urlopen('http://127.0.0.1:$1').status)"; }
domains() {
    for pid in $(pgrep hs-); do
        echo "domain $(cat /proc/$pid/comm) $(cut -d: -f3 /proc/$pid/attr/current)"
    done
}
echo 1 >/sys/fs/selinux/enforce
/srv/tests/services
ip netns add blue
ip -netns blue link set lo up
systemd-run --quiet ip netns exec blue python3 -m http.server 8000
socket=/run/hardsplice/blue.sock
options="-t 127.0.0.1/auto -u 127.0.0.1/9053:53 -T 9000 -U 9001 --workers 2 --control $socket"
echo "OPTIONS=$options" >/etc/hardsplice/blue.conf
systemctl start hardsplice@blue
for _ in $(seq 60); do [ "$(fetch 8000 2>&1 | tail -1)" != 200 ] || break; sleep 1; done
echo "an automatic port: $(fetch 8000)"
hardsplicectl --socket $socket ports add 127.0.0.1/8001:8000
echo "an added port: $(fetch 8001)"
domains
systemctl reload-or-restart hardsplice@blue
systemctl stop hardsplice@blue
systemd-run --quiet --unit=web --property=PrivateNetwork=yes python3 -m http.server 8002
echo 'OPTIONS=-t 127.0.0.1/8002' >/etc/hardsplice/web.conf
systemctl start hardsplice-service@web
echo "a service's port: $(fetch 8002)"
systemctl stop hardsplice-service@web hardsplice-exporter.service
rm -r /run/hardsplice
unshare --net sleep 1000 &
state="{\"id\":\"one\",\"status\":\"created\",\"pid\":$!,\"annotations\":{\"org.hardsplice.tcp\":\"127.0.0.1/8003:80\"}}"
for domain in container_engine_t dockerd_t; do
    as="runcon system_u:system_r:$domain:s0"
    echo "$state" | $as /usr/libexec/hardsplice/oci-hook
    domains
    echo "$state" | sed s/created/stopped/ | $as /usr/libexec/hardsplice/oci-hook
    ls -Zd /run/hardsplice
    rm -r /run/hardsplice
    $as /usr/libexec/hardsplice/docker-proxy -host-port 8004 \
        -container-ip 127.0.0.1 -container-port 80 3>/run/told &
    for _ in $(seq 300); do [ ! -s /run/told ] || break; sleep 0.1; done
    kill $!
    wait $! || :
    echo "docker-proxy told $(cat /run/told)"
done
dmesg | grep "avc: *denied" || :
"""


def test_selinux_enforces_the_module_and_hardsplice_serves(clean_with_selinux: Path) -> None:
    """And asks for nothing more. The domains of engines only note what they would be denied."""
    root = clean_with_selinux
    succeeds(root, *INSTALL)
    shutil.copytree(ROOT / "packaging/selinux", root / "srv/selinux")
    (root / "srv/selinux/permissive.cil").write_text(
        "".join(f"(typepermissive {name})\n" for name in PERMISSIVE)
    )
    succeeds(root, "sh", "-ec", INSTALL_MODULE)
    (root / "srv/served").write_text(SERVED)
    ending = guest.ending("/srv/served").replace("\n", "; ").replace("$", "$$")
    units = root / "etc/systemd/system"
    (units / "served.service").write_text(UNIT.format(ending=ending))
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "served.service").symlink_to("../served.service")
    for name in ("getty@tty1", "serial-getty@ttyS0"):
        (units / f"{name}.service").symlink_to("/dev/null")
    kernel = "security=selinux enforcing=0 audit=1 audit_backlog_limit=8192 log_buf_len=16M"
    said = guest.run(root, guest.LOADED + LABELLED, kernel)
    for word in ("the exporter has its metrics", "docker-proxy told 0"):
        assert word in said, said
    for what in ("an automatic", "an added", "a service's"):
        assert f"{what} port: 200\n" in said, said
    domains = set(re.findall(r"^domain (hs-\S+) (\w+)$", said, re.MULTILINE))
    relays = {"hs-host", "hs-namespace", "hs-relay-in"}
    assert {(name, "hardsplice_t") for name in (*relays, "hs-udp-in", "hs-udp-out")} <= domains
    for engine in ("container_engine_t", "dockerd_t"):
        assert {(name, engine) for name in relays} <= domains
    assert said.count(":hardsplice_runtime_t:s0 /run/hardsplice\n") == 2, said
    # An engine may look at its containers, and at its own files, unlike this script's.
    ours = r"scontext=\S+:(hardsplice_t|container_engine_t|dockerd_t):|tcontext=\S+:hardsplice_"
    others = r'comm="(runcon|sh)"|tcontext=\S+:initrc_(runtime_)?t:'
    denied = [
        line
        for line in re.findall(r"avc: +denied .*", said)
        if re.search(ours, line) and not re.search(others, line)
    ]
    assert not denied, "\n".join(denied)
