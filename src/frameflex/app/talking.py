"""Messages between a tab and this process, over a WebSocket."""

from __future__ import annotations

import asyncio
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


class TabClosed(asyncio.CancelledError):
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
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and getattr(task, "cancelling", lambda: 0)():
                raise
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
        error: dict[str, Any] = {"type": "error", "about": asked.get("type"), "video": asked.get("video")}
        error["name"] = asked.get("name")  # of the file that it is about
        try:
            await work
        except TOLD as told:
            await self.send({**error, "text": str(told)})
        except (KeyError, TypeError):
            logger.exception("a message lacks something")
            await self.send({**error, "text": "a message that can't be understood"})
        except Exception as unexpected:
            logger.exception("a tab's wish failed")
            text = f"{type(unexpected).__name__}: {unexpected}; what frameflex app printed says more"
            await self.send({**error, "text": text})


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
