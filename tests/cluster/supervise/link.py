"""A link between a node and the coordinator that can be cut: bytes stop, and no side is told."""

from __future__ import annotations

import selectors
import socket
import threading
from typing import Self


class Link:
    """Passes what comes to `port` on to another port of this machine. A context."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._open, self._ended = threading.Event(), False
        self._open.set()

    def cut(self) -> None:
        self._open.clear()

    def restore(self) -> None:
        self._open.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._pass_on, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._open.set()

    def _pass_on(self) -> None:
        while not self._ended:
            self._open.wait()
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._connect()
                else:
                    self._pass(key.fileobj)  # type: ignore[arg-type]
        for end in (self._listener, *self._pairs):
            end.close()

    def _connect(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._to), 5)
        except OSError:
            near.close()
            return
        for end, other in ((near, far), (far, near)):
            self._pairs[end] = other
            self._selector.register(end, selectors.EVENT_READ)

    def _pass(self, end: socket.socket) -> None:
        if end not in self._pairs:  # it was closed together with its other end
            return
        try:
            content = end.recv(1 << 16)
            if content:
                self._pairs[end].sendall(content)
                return
        except OSError:
            pass
        other = self._pairs.pop(end)
        self._pairs.pop(other, None)
        for each in (end, other):
            self._selector.unregister(each)
            each.close()
