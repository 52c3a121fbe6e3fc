"""A real S3 server (moto's) behind a proxy that breaks as networks and storage do."""

from __future__ import annotations

import contextlib
import http.client
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>'


@dataclass
class Store:
    """Serves one bucket, ``bucket``; what ``misbehave`` does with a request instead is up to a test.

    Attributes:
        misbehave: called with each request's handler; says True where it has answered itself.
        requests: method and path of each, in order.
        most_keys: of one page of a listing.
    """

    misbehave: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
    requests: list[str] = field(default_factory=list)
    most_keys: int | None = None

    def __enter__(self) -> Store:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        self._behind = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        self._behind.start()
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                store.requests.append(f"{self.command} {self.path}")
                self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with contextlib.suppress(ConnectionError):  # who asked has given up
                    if not store.misbehave(self):
                        store.answer(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self._ask("PUT", "/bucket")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._behind.stop()

    def clear(self) -> None:
        """As at its beginning."""
        self.misbehave, self.most_keys = lambda handler: False, None
        for key in self.keys():
            self._ask("DELETE", f"/bucket/{key}")
        self.requests.clear()

    def put(self, key: str, content: bytes) -> str:
        """Store an object; returns its address."""
        self._ask("PUT", f"/bucket/{key}", content)
        return f"s3://bucket/{key}"

    def put_folder(self, folder: Path, home: str) -> str:
        """Store all files of a folder; returns its address."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(f"{home}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return f"s3://bucket/{home}"

    def get(self, key: str) -> bytes:
        return self._ask("GET", f"/bucket/{key}")[1]

    def keys(self, prefix: str = "") -> list[str]:
        found = self._ask("GET", f"/bucket?list-type=2&prefix={prefix}")[1].decode()
        assert "<IsTruncated>false" in found, "more objects than a page"
        return re.findall("<Key>(.*?)</Key>", found)

    def _ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[Any, bytes]:
        host, port = self._behind.get_host_and_port()
        connection = http.client.HTTPConnection(host, port, timeout=30)
        try:
            path = path.replace(" ", "%20")
            signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request"}
            connection.request(method, path, body, {**signed, **(headers or {})})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    # What a handler can answer

    def answer(
        self, handler: Any, *, cut_after: int | None = None, reset: bool = False, wait: float = 0.0
    ) -> bool:
        """Send what the server has; break the connection after some bytes, or wait before each tenth."""
        path = handler.path
        if self.most_keys and "list-type=2" in path:
            path += f"&max-keys={self.most_keys}"
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "connection"}
        response, content = self._ask(handler.command, path, handler.body, headers)
        handler.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                handler.send_header(name, value)
        length = response.getheader("Content-Length") if handler.command == "HEAD" else str(len(content))
        handler.send_header("Content-Length", length or "0")
        handler.end_headers()
        if handler.command == "HEAD":
            return True
        if cut_after is not None:
            handler.wfile.write(content[:cut_after])
            handler.wfile.flush()
            if reset:  # RST instead of FIN
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            handler.connection.close()
            return True
        for start in range(0, len(content), max(len(content) // 10, 1)):
            time.sleep(wait)
            handler.wfile.write(content[start : start + max(len(content) // 10, 1)])
        return True

    def refuse(self, handler: Any, status: int, code: str, message: str = "as the test says") -> bool:
        """Answer with an error of S3."""
        content = b"" if handler.command == "HEAD" else ERROR.format(code=code, message=message).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/xml")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        return True


def times(number: int, fault: Callable[[Any], bool], *, of: str = "") -> Callable[[Any], bool]:
    """A fault that befalls the first requests whose method and path contain a text; the others are answered."""
    left = [number]

    def misbehave(handler: Any) -> bool:
        if left[0] > 0 and of in f"{handler.command} {handler.path}":
            left[0] -= 1
            return fault(handler)
        return False

    return misbehave


@contextlib.contextmanager
def credentials(monkeypatch: Any, store: Store) -> Iterator[None]:
    """The environment of a user of the store."""
    import fsspec

    for name, value in {
        "AWS_ENDPOINT_URL": store.address,
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "3",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    storage = fsspec.get_filesystem_class("s3")
    storage.clear_instance_cache()
    try:
        yield
    finally:
        storage.clear_instance_cache()
