"""A small supervised training on several hosts of one machine, for `benchmarks.faults` and
`benchmarks.ettr`: how it is started, what its processes are, what its supervisors wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.storage import LocalStore
from tests.cluster.launch.two_hosts import Host
from tests.token_sets import write_tokens
from trainer.run_folder import RunFolder, json_lines

# A step takes about 0.4 s on two ranks with a core each, and a checkpoint 12 MB.
TRAINING = (
    "precision=fp32",
    "tokenizer.sizes.size=tiny",
    "predictor.sizes.size=tiny",
    "predictor.sizes.dim=128",
    "predictor.sizes.heads=4",
    "predictor.sizes.decoder_heads=4",
    "batch.global_batch=192",
    "batch.micro=32",
    "schedule.unit=steps",
    "schedule.warmup=5",
    "optimizer.base_lr=0.003",
    "ema_decay=0.99",
    "zero_stage=1",
    "log_every=1",
    "checkpoint.retry_seconds=20",
)
# The ranks of one machine share its cores.
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def write_data(folder: Path) -> Path:
    """Write the token data set of the training, and return its folder."""
    if not folder.exists():
        write_tokens(LocalStore(folder), [1000] * 8, views=1, length=16, codes=16)
    return folder


class Process(NamedTuple):
    """A process of the run, as the whole machine sees it."""

    pid: int
    words: list[str]

    def runs(self, module: str) -> bool:
        """Whether this is `python -m module`, and not a launcher that was told to start it."""
        return module in self.words and self.words[self.words.index(module) - 1] == "-m"

    @property
    def rank(self) -> int | None:
        """The rank that it is, None for other processes."""
        if not self.runs("trainer.pretrain"):
            return None
        try:
            environment = Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return None
        for entry in environment:
            if entry.startswith(b"RANK="):
                return int(entry.removeprefix(b"RANK="))
        return None


def processes_of(run: Path) -> list[Process]:
    """Return all processes of this machine and its hosts whose command line names the run."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(run) in word for word in words):
            found.append(Process(int(folder.name), words))
    return found


class Job:
    """A run that `addp launch` keeps going on the hosts, started on the first of them."""

    def __init__(
        self,
        hosts: Sequence[Host],
        run: Path,
        training: Sequence[str],
        *,
        nodes: Sequence[int] = (1, 2),
        options: Sequence[str] = (),
    ) -> None:
        self.hosts, self.run, self.folder = hosts, run, RunFolder(run)
        self.log = run.with_name(f"{run.name}.log")
        self.starts: list[float] = []
        self._words = [
            *(sys.executable, "-m", "cluster.cli", "launch", str(self._run_file())),
            *("--backend", "deepspeed"),
            *("--hostfile", str(self._hostfile(nodes)), "--processes", "1"),
            *options,
            *(f"run={run}", *training),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def _run_file(self) -> Path:
        """A file with what is no override, since `addp launch` wants one."""
        path = self.hosts[0].folder / "run.yaml"
        path.write_text("objective: mage\n")
        return path

    def _hostfile(self, nodes: Sequence[int]) -> Path:
        path = self.hosts[0].folder / f"hostfile-{'-'.join(map(str, nodes))}"
        path.write_text("".join(f"node{node} slots=1\n" for node in nodes))
        return path

    def start(self) -> None:
        """Give the command; also again, once it has ended."""
        self.starts.append(time.time())
        self._process = self.hosts[0].start(self._words, self.log, environment=ENVIRONMENT)

    def poll(self) -> int | None:
        """Return the command's exit code, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def wait(self, seconds: float) -> int:
        """Return the command's exit code. Raises TimeoutError."""
        self.until(lambda: self.poll() is not None, seconds, "the end of `addp launch`")
        code = self.poll()
        assert code is not None
        return code

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for something. Raises TimeoutError with the last lines of the log."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come in {seconds:.0f} s:\n{self.last_lines()}")
            time.sleep(0.05)

    def until_step(self, step: int, seconds: float = 180) -> None:
        """Wait until so many steps are done. Raises RuntimeError if the command ends before."""

        def there() -> bool:
            if self.poll() is not None:
                raise RuntimeError(f"ended with {self.poll()} early:\n{self.last_lines()}")
            return self.steps >= step

        self.until(there, seconds, f"step {step}")

    @property
    def steps(self) -> int:
        """How many steps are done, as the metrics say."""
        try:
            rows = self.folder.read_metrics()
        except OSError:
            return 0
        return rows[-1]["step"] + 1 if rows else 0

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the supervisors have recorded, oldest first."""
        try:
            return json_lines(self.folder.supervision.read_text())
        except OSError:
            return []

    def events_after(self, moment: float, *names: str) -> Iterator[dict[str, Any]]:
        """Yield the events of these names since a moment, in epoch seconds."""
        for event in self.events:
            if event.get("event") in names and event.get("time", 0) >= moment:
                yield event

    def last_lines(self, count: int = 40) -> str:
        """Return the end of what the command has printed."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
        except OSError:
            return ""

    # Its processes.

    def rank(self, rank: int) -> int:
        """Return the process of a rank."""
        for process in processes_of(self.run):
            if process.rank == rank:
                return process.pid
        raise LookupError(f"there is no rank {rank}")

    def host_of(self, rank: int) -> Host:
        """Return the host of a rank, of which each host has one, in the newest attempt."""
        starts = [event for event in self.events if event["event"] == "start"]
        name = starts[-1]["nodes"][rank]["host"]
        return next(host for host in self.hosts if host.name == name)

    def supervisor(self, node: int) -> int:
        """Return the supervisor's process on a node, the first of which is 0."""
        return self._process_on(node, "cluster.supervise")

    def node_launcher(self, node: int) -> int:
        """Return the process of DeepSpeed's launch.py on a node."""
        return self._process_on(node, "deepspeed.launcher.launch")

    def launcher(self) -> int:
        """Return the process of `addp launch`."""
        return self._process_on(0, "cluster.cli")

    def _process_on(self, node: int, module: str) -> int:
        """Return the process that runs a module on a node. Raises LookupError without one."""
        there = self.hosts[node].processes(str(self.run))
        for process in processes_of(self.run):
            is_python = Path(process.words[0]).name.startswith("python")
            if process.pid in there and is_python and process.runs(module):
                return process.pid
        raise LookupError(f"node{node + 1} runs no {module}")

    def kill_all(self) -> None:
        """Kill what is left of the run, on every host."""
        for process in processes_of(self.run):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def left(self) -> list[str]:
        """Return the command lines of all processes on the hosts, but for their sshd, and of those
        elsewhere that name the run."""
        lines = {process.pid: " ".join(process.words) for process in processes_of(self.run)}
        for host in self.hosts:
            lines |= host.processes()
        return [line[:200] for line in lines.values()]

    def until_nothing_is_left(self, seconds: float = 60) -> tuple[float, list[str]]:
        """Wait until no process of the run is left on any host.

        Returns (how long that took, the command lines of those that were still there).
        """
        started = time.monotonic()
        while (left := self.left()) and time.monotonic() - started < seconds:
            time.sleep(0.1)
        return time.monotonic() - started, left
