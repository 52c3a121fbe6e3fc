"""``frameflex serve``: answers over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from frameflex.app.answers import Answers
from frameflex.app.decoding import TookTooLong
from frameflex.app.guarding import Guard
from frameflex.app.metrics import Metrics
from frameflex.app.openapi import openapi
from frameflex.app.uploads import Refused, Upload, deleted, receive, too_large
from frameflex.data.transforms import VIEWS
from frameflex.models.finite import NotFinite
from frameflex.printable import to_json
from frameflex.video import VideoError

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/healthz",)  # that need no token: who starts the container asks there
_MOST_ANSWERS = 1000


@dataclass(frozen=True)
class _Asked:
    num_frames: int
    top: int
    views: str


class _NamesAsJSON(JSONResponse):
    """What holds names of classes, which may be no Unicode."""

    def render(self, content: Any) -> bytes:
        return to_json(content).encode()


class Service:
    """The routes, and what they share.

    Args:
        answers: whose network answers.
        max_queue: requests at once; a further one is told to come again.
        timeout_seconds: for one request, from its first byte to its answer.
    """

    def __init__(self, answers: Answers, *, max_queue: int, timeout_seconds: float) -> None:
        self.answers, self.max_queue, self.timeout_seconds = answers, max_queue, timeout_seconds
        self.metrics = Metrics()
        self._folder: Path | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="frameflex-") as folder:
            self._folder = Path(folder)
            self.answers.start()
            try:
                yield
            finally:
                self.answers.close()

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        return PlainTextResponse(
            self.metrics.text(), headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def show_openapi(self, request: Request) -> Response:
        checkpoint = self.answers.recognizer.checkpoint
        return _NamesAsJSON(openapi(checkpoint, self.answers.limits, has_token=request.app.state.has_token))

    async def predict(self, request: Request) -> Response:
        start = time.perf_counter()
        answer: dict[str, Any]
        try:
            if self.metrics.in_progress >= self.max_queue:
                raise Refused(503, f"{self.max_queue} requests are being worked on; come again in a second")
            self.metrics.in_progress += 1
            try:
                answer, status = await self._in_time(self._predict(request)), 200
            finally:
                self.metrics.in_progress -= 1
        except Refused as refused:
            answer, status = {"error": refused.text}, refused.status
        except TookTooLong as error:
            answer, status = {"error": str(error)}, 504
        except (VideoError, NotFinite) as error:
            answer, status = {"error": str(error)}, 422
        except ClientDisconnect:
            answer, status = {"error": "the client went away"}, 499
        except Exception as error:
            logger.exception("a request failed")
            answer, status = {"error": f"{type(error).__name__}; the service's log says more"}, 500
        self.metrics.add_request("/predict", status, time.perf_counter() - start)
        return _NamesAsJSON(answer, status, {"retry-after": "1"} if status == 503 else None)

    async def _in_time(self, work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        try:
            return await asyncio.wait_for(work, self.timeout_seconds)
        except (TimeoutError, asyncio.TimeoutError):  # two kinds up to Python 3.10
            raise Refused(504, f"not answered within {self.timeout_seconds:g} s") from None

    async def _predict(self, request: Request) -> dict[str, Any]:
        asked = self._asked(request)
        assert self._folder is not None
        max_bytes = self.answers.limits.max_bytes
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > max_bytes:
            raise too_large(max_bytes)
        with deleted(Upload(self._folder, max_bytes=max_bytes)) as upload:
            await receive(request.stream(), upload)
            decoded = await self.answers.decode(upload.path, [asked.num_frames], views=asked.views)
        looked = await self.answers.look(decoded, asked.num_frames)
        self.metrics.add_look(looked.seconds, looked.batch_size)
        predictions = [vars(one) for one in self.answers.best(looked.probabilities, asked.top)]
        return {"predictions": predictions, "num_frames": asked.num_frames}

    def _asked(self, request: Request) -> _Asked:
        """The options of a request. Raises Refused."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("multipart/"):
            raise Refused(
                415, f"content-type is {kind}; expected the bytes alone: curl --data-binary @clip.mp4 …"
            )
        query = request.query_params
        unknown = sorted(set(query) - {"frames", "top", "views"})
        if unknown:
            raise Refused(400, f"unknown option {unknown[0]!r}; expected frames, top or views")
        checkpoint, limits = self.answers.recognizer.checkpoint, self.answers.limits
        views = query.get("views", "1x1")
        if views not in VIEWS:
            raise Refused(400, f"views is {views!r}; expected one of {', '.join(VIEWS)}")
        return _Asked(
            _number(query.get("frames"), "frames", checkpoint.num_frames, limits.max_frames),
            _number(query.get("top"), "top", 5, _MOST_ANSWERS),
            views,
        )


def make_service(
    answers: Answers, *, max_queue: int = 64, timeout_seconds: float = 60.0, token: str | None = None
) -> Guard:
    """The ASGI application of ``frameflex serve``.

    Args:
        answers: whose network answers; ended with the application.
        max_queue: as for `Service`.
        timeout_seconds: as for `Service`.
        token: that every request but to /healthz has to bring; with None only those to this machine's own names
            are answered.
    """
    service = Service(answers, max_queue=max_queue, timeout_seconds=timeout_seconds)
    app = Starlette(
        routes=[
            Route("/predict", service.predict, methods=["POST"]),
            Route("/healthz", service.healthz),
            Route("/metrics", service.show_metrics),
            Route("/openapi.json", service.show_openapi),
        ],
        lifespan=service.lifespan,
        exception_handlers={404: _not_found, 405: _not_found},
    )
    app.state.has_token = token is not None
    return Guard(app, local_only=token is None, token=token, open_paths=OPEN_PATHS)


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    text = f"{request.method} {request.url.path}: expected POST /predict, or GET /healthz, /metrics, /openapi.json"
    return JSONResponse({"error": text}, status)


def _number(text: str | None, name: str, default: int, most: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most):
        raise Refused(400, f"{name} is {text!r}; expected a whole number from 1 to {most}")
    return int(text)
