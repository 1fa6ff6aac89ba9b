"""Under a real Slurm, on this machine: `pytest -m long tests/cluster/launch/slurm`.

It needs root and Debian's packages of Slurm; see slurm_here.py. docs/operations.md has the results.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster.supervise import history
from data_pipeline.storage import open_store
from tests.cluster.launch.slurm.slurm_here import SlurmHere, ended, slurm_here
from tests.cluster.sharding_jobs import contents, plan, succeed, undisturbed
from tests.patience import until
from tests.trainer.comparing import losses, same_end
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.worlds import finish
from trainer.run_folder import RunFolder

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[4]
HERE = {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmHere]:
    with slurm_here(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def whole(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an undisturbed run of two ranks."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(run, *MAGE, f"data.tokens={tokens}")
    return run


def words(run: Path, tokens: Path) -> list[str]:
    return [f"run={run}", *SMALL, *MAGE, f"data.tokens={tokens}"]


def test_plain_srun_trains_as_one_world(
    slurm: SlurmHere, whole: Path, tokens: Path, tmp_path: Path
) -> None:
    """Without any launcher: one rank a task, on two nodes. Losses as without Slurm."""
    run = tmp_path / "run"
    # Each node has all cores of this machine. Ranks that add up with more threads than those of
    # the other run would differ from them in the last digits.
    command = ["srun", "-N2", "--ntasks-per-node=1", "taskset", "--cpu-list", "0"]
    command += [sys.executable, "-m", "trainer.pretrain"]
    slurm.call(*command, *words(run, tokens), "expect_ranks=2", environment=HERE)
    assert same_end(run, whole)


def test_a_sharding_job_of_which_half_the_tasks_are_killed(
    slurm: SlurmHere, images: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    """As docs/tokenize.md has it: an array, and a job after it that makes what is missing."""
    rows, tasks = 4, 4
    expected = undisturbed(images, str(tmp_path / "whole"), tokenizer_file, rows)
    out = tmp_path / "out"
    plan(images, str(out), tokenizer_file, rows)
    run = f"{sys.executable} -m cluster.cli tokenize run {out} --tokenizer {tokenizer_file}"
    wrap = ["--wrap", f"{run} --shards $SLURM_ARRAY_TASK_ID/{tasks}"]
    log = f"--output={tmp_path}/task-%a.log"
    array = ["sbatch", "--parsable", f"--array=0-{tasks - 1}", "--requeue", log]
    number = slurm.call(*array, *wrap, environment=HERE).strip()
    after = [f"--dependency=afterany:{number}", f"--output={tmp_path}/last.log"]
    last = ["sbatch", "--parsable", "--hold", *after, "--wrap", f"{run} --finalize"]
    last_number = slurm.call(*last, environment=HERE).strip()
    store = open_store(str(out))
    until(lambda: sum(1 for _ in store.list()) >= 4)
    killed = ["0", "1"]  # the two that run, of four, on two nodes of one core
    for task in killed:
        slurm.call("scancel", "--full", "--signal=KILL", f"{number}_{task}")
    for task in range(tasks):
        slurm.wait_for(f"{number}_{task}", ended)
    missing = succeed("status", str(out))["missing"]
    assert missing > 0, "nothing was killed in time"
    slurm.call("scontrol", "release", last_number)
    assert slurm.wait_for(last_number, ended)["JobState"] == "COMPLETED"
    assert contents(store) == expected
    assert succeed("verify", str(out))["sound"]


# Long enough to be disturbed at once; and by the time limit, at which Slurm looks every 30 s.
LONGER = ("schedule.total=300", "checkpoint.every=50")
LONGEST = ("schedule.total=1500", "checkpoint.every=50")


@pytest.fixture(scope="module")
def longer(slurm: SlurmHere, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a longer run under Slurm that nobody disturbs."""
    run = tmp_path_factory.mktemp("longer") / "run"
    assert attempts(done(slurm, submit(slurm, run, tokens), run)) == [(0, "done")]
    return run


def submit(
    slurm: SlurmHere, run: Path, tokens: Path, *options: str, length: Sequence[str] = LONGER
) -> str:
    """Submit a longer run of two nodes by `addp launch`. Returns the number of its job."""
    config = run.with_suffix(".yaml")
    config.write_text("{}")
    nodes = ["--nodes", "2", "--gpus-per-node", "0", "--cpus", "1", "--grace", "20"]
    words_of_run = [*words(run, tokens), *length]
    command = [sys.executable, "-m", "cluster.cli", "launch", str(config), "--backend", "slurm"]
    said = slurm.call(*command, *nodes, *options, *words_of_run, environment=HERE)
    (number,) = re.findall(r"Submitted batch job (\d+)", said)
    assert f"addp stop {shlex.quote(str(run))}" in said
    return str(number)


def until_it_trains(run: Path, step: int = 50) -> None:
    manifest = run / "checkpoints" / f"step-{step:08d}" / "manifest.json"
    until(manifest.exists, said=lambda: [log.read_text() for log in run.glob("slurm-*.log")])


