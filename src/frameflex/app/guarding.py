"""Who may ask: no page of a stranger, no name that leads here by a trick, from elsewhere who has the token."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; media-src 'self' blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def is_local(host: str) -> bool:
    """Whether only this machine can reach what listens at a host."""
    return host in ("localhost", "::1") or host.startswith("127.")


class Guard:
    """Refuse requests before the application sees them.

    A page of a stranger, open in the same browser, may send requests here: its ``Origin`` tells. A stranger's name
    that was made to lead to 127.0.0.1 makes its page ours for the browser: the ``Host`` tells.

    Args:
        app: an ASGI application.
        local_only: the ``Host`` has to be one of this machine.
        token: without which nothing but the ``open_paths`` is answered; None for none.
        open_paths: that need no token.
    """

    def __init__(
        self, app: Any, *, local_only: bool, token: str | None = None, open_paths: Collection[str] = ()
    ) -> None:
        self.app, self.local_only, self.token = app, local_only, token
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope), scope["path"], is_socket=scope["type"] == "websocket")
        if refusal is not None:
            await self._refuse(scope, receive, send, *refusal)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in given),
                ]
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _refusal(self, headers: Mapping[str, str], path: str, *, is_socket: bool) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.local_only and _name_of(host) not in LOCAL_NAMES:
            return 421, f"host is {host!r}; expected localhost or 127.0.0.1"
        origin = headers.get("origin")
        if origin is None and is_socket:
            return 403, "a WebSocket without an Origin; expected that of this page"
        if origin is not None and (urlsplit(origin).netloc or origin).lower() != host.lower():
            return 403, f"origin is {origin!r}; pages of others may not ask here"
        if self.token is not None and path not in self.open_paths:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), self.token.encode()):
                return 401, "expected the header 'Authorization: Bearer TOKEN' with this service's token"
        return None

    async def _refuse(self, scope: Any, receive: Any, send: Any, status: int, text: str) -> None:
        if scope["type"] == "websocket":
            await receive()  # websocket.connect
            await send({"type": "websocket.close", "code": 1008, "reason": text[:120]})
            return
        headers = {"www-authenticate": "Bearer"} if status == 401 else {}
        await JSONResponse({"error": text}, status, headers)(scope, receive, send)


def _name_of(host: str) -> str:
    """Without the port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
