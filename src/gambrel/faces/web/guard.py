"""Who may talk to the page: its own browser tab on this machine, or whoever holds the token.

A server on loopback is still reachable by every web page the person has open. So the ``Host`` header must name this
server (against DNS rebinding), an ``Origin`` must be its own (against cross-site requests), and answers carry a
content security policy that allows no script but the page's own file. Bound to anything but loopback, a token is
asked for as well: once in the address, from then on in a cookie that scripts cannot read.
"""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["LOOPBACK", "Guard"]

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
COOKIE: Final = "gambrel_token"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware that refuses foreign requests and adds the security headers.

    Args:
        app: what is guarded.
        hosts: host names (without port) that a request may address; empty lets every name pass, for servers bound to
            all addresses, which then need a token.
        token: what a request must show, or None on loopback.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = LOOPBACK, token: str | None = None) -> None:
        self.app, self.hosts, self.token = app, frozenset(hosts), token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, redirect or refuse one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._foreign(headers)
        if refusal:
            await JSONResponse({"error": refusal}, 403)(scope, receive, with_headers)
            return
        if self.token is not None and not self._known(headers):
            query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
            if not self._matches(query.pop("token", "")):
                text = "open the address with ?token=... that gambrel ui printed"
                await JSONResponse({"error": f"this page asks for a token: {text}"}, 401)(scope, receive, with_headers)
                return
            path = "/" + str(scope["path"]).lstrip("/")
            response = RedirectResponse(path + (f"?{urlencode(query)}" if query else ""), 303)
            response.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            await response(scope, receive, with_headers)
            return
        await self.app(scope, receive, with_headers)

    def _foreign(self, headers: Headers) -> str:
        """Why the request is not from this server's own page, or ""."""
        address = headers.get("host", "")
        try:
            name = urlsplit(f"//{address}").hostname or ""
        except ValueError:
            name = ""
        if self.hosts and name not in self.hosts:
            return f"the host {address[:80]!r} is not this server; it answers to {', '.join(sorted(self.hosts))}"
        origin = headers.get("origin")
        if origin is not None and origin not in {f"http://{address}", f"https://{address}"}:
            return f"requests from {origin[:80]!r} are refused; only the page itself may ask"
        return ""

    def _known(self, headers: Headers) -> bool:
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        return self._matches(bearer) or (cookie is not None and self._matches(cookie.value))

    def _matches(self, shown: str) -> bool:
        return self.token is not None and hmac.compare_digest(shown.encode("utf-8", "replace"), self.token.encode())
