# SPDX-License-Identifier: GPL-2.0-or-later
"""Routes of requests: a table of paths, methods and handlers, and the parameters of each.

Paths are compared as they are sent: none of ours has a character that would be percent-encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hardsplice.control import portapi, report
from hardsplice.control.http import Request, Response
from hardsplice.control.world import Call, World, refusal
from hardsplice.model.direction import Direction

Handler = Callable[[Call], None]


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """A handler, and the parameters of the query that it knows, each with its values, or None where
    it minds none; and whether it is for those, too, who ask from the namespace that is served.
    """

    handler: Handler
    query: Mapping[str, tuple[str, ...]] | None
    inside: bool = False


HttpRoutes = dict[str, dict[str, HttpRoute]]

_DIRECTIONS = {"direction": (*Direction, "all")}

# {id} stands for one part of a path.
ROUTES: HttpRoutes = {
    # RootlessKit's port API
    "/v1/info": {"GET": HttpRoute(portapi.info, {}, inside=True)},
    "/v1/ports": {
        "GET": HttpRoute(portapi.list_ports, _DIRECTIONS, inside=True),
        "POST": HttpRoute(portapi.add_port, {}, inside=True),
    },
    "/v1/ports/{id}": {
        "DELETE": HttpRoute(portapi.remove_port, {"flows": ("keep", "reset")}, inside=True)
    },
    # our own
    "/v1/status": {"GET": HttpRoute(report.status, {})},
    "/v1/flows": {"GET": HttpRoute(report.flows, {})},
    "/v1/audit": {"GET": HttpRoute(report.audit, {})},
    "/metrics": {"GET": HttpRoute(report.metrics, None)},  # scrapers add what they are told to
}


# Routes of the socket for metrics, which is for every user.
FOR_ALL = {"/metrics": ROUTES["/metrics"]}


def find(path: str, routes: HttpRoutes) -> tuple[dict[str, HttpRoute], str] | None:
    """The methods of a path and what stands for its {id}; None where there is no such path."""
    if path in routes and "{" not in path:
        return routes[path], ""
    parent, _, last = path.rpartition("/")
    methods = routes.get(f"{parent}/{{id}}") if last else None
    return None if methods is None else (methods, last)


def read_query(text: str, known: Mapping[str, tuple[str, ...]]) -> dict[str, str] | str:
    """A query's parameters by name, or what is wrong with it."""
    found: dict[str, str] = {}
    for part in text.split("&") if text else ():
        name, _, value = part.partition("=")
        if name not in known:
            return f"there is no parameter {name[:40]!r} here"
        if name in found or value not in known[name]:
            return f"{name} is one of {', '.join(known[name])}"
        found[name] = value
    return found


def dispatch(
    request: Request,
    world: World,
    respond: Callable[[Response], None],
    routes: HttpRoutes = ROUTES,
) -> None:
    """Serve one request. ``respond`` is called once, now or later."""
    found = find(request.path, routes)
    if found is None:
        paths = ", ".join(routes)
        respond(refusal(404, f"there is nothing at this path; there are {paths}", close=False))
        return
    methods, argument = found
    # HEAD is GET without the body, which the server leaves out (RFC 9110, section 9.3.2).
    route = methods.get("GET" if request.method == "HEAD" else request.method)
    if route is None:
        allow = ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
        respond(refusal(405, f"this path takes {allow}", close=False, allow=allow))
        return
    if request.inside and not route.inside:
        respond(refusal(403, "this is not for the namespace that is served", close=False))
        return
    query = {} if route.query is None else read_query(request.query, route.query)
    if isinstance(query, str):
        respond(refusal(400, query, close=False))
        return
    route.handler(Call(request, argument, query, world, respond))
