"""How long one waits: for the help of each command, and from a launch to the end of its first step.

    python -m benchmarks.startup help                  each command's --help: median of 5
    python -m benchmarks.startup help plan generate    some of them
    python -m benchmarks.startup launch --processes 2  the first start, and one after a kill

`launch` starts the training of `benchmarks.supervised` by `addp launch` on this machine. Once it
has a checkpoint, rank 0 is killed, and the supervisor starts all ranks again. The parts of a start
are those that the trainer writes to start.json. What comes before a rank's process is the time of
the launcher and the supervisor; after a kill, that is also the time until the death is noticed.
With --drop-caches, which needs root, the first start finds no file in memory.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.supervised import ENVIRONMENT, TRAINING, write_data
from cluster.cli import COMMANDS
from cluster.commands.loading import LazyCommand
from trainer.run_folder import START, RunFolder

_ADDP = [sys.executable, "-m", "cluster.cli"]
# Compiled files of Python are kept, as they are of an installed `addp`.
_VARIABLES = {name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"}
_LONGEST = 300.0  # seconds for which a start may take


def command_lines() -> Iterator[list[str]]:
    """Yield what is typed for each help, and for a few mistakes."""
    yield ["--help"]
    for name, entry in COMMANDS.items():
        yield [name, "--help"]
        if entry.import_path.endswith(":app"):
            for own in LazyCommand(name, entry).load().commands:
                yield [name, own, "--help"]
    yield ["nonsense"]
    yield ["check", "base"]
    yield ["status", "no-such-run"]


def measure(words: Sequence[str]) -> tuple[float, float]:
    """Return the seconds, and the CPU seconds, of one call of `addp`."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*_ADDP, *words], check=False, capture_output=True, env=_VARIABLES)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_help(wanted: Sequence[str], repeats: int) -> None:
    """Print a table of all command lines, or of those that begin with a wanted word. The calls of
    different command lines take turns."""
    lines = [words for words in command_lines() if not wanted or words[0] in wanted]
    found: dict[str, list[tuple[float, float]]] = {}
    for turn in range(repeats + 1):
        for words in lines:
            taken = measure(words)
            if turn:  # the first call of each reads the files, and compiles those of Python
                found.setdefault(" ".join(words), []).append(taken)
    print(f"| `addp ...` | seconds | CPU seconds |  (median of {repeats})\n|---|---|---|")
    medians = {
        line: [statistics.median(column) for column in zip(*values, strict=True)]
        for line, values in found.items()
    }
    for line, (wall, cpu) in medians.items():
        print(f"| `{line}` | {wall:.2f} | {cpu:.2f} |")
    slowest = max(medians, key=lambda line: medians[line][0])
    print(f"\nslowest: `addp {slowest}`, {medians[slowest][0]:.2f} s")


class Launch:
    """A training that `addp launch` keeps going on this machine."""

    def __init__(self, folder: Path, processes: int, more: Sequence[str]) -> None:
        self.folder = RunFolder(folder / "run")
        file = folder / "run.yaml"
        file.write_text("objective: mage\n")
        words = [*_ADDP, "launch", str(file), "--processes", str(processes)]
        words += [f"run={self.folder.path}", f"data.tokens={write_data(folder / 'data')}"]
        words += [*TRAINING, "schedule.total=100000", "checkpoint.every=5", *more]
        self._log = (folder / "log").open("wb")
        self.began = time.time()
        self._process = subprocess.Popen(
            words, env={**_VARIABLES, **ENVIRONMENT}, stdout=self._log, stderr=self._log
        )

    def next_start(self, since: float) -> dict[str, Any]:
        """Wait for the end of the first step of a start, and return what it wrote down. since: the
        moment before which no rank of it began."""
        path, limit = self.folder.path / START, time.monotonic() + _LONGEST
        while time.monotonic() < limit:
            if path.exists():
                start: dict[str, Any] = json.loads(path.read_text())
                if start["began"] > since:
                    return start
            assert self._process.poll() is None, Path(self._log.name).read_text()
            time.sleep(0.02)
        raise TimeoutError(f"no step within {_LONGEST:g} s; see {self._log.name}")

    def kill_rank(self) -> float:
        """Kill rank 0, once there is a checkpoint, and return when that was."""
        while not list(self.folder.path.glob("checkpoints/step-*/manifest.json")):
            time.sleep(0.05)
        beat = json.loads(self.folder.heartbeat(0).read_text())
        moment = time.time()
        os.kill(beat["pid"], signal.SIGKILL)
        return moment

    def end(self) -> None:
        """Have the run save and stop, and wait for it."""
        self.folder.stop.touch()
        self._process.wait(timeout=_LONGEST)
        self._log.close()


def measure_launch(processes: int, repeats: int, drop: bool, more: Sequence[str]) -> None:
    """Print a table of the parts of a first start, and of one after a kill."""
    kinds: dict[str, list[dict[str, float]]] = {"first start": [], "after a kill": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="startup-") as scratch:
            if drop:
                os.sync()
                Path("/proc/sys/vm/drop_caches").write_text("3")
            launch = Launch(Path(scratch), processes, more)
            try:
                kinds["first start"].append(_parts(launch.next_start(launch.began), launch.began))
                killed = launch.kill_rank()
                kinds["after a kill"].append(_parts(launch.next_start(killed), killed))
            finally:
                launch.end()
    print(f"| seconds, {processes} ranks (median of {repeats}) | {' | '.join(kinds)} |")
    print("|---|---|---|")
    for part in [*kinds["first start"][0]]:
        medians = (statistics.median(row[part] for row in rows) for rows in kinds.values())
        print(f"| {part} | {' | '.join(f'{seconds:.1f}' for seconds in medians)} |")


def _parts(start: dict[str, Any], since: float) -> dict[str, float]:
    before = start["began"] - since
    return {
        "launcher and supervisor": before,
        **start["parts"],
        "**all**": before + start["seconds"],
    }


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    helps = kinds.add_parser("help")
    helps.add_argument("wanted", nargs="*", metavar="COMMAND")
    launches = kinds.add_parser("launch")
    launches.add_argument("--processes", type=int, default=1)
    launches.add_argument("--drop-caches", action="store_true")
    launches.add_argument("--more", nargs="*", default=[], metavar="key=value")
    for kind in (helps, launches):
        kind.add_argument("--repeats", type=int, default=5 if kind is helps else 3)
    asked = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed", "typer")}
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    if asked.kind == "help":
        measure_help(asked.wanted, asked.repeats)
    else:
        measure_launch(asked.processes, asked.repeats, asked.drop_caches, asked.more)


def processor() -> str:
    """Return the name of the CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
