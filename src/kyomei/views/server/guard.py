"""What every request has to pass before it is answered, and what every answer carries."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import final
from urllib.parse import urlsplit

from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kyomei.views.server.answers import refusal
from kyomei.views.server.explorer import Options

MOST_BYTES = 1_000_000
"""Of a request's body."""
MOST_AT_ONCE = 512
"""Requests in work."""
BODY_SECONDS = 20.0
SESSION_SECONDS = 12 * 3600.0
MOST_SESSIONS = 1000
RATES = {"/api/login": (5, 0.2), "/api/labels": (100, 10.0), "/api/": (40, 4.0)}
"""By the beginning of an address: how many POST requests of one client at once, and how many a second after that."""
PUBLIC = ("/api/login", "/api/strings")
"""What is answered without a token; pages too, which hold no data."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@final
class Sessions:
    """Browsers that have shown the token. A session's name says nothing of the token.

    Args:
        token: none: nobody has to show anything.
        port: browsers keep cookies by host alone, so its name has the port in it.
    """

    def __init__(self, token: str | None, port: int) -> None:
        self._token, self.cookie = token, f"kyomei-{port}"
        self._open: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def are_needed(self) -> bool:
        return self._token is not None

    def begin(self, token: str) -> str | None:
        """The name of a new session, if that is the token; compared in constant time."""
        if self._token is None or not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        name = secrets.token_urlsafe(32)
        with self._lock:
            self._open[name] = time.monotonic() + SESSION_SECONDS
            while len(self._open) > MOST_SESSIONS:
                self._open.popitem(last=False)
        return name

    def known(self, name: str | None) -> bool:
        """Whether there is such a session."""
        if not self.are_needed:
            return True
        with self._lock:
            return name is not None and self._open.get(name, 0.0) > time.monotonic()


@final
class Rates:
    """Token buckets, one for each client and kind of request; the least recently used are forgotten."""

    def __init__(self, most_clients: int = 2000) -> None:
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()
        self._most = most_clients

    def allows(self, client: str, path: str, now: float | None = None) -> bool:
        """Whether one more request may come now."""
        now = time.monotonic() if now is None else now
        kind = next(beginning for beginning in RATES if path.startswith(beginning))
        burst, a_second = RATES[kind]
        left, at = self._buckets.pop((client, kind), (float(burst), now))
        left = min(burst, left + (now - at) * a_second)
        self._buckets[client, kind] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return left >= 1


@final
class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: what it guards.
        options: how it is served.
        sessions: who has shown the token.
    """

    def __init__(self, app: ASGIApp, options: Options, sessions: Sessions) -> None:
        self._app, self._sessions = app, sessions
        self._hosts = allowed_hosts(options)
        self._any_address = not options.is_loopback
        self._rates, self._at_once = Rates(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # nothing here speaks over sockets
        guarded = _with_headers(send, is_data=scope["path"].startswith("/api/"))
        refused = self._refusal(scope)
        if refused is None and self._at_once >= MOST_AT_ONCE:
            refused = refusal(503, f"at most {MOST_AT_ONCE} requests at once", "more", "try again", {"retry-after": "1"})
        if refused is None and scope["method"] == "POST":
            body = await _body(receive)
            if isinstance(body, Response):
                refused = body
            else:
                receive = _replayed(body, receive)
        if refused is not None:
            await refused(scope, receive, guarded)
            return
        self._at_once += 1
        try:
            await self._app(scope, receive, guarded)
        finally:
            self._at_once -= 1

    def _refusal(self, scope: Scope) -> Response | None:
        """Why a request is not answered, from its first lines alone; none if it is."""
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        host = headers.get("host", "")
        if not self._is_ours(host):
            return refusal(421, "a request for this server", "another Host", "open the address that the terminal shows")
        if method not in ("GET", "HEAD", "POST"):
            return refusal(405, "GET or POST", "another method", "see the documentation", {"allow": "GET, HEAD, POST"})
        if method == "POST":
            refused = self._refusal_of_change(headers, host, path, scope.get("client"))
            if refused is not None:
                return refused
        if path.startswith("/api/") and path not in PUBLIC:
            cookie = cookie_parser(headers.get("cookie", "")).get(self._sessions.cookie)
            if not self._sessions.known(cookie):
                return refusal(401, "a session of this explorer", "none", "enter the token that the terminal shows")
        return None

    def _refusal_of_change(self, headers: Headers, host: str, path: str, client: tuple[str, int] | None) -> Response | None:
        if not path.startswith("/api/"):
            return refusal(405, "GET", "POST", "see the documentation", {"allow": "GET, HEAD"})
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return refusal(403, "a request from this explorer's own pages", "another Origin", "use the explorer's pages")
        if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return refusal(415, "application/json", "another content type", "send JSON")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length[:20]) > MOST_BYTES:
            return _too_large()
        if not self._rates.allows(client[0] if client else "", path):
            return refusal(429, "fewer requests", "too many in a short time", "wait a moment", {"retry-after": "2"})
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server: another name may point here, and its page would be let in."""
        name = host_name(host)
        if name in self._hosts:
            return True
        # A page is bound to the name in its address, so that no name can stand for an address that a browser was given as such.
        return self._any_address and _is_address(name)


def allowed_hosts(options: Options) -> frozenset[str]:
    """Names that a browser may call this server by, in lower case."""
    names = {"localhost", "127.0.0.1", "::1", options.host.lower(), *(name.lower() for name in options.hosts)}
    if not options.is_loopback:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return frozenset(names)


def host_name(host: str) -> str:
    """A Host header without its port, in lower case; empty if it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower() if host == host.strip() and "@" not in host else ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _too_large() -> Response:
    found = "a larger or an unmeasured one"
    headers = {"connection": "close"}
    return refusal(413, f"a body of at most {MOST_BYTES:,} bytes", found, "send less at once", headers)


async def _body(receive: Receive) -> bytes | Response:
    """The whole body of a request, or why it is not read to its end."""
    parts: list[bytes] = []
    size = 0
    until = time.monotonic() + BODY_SECONDS
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError:
            return refusal(408, f"a body within {BODY_SECONDS:g} seconds", "a slower one", "send it again")
        if message["type"] != "http.request":
            return refusal(400, "a whole body", "a client that left", "send it again")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            return _too_large()
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What the application receives instead of what has been read."""
    waiting: Iterable[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        for message in waiting:
            return message
        return await receive()

    return again


def _with_headers(send: Send, *, is_data: bool) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if is_data:
                headers["cache-control"] = "no-store"
        await send(message)

    return guarded
