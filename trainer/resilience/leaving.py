"""How a rank ends by an error: it says why, and then closes what may block, for seconds only. Its
storage, engine or network may be the reason, and nobody who waits for it shall wait long."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from model.entry import EXIT_CRASH, run_entry
from trainer import records

_SECONDS = 8.0  # for closing; a store's lock is let go of within 5


@contextmanager
def hurry(code: int, words: Callable[[], str]) -> Iterator[None]:
    """Give the body some seconds. If they are over, say `words()`, if there are any, and end the
    process with `code`."""

    def end() -> None:
        if line := words():
            records.say(line)
        os._exit(code)

    timer = threading.Timer(_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def plain(error: BaseException) -> str:
    """The whole traceback as text, where no file takes it."""
    return "".join(traceback.format_exception(error)).rstrip()


def leave(function: Callable[[], Any]) -> NoReturn:
    """Call a function as `run_entry` does, and end this process at once. Threads that wait for a
    store that does not answer, and networks between ranks, would hold it up for minutes."""
    code: Any = EXIT_CRASH
    try:
        run_entry(function)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            records.say(end.code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a console that is gone
            stream.flush()
    os._exit(code)
