"""Messages between a tab and this process, over a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from frameflex.app.uploads import Refused
from frameflex.printable import to_json
from frameflex.video import VideoError

logger = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[None]]

# What belongs to whom asked wrongly; the message is for people.
TOLD = (Refused, VideoError, ValueError, FileNotFoundError)


class TabClosed(Exception):
    """Nobody listens any more; what was begun for the tab ends."""


class Talk:
    """One tab's messages: JSON objects with a ``type``, and bytes.

    Args:
        socket: as Starlette gives it.
        hello: the first message.
    """

    def __init__(self, socket: WebSocket, *, hello: Callable[[], dict[str, Any]]) -> None:
        self._socket, self._hello = socket, hello
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; to a tab that was closed meanwhile nothing."""
        async with self._sending:
            try:
                await self._socket.send_text(to_json(message))
            except (WebSocketDisconnect, RuntimeError):  # Starlette's of a socket that is closed
                raise TabClosed from None

    async def run(
        self,
        handlers: Mapping[str, Handler],
        *,
        on_bytes: Callable[[bytes], None],
        on_close: Callable[[], None],
    ) -> None:
        """Talk until the tab is closed.

        Args:
            handlers: by the type of message. Each runs beside the others.
            on_bytes: for messages of bytes.
            on_close: at the end, whatever it is.
        """
        try:
            await self._socket.accept()
            await self.send(self._hello())
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                if message.get("bytes") is not None:
                    on_bytes(message["bytes"])
                else:
                    await self._dispatch(message.get("text") or "", handlers)
        except TabClosed:
            pass  # it went while something was said to it
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            on_close()

    def begin(self, work: Awaitable[None], asked: Mapping[str, Any]) -> asyncio.Task[None]:
        """Let work run beside the talk; its errors are said to the tab.

        Args:
            work: to run.
            asked: the message that asked for it.
        """
        task = asyncio.ensure_future(self._told(work, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _dispatch(self, text: str, handlers: Mapping[str, Handler]) -> None:
        try:
            message = json.loads(text)
            handler = handlers[message["type"]]
        except (ValueError, KeyError, TypeError):
            await self.send({"type": "error", "about": "talk", "text": "a message that can't be understood"})
            return
        self.begin(handler(message), message)
        await asyncio.sleep(0)  # handlers begin in the order of their messages

    async def _told(self, work: Awaitable[None], asked: Mapping[str, Any]) -> None:
        with contextlib.suppress(TabClosed):
            try:
                await work
            except TabClosed:
                raise
            except Exception as error:
                await self.send({"type": "error", **_about(asked), "text": _words_of(error)})


def _about(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {"about": asked.get("type"), "video": asked.get("video"), "name": asked.get("name")}


def _words_of(error: Exception) -> str:
    """For people; what nobody expected goes to the log, too."""
    if isinstance(error, TOLD):
        return str(error)
    logger.error("a tab's wish failed", exc_info=error)
    if isinstance(error, KeyError | TypeError):
        return "a message that can't be understood"
    return f"{type(error).__name__}: {error}; what frameflex app printed says more"


def number_of(message: Mapping[str, Any], name: str, low: float, high: float) -> float:
    """A number of a message, within bounds. Raises ValueError."""
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name.replace('_', ' ')} is {value!r}; expected {low:g} to {high:g}")
    return value


def whole_number_of(message: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """A whole number of a message, within bounds. Raises ValueError."""
    value = number_of(message, name, low, high)
    if value != int(value):
        raise ValueError(f"{name.replace('_', ' ')} is {value!r}; expected a whole number")
    return int(value)
