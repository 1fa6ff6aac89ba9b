"""Which process of how many: a launcher's word, Slurm's, MPI's; and never N worlds of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model.errors import ConfigError
from tests.cluster.calling import addp
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.worlds import Ranks
from trainer.distributed.world import World, host_names, own_cores, take_world
from trainer.pretrain import run_and_leave
from trainer.run_folder import RunFolder

# As Slurm 22.05 sets them for task 1 of `srun -N2 -n4`, in the shell of `salloc -N2 -n4`, and in a
# script of `sbatch`.
SALLOC = {
    "SLURM_JOB_ID": "41",
    "SLURM_JOB_NODELIST": "localhost,n[8-9]",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
}
SCRIPT = SALLOC | {"ENVIRONMENT": "BATCH", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
TASK = SCRIPT | {
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def test_slurm_makes_a_world() -> None:
    environment = dict(TASK)
    assert take_world(environment) == World(3, 4, 1)
    assert {
        name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    } == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}
    assert 1024 < int(environment["MASTER_PORT"]) < 32768
    assert take_world(environment) == World(3, 4, 1)  # asked again, now of a launcher's variables
    other = TASK | {"SLURM_JOB_ID": "42"}
    take_world(other)
    assert other["MASTER_PORT"] != environment["MASTER_PORT"]
    bare = {
        name: value for name, value in TASK.items() if "STEP" not in name and name != "ENVIRONMENT"
    }
    assert take_world(bare) == World(3, 4, 1)


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({}, 16),
        ({"WORLD_SIZE": "64", "LOCAL_WORLD_SIZE": "4"}, 4),
        ({"WORLD_SIZE": "64", "LOCAL_SIZE": "8"}, 2),
        (TASK | {"WORLD_SIZE": "4", "SLURM_NTASKS_PER_NODE": "2"}, 8),
        ({"WORLD_SIZE": "4"}, 4),
        ({"WORLD_SIZE": "64"}, 1),
    ],
)
def test_ranks_share_the_cores_of_their_host(
    environment: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert own_cores(environment) == cores


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SALLOC,
        SCRIPT,
        # `srun -n1`, and the shell of an interactive step
        TASK | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    ],
    ids=["nothing", "salloc", "script", "one task", "one task of old", "mpirun of one"],
)
def test_a_lone_process_is_its_own_world(environment: dict[str, str]) -> None:
    assert take_world(dict(environment)) == World(0, 1, 0)


def test_a_launcher_s_own_word_wins() -> None:
    said = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "here",
        "MASTER_PORT": "7",
    }
    environment = TASK | said
    assert take_world(environment) == World(1, 2, 1)
    assert environment == TASK | said
    meeting = TASK | {"MASTER_ADDR": "elsewhere", "MASTER_PORT": "29501", "SLURM_JOB_NODELIST": ""}
    assert take_world(meeting) == World(3, 4, 1)
    assert (meeting["MASTER_ADDR"], meeting["MASTER_PORT"]) == ("elsewhere", "29501")


def test_mpi_makes_a_world() -> None:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    ours = {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(names, "3412", strict=True)}
    with pytest.raises(ConfigError, match="set MASTER_ADDR to the first host"):
        take_world(dict(ours))
    assert take_world(ours | {"MASTER_ADDR": "node1"}) == World(3, 4, 1)
    environment = ours | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    assert take_world(environment) == World(3, 4, 1) and environment["MASTER_ADDR"] == "127.0.0.1"
    both = TASK | {"PMI_RANK": "3", "PMI_SIZE": "4"}  # srun --mpi=pmi2
    assert take_world(both) == World(3, 4, 1)
    # In a job, Slurm starts mpirun's helpers, one for each host.
    helpers = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "node1"}
    assert take_world(TASK | ours | helpers) == World(3, 4, 1)


def test_a_task_that_sees_its_own_gpu_only_takes_it() -> None:
    environment = TASK | {"CUDA_VISIBLE_DEVICES": "0"}  # --gpus-per-task=1
    assert take_world(environment).local == 0 and environment["LOCAL_RANK"] == "0"
    assert take_world(TASK | {"CUDA_VISIBLE_DEVICES": "0,1"}).local == 1


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            TASK | {"SLURM_JOB_NODELIST": ""},
            "SLURM_JOB_NODELIST does not say on which hosts; set MASTER_ADDR",
        ),
        (TASK | {"SLURM_JOB_NODELIST": "n[1"}, "is no list of hosts such as node.*set MASTER_ADDR"),
        (
            TASK | {"SLURM_JOB_NODELIST": "no-such-host.invalid,b"},
            "has no address here; set MASTER_ADDR",
        ),
        (TASK | {"SLURM_PROCID": "x"}, "SLURM_PROCID='x' in the environment is no number"),
        (
            {k: v for k, v in TASK.items() if k != "SLURM_LOCALID"},
            "sets no SLURM_LOCALID; start it with a launcher",
        ),
        (
            {"PMI_RANK": "0", "PMI_SIZE": "2"},
            "MPI_LOCALRANKID is not set; start it with a launcher",
        ),
        ({"WORLD_SIZE": "2"}, "has no RANK, but half of what a launcher says"),
        ({"RANK": "1"}, "has no WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is none of WORLD_SIZE=2 ranks"),
        (TASK | {"WORLD_SIZE": "8"}, "WORLD_SIZE=8 is set, but this is process 3 of 4"),
    ],
)
def test_many_processes_that_do_not_know_of_each_other_are_refused(
    environment: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        take_world(dict(environment))


def test_a_command_that_starts_ranks_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    for command, *where in (("train", "base", f"run={run}"), ("demo", "--out", run)):
        code, _, said = addp(command, *where, "--processes", 2)
        assert code == 78 and "4 processes of it run; start it once" in said
    assert "RANK" not in os.environ and not (tmp_path / "run").exists()


def test_a_grid_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, said = addp("generate", tmp_path, "--out", tmp_path / "grid.png")
    assert code == 78 and "a grid is the work of one process, and 2 run; --into FOLDER" in said


_names = st.from_regex(r"[a-z][a-z0-9-]{0,5}[a-z]", fullmatch=True)
_widths = st.tuples(st.integers(0, 99), st.integers(0, 12), st.integers(1, 4))


@given(
    st.lists(
        st.tuples(
            _names, st.lists(_widths, min_size=1, max_size=3), st.sampled_from(["", "-ib", ".x"])
        ),
        max_size=3,
    )
)
@example([])
def test_short_lists_of_hosts_are_written_out(
    items: list[tuple[str, list[tuple[int, int, int]], str]],
) -> None:
    """As `scontrol show hostnames` does: in order, with the leading zeros of each range's first
    number."""
    short, whole = ["login"], ["login"]
    for name, ranges, end in items:
        pieces = []
        for first, more, width in ranges:
            low = f"{first:0{width}d}"
            pieces.append(f"{low}-{first + more:0{len(low)}d}" if more else low)
            whole += [
                f"{name}{number:0{len(low)}d}{end}" for number in range(first, first + more + 1)
            ]
        short.append(f"{name}[{','.join(pieces)}]{end}")
    assert list(host_names(",".join(short))) == whole


@pytest.mark.parametrize(
    "nodes", ["", "a,", "a[1-", "a]1[", "a[2-1]", "a[1,,2]", "a[]", "a b", "a;b", "a[0-999999999]"]
)
def test_what_is_no_list_of_hosts(nodes: str) -> None:
    with pytest.raises(ConfigError, match="is no list of hosts"):
        list(host_names(nodes))


def test_hosts_of_two_brackets() -> None:
    assert list(host_names("r[1-2]n[08-09],x7")) == ["r1n08", "r1n09", "r2n08", "r2n09", "x7"]


class Tasks(Ranks):
    """What srun starts: no launcher's variables, but Slurm's."""

    def place(self, rank: int, processes: int, port: int) -> dict[str, str]:
        step = {
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": str(processes),
            "SLURM_JOB_ID": str(port),
        }
        return SALLOC | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


def test_tasks_of_slurm_train_as_one_world(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    run = tmp_path / "run"
    arguments = [f"run={run}", *SMALL, *MAGE, f"data.tokens={tokens}", "schedule.total=4"]
    codes, output = Tasks(run_and_leave, arguments, 2, tmp_path / "log").wait()
    assert codes == [0, 0] and output.count("starts at step 0 of 4 on 2 ranks") == 1, output
    assert RunFolder(run).is_done
