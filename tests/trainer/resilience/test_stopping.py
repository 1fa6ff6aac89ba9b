"""Asked to stop, a run saves once at a step border, exits with 75, and leaves no process behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cluster.launch.backend import free_port
from data_pipeline.storage import open_store
from tests.patience import PATIENCE, until
from tests.s3_server import FaultProxy, environment
from tests.trainer.comparing import incidents, same_end
from tests.trainer.launching import MAGE, SMALL, kill_group, start
from tests.trainer.worlds import Ranks, World, finish
from trainer.pretrain import run_and_leave
from trainer.resilience.heartbeat import Heartbeat
from trainer.resilience.stopping import StopCause, StopRequest, first_cause
from trainer.run_folder import RunFolder

LONG = ("schedule.total=4000", "checkpoint.every=100000")  # only a stop saves


def ranks_of(run: Path) -> list[int]:
    """Process ids of the ranks, by rank, found by their command lines."""
    processes = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                arguments = (process / "cmdline").read_bytes().decode().split("\0")
                environment = (process / "environ").read_bytes()
            except OSError:
                continue
            rank = re.search(rb"(?:^|\0)RANK=(\d+)", environment)
            if (
                f"run={run}" in arguments
                and "trainer.pretrain" in arguments
                and rank
                and "-u" in arguments
            ):
                processes[int(rank[1])] = int(process.name)
    return [processes[r] for r in sorted(processes)]


def test_rank_0_alone_looks_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host may still see one that is gone, and would stop the next start."""
    folder = RunFolder(tmp_path)
    folder.stop.touch()
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    }
    for rank, expected in (("1", None), ("0", StopCause("file", f"{folder.stop} exists"))):
        monkeypatch.setenv("RANK", rank)
        assert StopRequest(folder).cause() == expected
        # Also where a supervisor that saw it has signalled the ranks first.
        signalled = StopRequest(folder)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signalled.cause() == (expected or StopCause("signal", "SIGTERM"))
    for number, handler in handlers.items():
        signal.signal(number, handler)


# A supervisor as far as a rank knows it: by its command line. It starts a rank, and tells who the
# rank is; the rank tells why it would stop, once the supervisor is gone.
SUPERVISOR = """
import subprocess, sys, time
rank = '''
import sys, time
from trainer.resilience.stopping import StopRequest
from trainer.run_folder import RunFolder
stop = StopRequest(RunFolder(sys.argv[1]))
print("waits", flush=True)
while stop.cause() is None:
    time.sleep(0.05)
print(*stop.cause(), sep=", ", flush=True)
'''
subprocess.Popen([sys.executable, "-c", rank, sys.argv[1]])
time.sleep(600)
"""


@pytest.mark.parametrize(("name", "notices"), [("cluster.supervise", True), ("a.shell", False)])
def test_a_supervisor_that_goes_away_is_a_launcher(
    name: str, notices: bool, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path), "-m", name]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == "waits\n"
        parent.kill()
        parent.wait()
        if not notices:
            time.sleep(1.5)
            os.killpg(parent.pid, signal.SIGINT)
        expected = "launcher, the launcher went away" if notices else "signal, SIGINT"
        assert parent.stdout.readline() == f"{expected}\n"
    finally:
        kill_group(parent)
        parent.stdout.close()


def test_what_a_user_asked_for_counts_more_than_what_a_machine_did() -> None:
    """A supervisor that sees STOP signals the ranks, while rank 0 sees it, too."""
    signalled = StopCause("signal", "SIGTERM")
    asked, gone = StopCause("file", "STOP exists"), StopCause("launcher", "it went away")
    assert first_cause([signalled, asked, gone]) == asked
    assert first_cause([gone, signalled, StopCause("signal", "SIGINT")]) == signalled


def test_records_of_earlier_versions_do_not_say_how_a_run_was_stopped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for told, read in (("", None), (', "stop": "signal"', "signal"), (', "stop": [1]', None)):
        folder.exit.write_text(f'{{"code": 75, "reason": "x", "time": 1{told}}}')
        assert (folder.read_exit() or {})["stop"] == read


def trains(run: Path, alive: Callable[[], bool]) -> None:
    """Wait until steps are done."""
    until(RunFolder(run).read_metrics, alive=alive, said=lambda: "no step was done")


def in_section(section: str, heartbeat: Path) -> bool:
    return bool(json.loads(heartbeat.read_text())["section"] == section)


