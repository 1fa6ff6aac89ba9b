"""A web server on this machine, with the habits of those that people read data sets from."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class WebServer:
    """files: what it serves, by path. ranges: whether it sends parts. login: the Authorization that
    it wants. faults: statuses that it answers with first, one a request; "cut" breaks a body off in
    its middle. asked: (path, Range, Authorization) of each request."""

    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    login: str | None = None
    moved: dict[str, str] = field(default_factory=dict)  # redirections
    faults: list[int | str] = field(default_factory=list)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        part, login = request.headers.get("Range"), request.headers.get("Authorization")
        self.asked.append((request.path, part, login))
        fault = self.faults.pop(0) if self.faults else None
        content = self.files.get(request.path.removeprefix("/"))
        if isinstance(fault, int):
            return self._send(request, fault, b"")
        if to := self.moved.get(request.path):
            return self._send(request, 302, b"", Location=to)
        if self.login and login != self.login:
            return self._send(request, 401 if login is None else 403, b"")
        if content is None:
            return self._send(request, 404, b"")
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}
        status, size = 200, len(content)
        if self.ranges and part:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", part).groups()  # type: ignore[union-attr]
            begin, end = int(first), min(size, int(last or size) + 1)
            if begin >= size:
                return self._send(request, 416, b"")
            status, content = 206, content[begin:end]
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        return self._send(request, status, content, fault == "cut", **headers)

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        cut: bool = False,
        **headers: str,
    ) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        with suppress(ConnectionError):  # who looks at the status alone hangs up
            request.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            request.close_connection = True


@contextmanager
def web_server() -> Iterator[WebServer]:
    """A running server, in threads of this process."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = WebServer(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
