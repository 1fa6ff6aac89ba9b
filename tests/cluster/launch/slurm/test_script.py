"""The batch script for Slurm: what it says, and that nothing of a user's words becomes a command.

What Slurm makes of it is shown by test_real_slurm.py.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cluster.launch.backend import LaunchRequest
from cluster.launch.backends import BACKENDS
from cluster.launch.backends.slurm import SlurmBackend, job_name
from cluster.launch.hosts import unnamed
from cluster.launch.slurm.options import SlurmOptions
from model.errors import ConfigError

HOSTILE = [
    "data.tokens=/with space",
    "run=$(touch pwned)",
    "a=`touch pwned`",
    "b=it's; touch pwned #",
    'c="quoted" \\ $HOME',
    "d=two\nlines\n#SBATCH --wrap=pwned",
    "e={a:1,b:2}",
    "",
    "f=\u00e4\u2028",
]


def request(tmp_path: Path, *words: str, **options: object) -> LaunchRequest:
    return LaunchRequest(
        module="cluster.supervise",
        arguments=["--run", str(tmp_path / "run"), "--nodes", "4", "--", *words],
        hosts=unnamed(4, 1),
        folder=tmp_path / "launch",
        name="base run",
        ranks_per_host=8,
        grace=120,
        options=SlurmOptions.model_validate(options),
    )


def script(request: LaunchRequest) -> str:
    plan = SlurmBackend().plan(request)
    (file,) = plan.files
    (command,) = plan.commands
    assert not plan.waits and not file.private
    assert list(command.words) == ["sbatch", str(file.path)]
    assert any("addp stop" in line for line in plan.afterwards)
    return file.text


def lines(text: str) -> dict[str, str]:
    """Return the options of the #SBATCH lines."""
    found = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE)
    assert len(found) == text.count("\n#SBATCH") == len(dict(found))
    return dict(found)


def test_a_job_can_be_stopped_saved_and_queued_again(tmp_path: Path) -> None:
    text = script(request(tmp_path))
    assert text.startswith("#!/bin/bash\n#SBATCH --")
    assert lines(text) == {
        "job-name": "base-run",
        "output": f"{tmp_path}/run/slurm-%j.log",
        "open-mode": "append",
        "requeue": "",
        "no-kill": "",
        "signal": "B:TERM@150",
        "nodes": "4",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "exclusive": "",
        "mem": "0",
    }
    assert "--kill-on-bad-exit=0 --wait=0 --no-kill --cpu-bind=none" in text
    assert BACKENDS["slurm"].plan(request(tmp_path)).files[0].text == text


def test_what_a_user_asks_for_stands_in_the_script(tmp_path: Path) -> None:
    options = {
        "time": "1-12:00:00",
        "partition": "gpu,long",
        "account": "lab",
        "qos": "high",
        "constraint": "h100&ib",
        "gpus_per_node": "h100:4",
        "cpus": 96,
        "sbatch": ["--reservation=maintenance", "--comment=two words", "--exclusive"],
    }
    text = script(request(tmp_path, **options))
    asked = {
        "time": "1-12:00:00",
        "partition": "gpu,long",
        "account": "lab",
        "qos": "high",
        "constraint": "h100&ib",
        "gpus-per-node": "h100:4",
        "cpus-per-task": "96",
        "reservation": "maintenance",
        "comment": '"two words"',
        "exclusive": "",
    }
    assert asked.items() <= lines(text).items() and "mem" not in lines(text)
    assert "--no-kill --cpus-per-task=96 --cpu-bind=none" in text
    assert "gpus-per-node" not in lines(script(request(tmp_path, gpus_per_node="0")))


def test_a_time_limit_that_leaves_no_time_to_train_is_refused(tmp_path: Path) -> None:
    """Slurm would signal the job at once, and it would be queued again for ever."""
    with pytest.raises(ConfigError, match="leaves no time to train: Slurm signals the job 150 s"):
        script(request(tmp_path, time="5"))
    assert lines(script(request(tmp_path, time="6")))["time"] == "6"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("base", "base"),
        ("x y;$(id)\n#SBATCH", "x-y-id-SBATCH"),
        ("--wrap=x", "wrap-x"),
        ("\u00e4", "addp"),
        ("a" * 99, "a" * 64),
    ],
)
def test_a_job_has_a_name_that_slurm_can_show(name: str, shown: str) -> None:
    assert job_name(name) == shown


@pytest.mark.parametrize("bad", ['"', "'", "\\", "#", "\n", "\x1b"])
def test_a_run_folder_that_a_script_cannot_name_is_refused(bad: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which a batch script of Slurm cannot hold"):
        script(request(tmp_path / f"a{bad}b"))


def test_a_run_folder_may_have_spaces_and_percents(tmp_path: Path) -> None:
    said = lines(script(request(tmp_path / "a %j $b")))["output"]
    assert said == f'"{tmp_path}/a %%j $b/run/slurm-%j.log"'


def test_hostile_words_reach_the_supervisors_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real shell reads the script; in place of srun stands what prints the words it gets."""
    hostile = tmp_path / "it's $(touch pwned) `x`"
    hostile.mkdir()
    monkeypatch.chdir(hostile)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, body in {"srun": "pwd; printf '%s\\0' \"$@\"", "python": "exit 3"}.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr("sys.executable", str(programs / "python"))
    text = script(request(tmp_path, *HOSTILE))
    done = subprocess.run(
        ["/bin/bash", "-c", text],
        env={"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 3 and not done.stderr  # what decides at the end is asked
    place, _, words = done.stdout.decode().partition("\n")
    assert place == str(hostile)
    assert words.split("\0")[-len(HOSTILE) - 1 : -1] == HOSTILE
    assert not list(tmp_path.rglob("pwned*")) and not list(Path.cwd().glob("pwned*"))


def test_the_script_holds_no_values_of_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    assert "very-secret" not in script(request(tmp_path))


def test_a_machine_without_slurm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sbatch is not installed here"):
        SlurmBackend().check(request(tmp_path))
