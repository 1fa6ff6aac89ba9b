"""Where the ranks of this node are: the stacks of all their threads, within seconds.

py-spy reads them from outside, also of a process that is stopped or never comes back from C. Where
it may not attach (a container without the right, another user), the rank writes them itself: it
registers faulthandler at SIGUSR2, for RUN/stacks/rank-N.txt.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from model.documents import Count, Record, printable, read_file
from model.errors import DataError
from model.processes import state_of
from trainer.run_folder import RunFolder

SECONDS = 5.0  # for all stacks of a node
# What is kept of a process, so that as JSON it is shorter than 256 KiB. Of the main thread, more
# frames are kept.
_MOST_THREADS, _MOST_FRAMES, _MOST_OTHERS = 32, 100, 30
_LONGEST_FUNCTION, _LONGEST_FILE = 60, 100
_LARGEST_DUMP = 8 << 20  # bytes that py-spy or faulthandler may say of one process
_PAUSE = 0.02  # seconds between two looks at a file that is being written
_SETTLED = 0.2  # seconds without growth after which it is complete
_SILENT = 2.0  # seconds after which a rank that was asked will not answer
_ROOT = Path(__file__).parents[2]  # of our own packages

Source = Literal["py-spy", "faulthandler", "none"]


class Frame(Record):
    """file: as short as it is still clear: trainer/loop.py, torch/..., lib/python3.11/queue.py."""

    function: str
    file: str
    line: int


class Thread(Record):
    """frames: the innermost first. name: None where it is not known."""

    name: str | None
    main: bool
    frames: tuple[Frame, ...]


class RankStack(Record):
    """Where a rank is.

    source: who has said it. state: of its process, a letter as in /proc: T is stopped, D waits for
    its disk, "" is gone. note: why there are no threads, where there are none.
    """

    rank: Count
    pid: Count
    source: Source
    state: str = ""
    note: str = ""
    threads: tuple[Thread, ...] = ()


def collect(
    pids: Mapping[int, int], folder: RunFolder, seconds: float = SECONDS
) -> list[RankStack]:
    """Return the stacks of processes of this node. pids: by rank.

    It returns within `seconds`, whatever the processes and the storage do, and raises nothing.
    """
    deadline = time.monotonic() + seconds
    found: dict[int, RankStack] = {}

    def look(rank: int, pid: int) -> None:
        found[rank] = _stack(rank, pid, folder, deadline)

    # Threads that nobody waits for at the exit: a file on a lost mount may hold them for ever.
    threads = [
        threading.Thread(target=look, args=pair, name=f"stacks-{pair[0]}", daemon=True)
        for pair in sorted(pids.items())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [
        found.get(rank)
        or RankStack(
            rank=rank, pid=pid, source="none", state=state_of(pid), note="no answer in time"
        )
        for rank, pid in sorted(pids.items())
    ]


def _stack(rank: int, pid: int, folder: RunFolder, deadline: float) -> RankStack:
    state = state_of(pid)
    if state in ("", "Z"):
        return RankStack(rank=rank, pid=pid, source="none", note="the process is gone")
    threads, note = _by_py_spy(pid, state, deadline)
    if threads:
        return RankStack(rank=rank, pid=pid, source="py-spy", state=state, threads=threads)
    threads, own_note = _by_faulthandler(pid, state, folder.stack(rank), deadline)
    if threads:
        return RankStack(rank=rank, pid=pid, source="faulthandler", state=state, threads=threads)
    note = printable(f"{note}; {own_note}")
    return RankStack(rank=rank, pid=pid, source="none", state=state, note=note)


# py-spy.


def _by_py_spy(pid: int, state: str, deadline: float) -> tuple[tuple[Thread, ...], str]:
    """Return the threads, and why there are none.

    A process is paused while it is read, so that what is read fits together. One that does not run
    cannot be paused, and need not be.
    """
    program = _py_spy()
    if program is None:
        return (), "py-spy is not installed"
    note = ""
    for options in ((), ("--nonblocking",)) if state in "RS" else (("--nonblocking",),):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        # The last way, faulthandler, shall have time left.
        output, note = _run([program, "dump", "--json", *options, "--pid", str(pid)], left * 0.45)
        try:
            return _of_py_spy(json.loads(output), pid), ""
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            note = note or f"py-spy says what cannot be read ({type(error).__name__})"
    return (), note or "py-spy has no time left"


def _py_spy() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")


def _run(command: list[str], seconds: float) -> tuple[bytes, str]:
    """Return what a command prints, and its first line of complaint."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return b"", f"py-spy cannot be started: {error.strerror or error}"
    try:
        output, complaint = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # and nobody waits for it: it may hang in the kernel as its subject does
        return b"", "py-spy does not come to an end"
    lines = [line.strip() for line in complaint.decode(errors="replace").splitlines()]
    said = next((line for line in lines if line), "")
    return output[:_LARGEST_DUMP], said if process.returncode else ""


