"""Shows how far a long piece of work is: with a bar on a terminal, else (in a queue, a log) with a
plain line a minute."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType

import rich.progress as bars
from rich.console import Console

from model.errors import ConfigError

SECONDS = "ADDP_PROGRESS_SECONDS"  # between two lines where there is no terminal
_FIRST = 5.0  # seconds until the first line; shorter work prints none


class Progress:
    """A context manager around the work; any thread may call its methods.

    title: what is done, such as "tokenizing". total: how much there is in all, in `unit`s; None if
    nobody knows. done: how much is there at the start. console: standard error if None. shown:
    False on ranks that stay silent. Raises ConfigError if ADDP_PROGRESS_SECONDS of the environment
    is no number of seconds.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        console: Console | None = None,
        shown: bool = True,
    ) -> None:
        self.console = console or Console(stderr=True)
        self._every = _seconds()
        self._title, self._total, self._unit, self._first = title, total, unit, done
        self._done, self._note = done, ""
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._on_terminal = shown and self.console.is_terminal
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[text]}", markup=False),
            bars.TimeElapsedColumn(),
            bars.TextColumn("ETA"),
            bars.TimeRemainingColumn(),
            console=self.console,
            disable=not self._on_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, text=unit)
        self._plain = shown and not self._on_terminal
        self._lines = threading.Thread(target=self._say_now_and_then, name="progress", daemon=True)
        self._said = False

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        self._bar.start()
        if self._plain:
            self._lines.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._ended.set()
        if self._plain:
            self._lines.join()
            if self._said:
                self._say("stopped after" if kind else "in")

    def advance(self, by: int = 1) -> None:
        with self._lock:
            self._set(self._done + by)

    def set(self, done: int) -> None:
        with self._lock:
            self._set(done)

    def note(self, text: str) -> None:
        """Show a text behind the numbers from now on, such as "3 quarantined"."""
        with self._lock:
            self._note = text
            self._set(self._done)

    def _set(self, done: int) -> None:
        self._done = done
        if self._on_terminal:
            text = f"{self._unit}  {self._rate():.1f}/s" + (f"  {self._note}" if self._note else "")
            self._bar.update(self._task, completed=done, text=text)

    def _rate(self) -> float:
        return (self._done - self._first) / max(time.monotonic() - self._began, 1e-3)

    def _say_now_and_then(self) -> None:
        wait = min(_FIRST, self._every)
        while not self._ended.wait(wait):
            self._say()
            self._said, wait = True, self._every

    def _say(self, ending: str = "") -> None:
        with self._lock:
            done, rate, note = self._done, self._rate(), self._note
        count = (
            f"{done:,} of {self._total:,} {self._unit}"
            if self._total is not None
            else f"{done:,} {self._unit}"
        )
        if self._total:
            count += f" ({done / self._total:.0%})"
        parts = [
            f"{count} {ending} {_duration(time.monotonic() - self._began)}" if ending else count
        ]
        if done > self._first:
            parts.append(f"{rate:.1f}/s")
            if not ending and self._total is not None:
                parts.append(f"ETA {_duration((self._total - done) / rate)}")
        line = ", ".join([*parts, *([note] if note else [])])
        self.console.print(f"{self._title}: {line}", highlight=False, markup=False, soft_wrap=True)


def _seconds() -> float:
    text = os.environ.get(SECONDS, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(
            f"{SECONDS}={text} is no number of seconds; write one above 0, as {SECONDS}=60"
        )
    return seconds


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
