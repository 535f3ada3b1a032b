"""Refuse requests that come from other sites, and tell browsers to load nothing from elsewhere.

A page on 127.0.0.1 can be reached by any site that the same browser shows: by its address (so a
request that changes something must name this site as its origin) and by a foreign name that
resolves to it (DNS rebinding: so the name asked for must be one of ours).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class HostRule:
    """Which names this site may be asked for by.

    `localhost`, loopback addresses, and names given by hand; where it listens on more than the
    loopback, any address: only names can be made to point here by somebody else.
    """

    def __init__(self, listens_on: str, names: Iterable[str] = ()) -> None:
        self._names = {name.casefold() for name in names} | {"localhost"}
        address = _address(listens_on)
        if address is None:
            self._names.add(listens_on.casefold())
        self._is_open = not (listens_on == "localhost" or (address and address.is_loopback))

    def allows(self, host: str) -> bool:
        """Whether a Host header, with or without a port, names this site."""
        name = _host_name(host)
        if name is None:
            return False
        address = _address(name)
        if address is None:
            return name in self._names
        return self._is_open or address.is_loopback


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def guard(rule: HostRule) -> Middleware:
    """The middleware: host, origin, and headers on every answer that is not begun yet."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = _refusal(request, rule)
        if refusal is not None:
            return _with_headers(web.json_response({"error": refusal}, status=403))
        try:
            response = await handler(request)
        except web.HTTPException as error:
            for name, value in _HEADERS.items():
                error.headers[name] = value
            raise
        return response if response.prepared else _with_headers(response)

    return guarded


def guard_headers(response: web.StreamResponse) -> web.StreamResponse:
    """The headers for an answer that its handler begins itself."""
    return _with_headers(response)


def _with_headers(response: web.StreamResponse) -> web.StreamResponse:
    response.headers.update(_HEADERS)
    return response


def _refusal(request: web.Request, rule: HostRule) -> str | None:
    """Why a request is refused; None: it is not."""
    host = request.headers.get("Host", "")
    if not rule.allows(host):
        return (
            f"this page does not go by the name {host[:100]!r}: open it by its address, or give "
            "the name with --allow-host"
        )
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return f"requests from {origin[:100]!r} are not taken"
    if request.method not in ("GET", "HEAD") and origin is None:
        return "a request that changes something must name its Origin"
    return None
