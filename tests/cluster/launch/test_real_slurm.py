"""Under a real Slurm, on this machine: `pytest -m long tests/cluster/launch/test_real_slurm.py`.

It needs root and Debian's packages of Slurm; see slurm_here.py. docs/operations.md has the results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.storage import open_store
from tests.cluster.launch.slurm_here import SlurmHere, ended, slurm_here
from tests.cluster.sharding_jobs import contents, plan, succeed, undisturbed
from tests.trainer.comparing import same_end
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.worlds import finish

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[3]
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
    """Without any launcher: one rank a task, on two nodes."""
    run = tmp_path / "run"
    command = ["srun", "-N2", "--ntasks-per-node=1", sys.executable, "-m", "trainer.pretrain"]
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
    deadline = time.monotonic() + 120
    while sum(1 for _ in store.list()) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed = ["0", "1"]  # the two that run, of four, on two nodes of one core
    for task in killed:
        slurm.call("scancel", "--full", "--signal=KILL", f"{number}_{task}")
    for task in range(tasks):
        slurm.wait_for(f"{number}_{task}", ended, 120)
    missing = succeed("status", str(out))["missing"]
    assert missing > 0, "nothing was killed in time"
    slurm.call("scontrol", "release", last_number)
    assert slurm.wait_for(last_number, ended, 120)["JobState"] == "COMPLETED"
    assert contents(store) == expected
    assert succeed("verify", str(out))["sound"]


def submit(slurm: SlurmHere, *words: str) -> str:
    """Submit a run of two nodes by `addp launch`. Returns the number of its job."""
    backend = ["--backend", "slurm", "--nodes", "2", "--gpus-per-node", "0", "--cpus", "1"]
    command = [sys.executable, "-m", "cluster.cli", "launch", *backend, *words]
    said = slurm.call(*command, environment=HERE)
    (number,) = re.findall(r"Submitted batch job (\d+)", said)
    return str(number)
