# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket: HTTP/1.1 with JSON over a UNIX socket, served by the host monitor after
lock-down.

Requests are treated as hostile. So the parser (`http`) and the routes
(`routes`, `portapi`, `report`) are pure, and just `server` and `socketfile` touch the system. This
package is imported during set-up, and only with --control: nothing is imported after lock-down.
"""
