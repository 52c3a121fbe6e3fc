"""Run an application until it is stopped."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

_PACKAGES = ("starlette", "uvicorn", "websockets")
_GRACE_SECONDS = 5  # for requests that are being answered when the server is stopped


def needed() -> None:
    """Say which extra is missing. Raises ValueError."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} can't be imported; install it with: pip install 'frameflex[app]'"
        )


def run_server(app: Any, *, host: str, port: int, on_start: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, which are raised again afterwards.

    Args:
        app: an ASGI application.
        host: address to listen at.
        port: 0 for a free one.
        on_start: told the address, once it can be asked.

    Raises:
        ValueError: if the address can't be listened at.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                on_start(address)

    listening = _listen(host, port)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        app,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=4 * 2**20,  # files come in pieces of a fourth of it
        timeout_graceful_shutdown=_GRACE_SECONDS,
        log_config=None,
    )
    with listening:
        Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
    except OSError as error:
        raise ValueError(
            f"can't listen at {host}:{port} ({error.strerror or error}); choose another --port, or --port 0 for a "
            "free one"
        ) from error
    return listening
