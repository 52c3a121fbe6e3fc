"""A server on this machine that breaks as servers of the world do."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


@dataclass
class Web:
    """Serves ``files``; what ``misbehave`` does with a request instead is up to a test.

    Attributes:
        files: content by path, without the first slash.
        misbehave: called with each request's handler; says True where it has answered itself.
        ranges: whether parts of files can be asked for.
        requests: all handlers, in order.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    misbehave: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
    ranges: bool = True
    requests: list[BaseHTTPRequestHandler] = field(default_factory=list)

    def __enter__(self) -> Web:
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.requests.append(self)
                with contextlib.suppress(ConnectionError):  # who asked has given up
                    if not web.misbehave(self):
                        web.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(
        self, handler: BaseHTTPRequestHandler, *, cut_after: int | None = None, wait: float = 0.0
    ) -> bool:
        """Send the file; break the connection after some bytes of it, or wait before each tenth."""
        content = self.files.get(handler.path.lstrip("/"))
        if content is None:
            handler.send_error(404)
            return True
        start = 0
        if self.ranges and (asked := re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))):
            start = int(asked[1])
            if start >= len(content):
                handler.send_error(416)
                return True
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        rest = content[start:]
        handler.send_header("Content-Type", "application/octet-stream")
        handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        step = max(1, len(rest) // 10) if wait else len(rest)
        for i in range(0, len(rest[:cut_after]), step):
            time.sleep(wait)
            handler.wfile.write(rest[:cut_after][i : i + step])
        return True


@contextlib.contextmanager
def serving(*answers):
    """A server on this machine that gives each connection the next answer: bytes, None for silence; then 404."""
    waiting = list(answers)
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if not waiting:
                self.send_error(404)
                return
            answer = waiting.pop(0)
            if answer is None:
                over.wait(20)
                return
            self.send_response(200)
            self.end_headers()  # without a length: like a camera
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/live.ts"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
