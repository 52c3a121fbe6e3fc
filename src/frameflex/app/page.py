"""``frameflex app``: a page in the browser of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
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
from frameflex.app.lessons import Lessons
from frameflex.app.live import Watching, shift_of
from frameflex.app.talking import TabClosed, Talk
from frameflex.app.teaching import Class, Teaching
from frameflex.app.training import Training
from frameflex.app.trying import Trying
from frameflex.app.uploads import Receiver
from frameflex.deploy.recognizer import Recognizer
from frameflex.export.running import ExportedModel

_PATIENCE_SECONDS = 5.0  # with a tab that takes no message
_REPORT_SECONDS = 1.0  # between two looks at a training
STATIC = Path(__file__).parent / "static"
PAGE_LIMITS = UploadLimits(
    max_bytes=2 * 2**30, max_video_seconds=None, max_pixels=8192 * 4320, max_frames=32, timeout_seconds=120.0
)


@dataclass(frozen=True)
class Folders:
    """What the page may read and write, and nothing beside it.

    Attributes:
        lessons: a folder for each class that is taught.
        runs: where trainings write.
    """

    lessons: Path
    runs: Path


class Page:
    """What all tabs share.

    Args:
        recognizer: whose network answers.
        name: where the network is, for people, and for trainings that start from it.
        sources: of live pictures, beside the browser's camera.
        folders: of what is taught.
        num_processes: that decode.
    """

    def __init__(
        self, recognizer: Recognizer, name: str, sources: Sequence[str], folders: Folders, num_processes: int
    ) -> None:
        self.name, self.sources = name, sources
        # An export's own says nothing of the networks that may follow it.
        exported = isinstance(recognizer.model, ExportedModel)
        self._precision = None if exported else recognizer.precision
        self.answers = Answers(recognizer, limits=PAGE_LIMITS, num_processes=num_processes)
        self.shared = Class(
            Lessons(folders.lessons), Training(folders.lessons, folders.runs), self.use, self.tell_all
        )
        self._uploads = Path()
        self._talks: set[Talk] = set()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="frameflex-") as folder:
            self._uploads = Path(folder)
            self.answers.start()
            reporting = asyncio.create_task(self._report())
            try:
                yield
            finally:
                reporting.cancel()
                await asyncio.to_thread(self.shared.training.close)
                self.answers.close()

    async def _report(self) -> None:
        """Say how a training goes, while it does."""
        told = False
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            running = self.shared.training.running
            if running or told:
                await self.tell_all(await asyncio.to_thread(self.shared.training.report))
            told = running  # once more after its end

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

    async def tell_all(self, message: Mapping[str, Any]) -> None:
        """Say something to every tab; one that is being closed, or doesn't listen, misses it."""
        for talk in list(self._talks):
            with contextlib.suppress(TabClosed, TimeoutError, asyncio.TimeoutError):  # two kinds up to 3.10
                await asyncio.wait_for(talk.send(message), _PATIENCE_SECONDS)

    async def use(self, path: Path) -> None:
        """Take another network, in all tabs."""
        now = self.answers.recognizer
        recognizer = await asyncio.to_thread(
            Recognizer.from_checkpoint, path, device=now.device, precision=self._precision
        )
        await self.answers.change(recognizer)
        self.name = str(path)
        await self.tell_all(self.hello())

    def starting_options(self) -> list[str]:
        """Of ``frameflex train``, to start from the network of now."""
        checkpoint = self.answers.recognizer.checkpoint
        if isinstance(checkpoint.model, ExportedModel):
            return []  # from ImageNet's weights: a graph can't be trained
        options = ["--model.init", self.name]
        if checkpoint.model.frame_counts:
            options += ["--method", "ffn", "--clip.frame_counts", str(list(checkpoint.frame_counts))]
        return options

    async def talk(self, socket: WebSocket) -> None:
        """A tab, from its opening to its closing."""
        with tempfile.TemporaryDirectory(dir=self._uploads) as folder:
            talk = Talk(socket, hello=self.hello)
            receiver = Receiver(Path(folder), max_bytes=lambda: self.answers.limits.max_bytes)
            trying = Trying(talk, lambda: self.answers, receiver)
            teaching = Teaching(talk, lambda: self.answers, self.shared, receiver, self.starting_options)

            async def begin_upload(message: dict[str, Any]) -> None:
                receiver.begin()

            def close() -> None:
                self._talks.discard(talk)
                receiver.close()
                trying.close()
                teaching.close()

            self._talks.add(talk)
            handlers = {"upload": begin_upload, **trying.handlers(), **teaching.handlers()}
            await talk.run(handlers, on_bytes=receiver.add, on_close=close)

    async def live(self, socket: WebSocket) -> None:
        """A tab that watches."""
        talk = Talk(socket, hello=self.hello)
        watching = Watching(talk, lambda: self.answers, self.sources)
        await talk.run(watching.handlers(), on_bytes=watching.add_bytes, on_close=watching.close)


def make_page(
    recognizer: Recognizer,
    *,
    name: str,
    folders: Folders,
    sources: Sequence[str] = (),
    num_processes: int = 2,
) -> Guard:
    """The ASGI application of ``frameflex app``; arguments as for `Page`."""
    page = Page(recognizer, name, sources, folders, num_processes)

    async def index(request: Any) -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app = Starlette(
        routes=[
            Route("/", index),
            WebSocketRoute("/talk", page.talk),
            WebSocketRoute("/live", page.live),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        lifespan=page.lifespan,
    )
    return Guard(app, local_only=True)
