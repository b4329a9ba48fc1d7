#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What runs in a container whose ports tests publish: a web server at 8080 that says hello, names at 53
# by UDP and TCP, and at 9000-9099 what answers datagrams (datagram_program.py, which is named by $1).
mkdir -p /srv && echo hello >/srv/index.html
busybox httpd -p 8080 -h /srv
dnsmasq --port=53 --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file= \
    --address=/hello.test/192.0.2.7
exec /usr/bin/python3 -I "$1" serve 9000-9099