def all_gone(run: Path) -> None:
    """Wait until no rank is left."""
    until(lambda: not ranks_of(run), pause=0.1)


def saved_once(run: Path) -> int:
    """The step that was saved, by the one save there was."""
    (path,) = (run / "checkpoints").glob("step-*")
    assert re.fullmatch(r"step-\d{8}", path.name)
    (record,) = incidents(run, "stopped")
    assert record["step"] == int(path.name[-8:])
    assert RunFolder(run).read_exit()["code"] == 75  # type: ignore[index]
    return record["step"]


def to_one_rank(process: subprocess.Popen[str], run: Path) -> None:
    os.kill(ranks_of(run)[1], signal.SIGTERM)


def to_the_launcher(process: subprocess.Popen[str], run: Path) -> None:
    process.send_signal(signal.SIGTERM)


def to_the_group(process: subprocess.Popen[str], run: Path) -> None:
    os.killpg(process.pid, signal.SIGTERM)


def killing_the_launcher(process: subprocess.Popen[str], run: Path) -> None:
    process.kill()


@pytest.mark.parametrize(
    ("how", "codes", "stop"),
    [
        (to_one_rank, {75}, "signal"),
        # The deepspeed launcher just dies; its ranks notice.
        (to_the_launcher, {-signal.SIGTERM}, "launcher"),
        pytest.param(to_the_group, {1, 75, -signal.SIGTERM}, "signal", marks=pytest.mark.long),
        pytest.param(killing_the_launcher, {-signal.SIGKILL}, "launcher", marks=pytest.mark.long),
    ],
    ids=["rank", "launcher", "group", "launcher-killed"],
)
def test_under_the_deepspeed_launcher(
    how: Callable[[subprocess.Popen[str], Path], None],
    codes: set[int],
    stop: str,
    tokens: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    process = start(run, *MAGE, *LONG, f"data.tokens={tokens}")
    try:
        trains(run, lambda: process.poll() is None)
        how(process, run)
        assert process.wait(PATIENCE) in codes
        all_gone(run)
    finally:
        kill_group(process)
        process.communicate()
    assert saved_once(run) > 0
    assert RunFolder(run).read_exit()["stop"] == stop  # type: ignore[index]


def test_under_torchrun(tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
        "-m",
        "trainer.pretrain",
        f"run={run}",
        *SMALL,
        *MAGE,
        *LONG,
        f"data.tokens={tokens}",
    ]
    process = subprocess.Popen(
        command,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
    )
    try:
        trains(run, lambda: process.poll() is None)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
        all_gone(run)
    finally:
        kill_group(process)
    assert saved_once(run) > 0


def addp_train(run: Path, tokens: Path) -> subprocess.Popen[str]:
    file = run.with_name("run.yaml")
    file.write_text("{}")
    command = [
        sys.executable,
        "-m",
        "cluster.cli",
        "train",
        str(file),
        f"run={run}",
        *SMALL,
        *MAGE,
        *LONG,
        f"data.tokens={tokens}",
        "--processes",
        "2",
    ]
    return subprocess.Popen(
        command, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_addp_train_ends_with_the_run_s_own_code(tokens: Path, tmp_path: Path) -> None:
    """Although the folder was once complete, as an extended run's is."""
    run = tmp_path / "run"
    run.mkdir()
    RunFolder(run).mark_done({"step": 1})
    process = addp_train(run, tokens)
    try:
        trains(run, lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 75 and "Start it again to go on" in output
        all_gone(run)
    finally:
        kill_group(process)
    assert saved_once(run) > 0


def test_addp_train_names_the_rank_that_was_killed(tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = addp_train(run, tokens)
    try:
        trains(run, lambda: process.poll() is None)
        victim = ranks_of(run)[1]
        os.kill(victim, signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        kill_group(process)
    last = output.splitlines()[-1]
    assert (
        f"rank 1 (process {victim} on " in last
        and "ended by SIGKILL" in last
        and last.endswith("go on")
    ), output
    assert process.returncode == 1 and "Traceback" not in output


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGUSR1", "STOP"])
def test_every_way_to_ask(how: str, tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    world = World(run, [*MAGE, *LONG, f"data.tokens={tokens}"], 2, None)
    trains(run, world.alive)
    if how == "STOP":
        (run / "STOP").touch()
    else:
        pid = world.ranks[1].pid
        assert pid is not None
        os.kill(pid, getattr(signal, how))
    codes, output = world.wait()
    assert codes == [75, 75] and "stopped: at step" in output and how in output, output
    assert saved_once(run) > 0 and not (run / "STOP").exists()
    kind = "file" if how == "STOP" else "signal"
    assert RunFolder(run).read_exit()["stop"] == kind  # type: ignore[index]


def test_stopped_while_it_waits_for_data(
    bucket: str, proxy: FaultProxy, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store answers the manifest and then nothing more; SIGTERM to one rank ends both, which
    would wait for a day."""
    store = open_store(f"{bucket}/tokens")
    for file in sorted(tokens.glob("*.*")):
        store.create(file.name, file)
    for name, value in environment(proxy.port, ADDP_STORAGE_TIMEOUT="86400").items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    proxy.silent_about = b".tar"
    world = World(
        run, [*MAGE, f"data.tokens={bucket}/tokens", f"data.cache={tmp_path / 'cache'}"], 2, None
    )
    for rank in range(2):
        heartbeat = run / "heartbeats" / f"rank-{rank:05d}.json"
        world.wait_for(heartbeat)
        until(partial(in_section, "data", heartbeat), alive=world.alive)
    pid = world.ranks[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    codes, output = world.wait()
    assert codes == [75, 75] and "nothing to save yet" in output, output


def test_data_that_fail_are_an_error_with_all_work_saved(tokens: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "tokens"
    shutil.copytree(tokens, data)
    victim = sorted(data.glob("tokens-*.tar"))[-1]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    options = (
        *MAGE,
        f"data.tokens={data}",
        "data.window=1",
        "schedule.total=40",
        "checkpoint.every=1000",
    )
    codes, output = World(run, options, 2, None).wait()
    assert len(set(codes)) == 1 and codes[0] not in (0, 75, None), output
    assert victim.name in output and "error: " in output
    (record,) = incidents(run, "stopped")
    assert (
        record["step"] > 0
        and (run / "checkpoints" / f"step-{record['step']:08d}" / "manifest.json").exists()
    )


def test_stopped_while_it_starts_it_saves_nothing_and_goes_on_later(
    tokens: Path, tmp_path: Path
) -> None:
    """Before the first step there is nothing to save; after a restart, no second checkpoint of the
    same step."""
    run, options = tmp_path / "run", (*MAGE, f"data.tokens={tokens}")
    run.mkdir()
    (run / "STOP").touch()
    codes, _ = World(run, options, 2, None).wait()
    assert codes == [75, 75] and not list((run / "checkpoints").glob("step-*"))
    finish(run, *options)


def test_stopped_and_started_again_it_ends_bit_for_bit_the_same(
    tokens: Path, tmp_path: Path
) -> None:
    options = (
        *MAGE,
        f"data.tokens={tokens}",
        "schedule.total=30",
        "ema_decay=0.9",
        "checkpoint.every=11",
    )
    finish(tmp_path / "whole", *options)
    run = tmp_path / "run"
    for _ in range(2):
        world = World(run, options, 2, None)
        before = len(RunFolder(run).read_metrics())
        while len(RunFolder(run).read_metrics()) <= before and any(
            r.is_alive() for r in world.ranks
        ):
            time.sleep(0.005)
        pid = world.ranks[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        codes, output = world.wait()
        assert codes in ([75, 75], [0, 0]), output
    if not RunFolder(run).is_done:
        finish(run, *options)
    assert same_end(run, tmp_path / "whole")


def watched_once_it_trains(arguments: list[str]) -> None:
    """A start may take as long as it likes: silence counts from the first step on."""
    watch = Heartbeat._watch

    def watch_later(own: Heartbeat) -> None:
        until(lambda: own.step)
        watch(own)

    Heartbeat._watch = watch_later  # type: ignore[method-assign]
    run_and_leave(arguments)


def test_a_rank_that_hangs_ends_with_76(tokens: Path, tmp_path: Path) -> None:
    """Rank 1 is stopped; rank 0 waits for it, and its watchdog ends it with its stacks on
    record."""
    run = tmp_path / "run"
    options = [f"run={run}", *SMALL, *MAGE, *LONG, f"data.tokens={tokens}", "health.hang=2"]
    world = Ranks(watched_once_it_trains, options, 2, tmp_path / "log")
    trains(run, world.alive)
    pid = world.ranks[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    world.ranks[0].join(PATIENCE)
    assert world.ranks[0].exitcode == 76
    world.kill()
    output = world.log.read_text()
    assert "no progress for" in output and "stacks follow" in output
    assert incidents(run, "hang")
