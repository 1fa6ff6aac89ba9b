"""What ranks and supervisors print. Nothing here makes a rank or a supervisor wait: a log on a lost
mount, or a console that nobody reads any more, costs lines and never time.

    rank's pipe --event loop--> queue --thread--> RUN/logs/HOST/rank-N.log
                           \\--> queue --thread--> our standard error
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from contextlib import suppress
from pathlib import Path

_MOST_WAITING = 2000  # pieces in a queue; each has 64 KiB at most
_LONGEST_LINE = 64 << 10  # bytes that wait for the end of their line
_CONSOLE = 2
_MOST_LEFT = 256  # pieces that are taken of a pipe which is closed: somebody may go on writing


class _Sink:
    """Writes pieces in a thread of its own, and leaves out what comes while it cannot."""

    def __init__(self, name: str) -> None:
        self._queue: queue.Queue[tuple[Path | None, bytes]] = queue.Queue(_MOST_WAITING)
        threading.Thread(target=self._write_all, daemon=True, name=name).start()

    def put(self, file: Path | None, content: bytes) -> None:
        """Write to a file, or to the console."""
        with suppress(queue.Full):
            self._queue.put_nowait((file, content))

    def drain(self, seconds: float) -> None:
        """Wait until all is written, for so long at most."""
        deadline = time.monotonic() + seconds
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _write_all(self) -> None:
        while True:
            file, content = self._queue.get()
            with suppress(OSError):
                _write(file, content)
            self._queue.task_done()


def _write(file: Path | None, content: bytes) -> None:
    """Raises OSError."""
    handle = _CONSOLE
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while content:
            content = content[os.write(handle, content) :]
    finally:
        if file is not None:
            os.close(handle)


class Output:
    """The console of this process, and the logs of its ranks."""

    def __init__(self) -> None:
        self._console, self._logs = _Sink("console"), _Sink("logs")

    def say(self, line: str) -> None:
        """Print a line for the person at the console."""
        self._console.put(None, f"{line}\n".encode(errors="backslashreplace"))

    def rank(self, log: Path) -> RankOutput:
        """Return where a rank's output goes. log: its file."""
        return RankOutput(self._console, self._logs, log)

    def drain(self, seconds: float) -> None:
        """Wait until all is written, for so long at most."""
        self._console.drain(seconds)
        self._logs.drain(seconds)


class RankOutput:
    """Takes over the output of a rank. Lines reach the console whole."""

    def __init__(self, console: _Sink, logs: _Sink, log: Path) -> None:
        self._console, self._logs, self._log = console, logs, log
        self._line = b""
        self._pipe: int | None = None

    def note(self, line: str) -> None:
        """Add a line of our own to the log."""
        self._logs.put(self._log, f"{line}\n".encode(errors="backslashreplace"))

    def follow(self, pipe: int) -> None:
        """Read a pipe until it ends. It becomes ours."""
        os.set_blocking(pipe, False)
        self._pipe = pipe
        asyncio.get_running_loop().add_reader(pipe, self._read)

    def close(self) -> None:
        """Take what is left in the pipe, and close it. Children of the rank may still hold it."""
        for _ in range(_MOST_LEFT):
            if self._pipe is None or not self._read():
                break
        self._close()

    def _read(self) -> bool:
        """Take a piece. Returns whether there was one."""
        assert self._pipe is not None
        try:
            piece = os.read(self._pipe, 1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            piece = b""
        if not piece:
            self._close()
            return False
        self._logs.put(self._log, piece)
        lines, end, rest = (self._line + piece).rpartition(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, end, rest = lines + end + rest, b"\n", b""
        if lines + end:
            self._console.put(None, lines + end)
        self._line = rest
        return True

    def _close(self) -> None:
        if self._pipe is None:
            return
        asyncio.get_running_loop().remove_reader(self._pipe)
        os.close(self._pipe)
        self._pipe = None
        if self._line:
            self._console.put(None, self._line + b"\n")
            self._line = b""