def _of_py_spy(document: Any, pid: int) -> tuple[Thread, ...]:
    """Read the output of `py-spy dump --json`. Raises KeyError, TypeError, AttributeError and
    ValueError for what is none."""
    threads = [
        _thread(
            name=thread["thread_name"],
            main=thread["os_thread_id"] == pid or thread["thread_name"] == "MainThread",
            frames=[(f["name"], f["filename"], f["line"]) for f in thread["frames"]],
        )
        for thread in document
    ]
    if not threads:
        raise ValueError("no thread")
    return _bounded(threads)


# faulthandler.


def _by_faulthandler(
    pid: int, state: str, file: Path, deadline: float
) -> tuple[tuple[Thread, ...], str]:
    """Ask the rank itself for its threads. Returns them, and why there are none."""
    if state in "Tt":
        return (), "it is stopped and cannot answer"
    if not _takes_signal(pid):
        return (), "it has not registered faulthandler yet"
    before = _size(file)
    try:
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGUSR2)
        finally:
            os.close(handle)
    except OSError as error:
        return (), f"it cannot be signalled: {error.strerror or error}"
    size, grown = before, time.monotonic()
    deadline = min(deadline, grown + _SILENT) - _PAUSE
    while (now := time.monotonic()) < deadline:
        if (latest := _size(file)) != size:
            size, grown = latest, now
        elif size > before and now - grown > _SETTLED:
            break
        time.sleep(_PAUSE)
    try:
        content = read_file(file, _LARGEST_DUMP, DataError)[before:]
    except (FileNotFoundError, DataError) as error:
        return (), f"its own stacks cannot be read: {error}"
    threads = of_faulthandler(content.decode(errors="replace"))
    return threads, "" if threads else "it does not answer SIGUSR2"


def _takes_signal(pid: int) -> bool:
    """Whether the process handles SIGUSR2, which would end it otherwise."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGUSR2 - 1) & 1)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


_HEAD = re.compile(r"^(Current thread|Thread) 0x[0-9a-f]+(?: \[(.*?)\])? .*first\):$")
_LINE = re.compile(r'^  File "(.*)", line (\d{1,9}|\?\?\?) in (.*)$')


def of_faulthandler(text: str) -> tuple[Thread, ...]:
    """Read what faulthandler writes of all threads.

    A signal comes to the main thread, which is then the current one. Where that cannot be told, the
    main thread is the last: Python lists the newest first.
    """
    found: list[tuple[str | None, bool, list[tuple[str, str, int]]]] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            found.append((head[2], head[1] != "Thread", []))
        elif found and (frame := _LINE.match(line)):
            number = int(frame[2]) if frame[2].isdigit() else 0
            found[-1][2].append((frame[3], frame[1], number))
    if found and not any(current for _, current, _ in found):
        name, _, frames = found[-1]
        found[-1] = name, True, frames
    return _bounded([_thread(name=n, main=current, frames=frames) for n, current, frames in found])


# Both.


def _thread(*, name: Any, main: bool, frames: list[tuple[str, str, int]]) -> Thread:
    return Thread(
        name=None if name is None else _clean(str(name), _LONGEST_FUNCTION),
        main=main,
        frames=tuple(
            Frame(
                function=_clean(str(function).rpartition(".")[2], _LONGEST_FUNCTION),
                file=_clean(_short(str(file)), _LONGEST_FILE),
                line=max(0, int(line)),
            )
            for function, file, line in frames[: _MOST_FRAMES if main else _MOST_OTHERS]
        ),
    )


def _bounded(threads: list[Thread]) -> tuple[Thread, ...]:
    """The main thread first, and not too many others."""
    return tuple(sorted(threads, key=lambda thread: not thread.main)[:_MOST_THREADS])


def _clean(name: str, longest: int) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[-longest:])


def _short(file: str) -> str:
    """Shorten a file's name to what is the same on all hosts."""
    if found := re.search(r"(?:site|dist)-packages/(.+)$", file):
        return found[1]
    with suppress(ValueError):
        return Path(file).relative_to(_ROOT).as_posix()
    if found := re.search(r"\b(lib/python3[^/]*/.+)$", file):
        return found[1]
    return "/".join(Path(file).parts[-2:]) or "?"