def queued_again(slurm: SlurmHere, number: str) -> None:
    """Wait until the job is queued again, and spare it the two minutes that Slurm lets it wait."""
    slurm.wait_for(number, lambda job: job["JobState"] == "PENDING" and job["Restarts"] == "1")
    time.sleep(3)  # what Slurm issued before would be taken for the new start
    slurm.call("scontrol", "update", f"JobId={number}", "StartTime=now")


def done(slurm: SlurmHere, number: str, run: Path) -> list[history.Event]:
    job = slurm.wait_for(number, ended)
    log = (run / f"slurm-{number}.log").read_text()
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert log.rstrip().endswith("the job ends")
    return history.read(RunFolder(run).supervision)


def attempts(events: list[history.Event]) -> list[tuple[int, str | None]]:
    """Return of each attempt the code, and what the supervisors said then."""
    codes = [event.code for event in events if isinstance(event, history.End)]
    verdicts = {e.attempt: e.verdict for e in events if isinstance(e, history.Verdict)}
    return [(code, verdicts.get(number)) for number, code in enumerate(codes, 1)]


def test_the_time_limit_saves_and_the_job_goes_on_to_the_undisturbed_end(
    slurm: SlurmHere, tokens: Path, tmp_path: Path
) -> None:
    run, whole = tmp_path / "a run", tmp_path / "whole"
    number = submit(slurm, run, tokens, "--time", "30", length=LONGEST)
    until_it_trains(run)
    # What is left of one minute is less than the notice of 50 s, or soon will be.
    slurm.call("scontrol", "update", f"JobId={number}", "TimeLimit=1")
    queued_again(slurm, number)
    slurm.call("scontrol", "update", f"JobId={number}", "TimeLimit=30")
    events = done(slurm, number, run)
    assert attempts(events) == [(75, "stopped"), (0, "done")]
    first, second = [event for event in events if isinstance(event, history.Start)]
    assert first.checkpoint is None and second.checkpoint is not None
    done(slurm, submit(slurm, whole, tokens, length=LONGEST), whole)
    assert same_end(run, whole)


def test_a_preempted_job_goes_on_to_the_undisturbed_end(
    slurm: SlurmHere, longer: Path, tokens: Path, tmp_path: Path
) -> None:
    """Slurm signals the supervisors alone then, and says nothing to the script."""
    run = tmp_path / "run"
    number = submit(slurm, run, tokens)
    until_it_trains(run)
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", f"--output={tmp_path}/urgent.log"]
    slurm.call(*urgent, "--wrap", "sleep 2")
    queued_again(slurm, number)
    assert attempts(done(slurm, number, run)) == [(75, "stopped"), (0, "done")]
    assert same_end(run, longer)


def test_what_a_user_ends_stays_so(slurm: SlurmHere, tokens: Path, tmp_path: Path) -> None:
    stopped, cancelled = tmp_path / "stopped", tmp_path / "cancelled"
    number = submit(slurm, stopped, tokens)
    until_it_trains(stopped)
    RunFolder(stopped).stop.touch()
    job = slurm.wait_for(number, ended)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "75:0", "0")
    number = submit(slurm, cancelled, tokens)
    until_it_trains(cancelled)
    slurm.call("scancel", number)
    job = slurm.wait_for(number, ended)
    time.sleep(5)  # if it came back, it would be seen by now
    assert slurm.job(number)["JobState"] == "CANCELLED" and job["Restarts"] == "0"
    for run in (stopped, cancelled):
        (ending,) = attempts(history.read(RunFolder(run).supervision))
        assert ending == (75, "stopped") and RunFolder(run).newest_checkpoint() is not None


def test_a_run_goes_on_without_a_node_that_is_lost(
    slurm: SlurmHere, longer: Path, tokens: Path, tmp_path: Path
) -> None:
    """Neither Slurm nor srun ends the others, and one node does what two did."""
    run = tmp_path / "run"
    number = submit(slurm, run, tokens, "--min-nodes", "1", "--rejoin", "5")
    until_it_trains(run)
    slurm.lose("n2", number)
    try:
        events = done(slurm, number, run)
    finally:
        slurm.restore("n2")
    assert [len(event.nodes) for event in events if isinstance(event, history.Start)] == [2, 1]
    assert losses(run) == pytest.approx(losses(longer), rel=1e-4)


def test_a_job_whose_script_is_lost_is_queued_again(
    slurm: SlurmHere, longer: Path, tokens: Path, tmp_path: Path
) -> None:
    """Slurm itself would let it run on with the second node, where nothing runs any more."""
    run = tmp_path / "run"
    number = submit(slurm, run, tokens, "--rejoin", "5")
    until_it_trains(run)
    slurm.lose("n1", number)
    try:
        slurm.wait_for(number, lambda job: job["JobState"] == "PENDING")
    finally:
        slurm.restore("n1")
    queued_again(slurm, number)
    done(slurm, number, run)
    assert same_end(run, longer)
