"""``frameflex app``: a page in the browser of this machine."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from frameflex.addresses import without_secrets
from frameflex.app.answers import Answers, UploadLimits
from frameflex.app.guarding import Guard
from frameflex.app.live import Watching, shift_of
from frameflex.app.talking import Talk
from frameflex.app.trying import Trying
from frameflex.deploy.recognizer import Recognizer

STATIC = Path(__file__).parent / "static"
PAGE_LIMITS = UploadLimits(
    max_bytes=2 * 2**30, max_video_seconds=None, max_pixels=8192 * 4320, max_frames=32, timeout_seconds=120.0
)


@dataclass
class Page:
    """What all tabs share.

    Attributes:
        name: of the network, for people.
        answers: of the network.
        sources: of live pictures, beside the browser's camera.
        folder: for uploads; deleted at the end.
    """

    name: str
    answers: Answers
    sources: Sequence[str] = ()
    folder: Path = Path()

    def hello(self) -> dict[str, Any]:
        """What a tab has to know."""
        checkpoint = self.answers.recognizer.checkpoint
        return {
            "type": "hello",
            "network": self.name,
            "classes": list(checkpoint.class_names),
            "frame_counts": list(checkpoint.frame_counts),
            "max_frames": self.answers.limits.max_frames,
            "max_bytes": self.answers.limits.max_bytes,
            "causal": shift_of(self.answers) == "causal",
            "sources": [without_secrets(source) for source in self.sources],
        }

    async def talk(self, socket: WebSocket) -> None:
        """A tab, from its opening to its closing."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            talk = Talk(socket, hello=self.hello)
            trying = Trying(talk, lambda: self.answers, Path(folder))
            await talk.run(trying.handlers(), on_bytes=trying.add_bytes, on_close=trying.close)

    async def live(self, socket: WebSocket) -> None:
        """A tab that watches."""
        talk = Talk(socket, hello=self.hello)
        watching = Watching(talk, lambda: self.answers, self.sources)
        await talk.run(watching.handlers(), on_bytes=watching.add_bytes, on_close=watching.close)


def make_page(
    recognizer: Recognizer, *, name: str, sources: Sequence[str] = (), num_processes: int = 2
) -> Guard:
    """The ASGI application of ``frameflex app``.

    Args:
        recognizer: whose network answers.
        name: of the network, for people.
        sources: of live pictures, beside the browser's camera.
        num_processes: that decode.
    """
    page = Page(name, Answers(recognizer, limits=PAGE_LIMITS, num_processes=num_processes), sources)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="frameflex-") as folder:
            page.folder = Path(folder)
            page.answers.start()
            try:
                yield
            finally:
                page.answers.close()

    async def index(request: Any) -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app = Starlette(
        routes=[
            Route("/", index),
            WebSocketRoute("/talk", page.talk),
            WebSocketRoute("/live", page.live),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        lifespan=lifespan,
    )
    return Guard(app, local_only=True)
