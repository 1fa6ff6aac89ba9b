"""What Slurm can be asked for: each option holds only what a #SBATCH line may."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cluster.launch.slurm.options import SlurmOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partition", "gpu\n#SBATCH --wrap=x"),
        ("partition", "a b"),
        ("account", "$(id)"),
        ("qos", 'x"'),
        ("constraint", "h100;id"),
        ("constraint", "h100 #"),
        ("time", "tomorrow"),
        ("time", "1:2:3:4"),
        ("gpus_per_node", "all"),
        ("sbatch", ["--wrap=id"]),
        ("sbatch", ["--signal=KILL"]),
        ("sbatch", ["--output=/etc/passwd"]),
        ("sbatch", ["-N 3"]),
        ("sbatch", ["--comment=a\n#SBATCH --uid=0"]),
        ("sbatch", ['--comment="']),
        ("sbatch", ["--reservation=x #"]),
        ("cpus", -1),
    ],
)
def test_a_bad_option_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        SlurmOptions.model_validate({name: value})
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("2:30:15", 9015),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("1-12:30:15", 131_415),
        ("", None),
        ("infinite", None),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: float | None) -> None:
    assert SlurmOptions(time=text).seconds() == seconds
