"""How every entry point ends. A user's mistake is one paragraph. An error that nobody foresaw is
one line that says where its trace lies, or the trace itself if ADDP_DEBUG=1 is set. Ctrl-C is one
line. This module imports no torch."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from model.errors import ADDPError

EXIT_CRASH = 1
EXIT_INTERRUPTED = 130
_LONGEST = 500  # characters of a message that was not written for people


def run_entry(function: Callable[[], Any]) -> NoReturn:
    """Call a function and exit, with the code that it returns (None is 0) or that its error has. A
    thread that dies meanwhile is reported in one line."""
    before, threading.excepthook = threading.excepthook, _thread_died
    try:
        code = function()
    except ADDPError as error:
        if debugging():
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = _interrupted()
    # The command-line library makes one of a Ctrl-C, and of a broken pipe.
    except SystemExit as end:
        if not _is_interrupt(end):
            raise
        code = _interrupted()
    except Exception as error:  # noqa: BLE001 - the last place that can say anything
        print(f"error: {unexpected(error, leave_trace(error))}", file=sys.stderr)
        code = EXIT_CRASH
    finally:
        threading.excepthook = before
    sys.exit(code)


def _thread_died(end: threading.ExceptHookArgs) -> None:
    if isinstance(error := end.exc_value, Exception):
        name = end.thread.name if end.thread is not None else "without a name"
        print(
            f"error: the thread {name} died: {unexpected(error, leave_trace(error))}",
            file=sys.stderr,
        )


def debugging() -> bool:
    """Whether the user asked for traces, with ADDP_DEBUG=1."""
    return os.environ.get("ADDP_DEBUG", "") not in ("", "0")


def unexpected(error: BaseException, trace: Path | None) -> str:
    """Say in one line what happened, and where its trace is. trace: from `leave_trace`."""
    first = (str(error).strip().splitlines() or ["no message"])[0][:_LONGEST]
    where = f"; the trace is in {trace} (ADDP_DEBUG=1 shows it here)" if trace else ""
    return f"unexpected {type(error).__name__}: {first}{where}"


def leave_trace(error: BaseException, wanted: Path | None = None) -> Path | None:
    """Write an error's trace to the file `wanted`, or else to a temporary one, and return its path.
    None if it went to standard error, since that was asked for or no file could be written."""
    text = "".join(traceback.format_exception(error))
    if not debugging():
        if wanted is not None:
            try:
                wanted.parent.mkdir(parents=True, exist_ok=True)
                wanted.write_text(text)
                return wanted
            except OSError:
                pass  # a full disk may be the very reason; the temporary files may lie elsewhere
        try:
            handle, name = tempfile.mkstemp(prefix="addp-trace-", suffix=".txt")
            with os.fdopen(handle, "w") as file:
                file.write(text)
            return Path(name)
        except OSError:
            pass
    print(text, file=sys.stderr)
    return None


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return EXIT_INTERRUPTED


def _is_interrupt(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
