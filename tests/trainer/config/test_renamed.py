"""Old names: a person is refused with the new one; on disk, an old one is read as the new one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.errors import ConfigError
from tests.patience import PATIENCE
from trainer.config.changes import changes
from trainer.config.reading import load_config, resolved_config
from trainer.config.renamed import (
    KEYS,
    MOVED_OPTIONS,
    OPTIONS,
    RenamedOption,
    refuse_old_options,
    with_new_keys,
)
from trainer.config.schema import RunConfig
from trainer.config.uses import users
from trainer.evaluation.results import Result


def test_every_new_key_exists_and_no_old_one() -> None:
    keys = users(RunConfig)
    assert set(KEYS.values()) <= keys.keys() and not KEYS.keys() & keys.keys()


@pytest.mark.parametrize("key", KEYS)
def test_an_old_key_is_refused_with_the_new_one(key: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    file = tmp_path / "run.yaml"
    file.write_text(f"{section}: {{{name}: 3}}\n")
    for path, overrides in ((file, []), (None, [f"{key}=3"]), (None, [f"resume.allow=[{key}]"])):
        with pytest.raises(ConfigError, match=f"{key} is called {KEYS[key]} now"):
            load_config(path, overrides)


@pytest.mark.parametrize("key", KEYS)
def test_an_old_key_on_disk_is_read_as_the_new_one(key: str) -> None:
    (section, name), new_name = key.split("."), KEYS[key].split(".")[1]
    value = "/images" if name == "pictures" else 3
    content = f"{section}: {{{name}: {value}}}".encode()
    config = resolved_config(content, "config.resolved.yaml")
    assert getattr(getattr(config, section), new_name) == value
    before = {section: {name: value}}
    assert with_new_keys(before) == {section: {new_name: value}}
    assert before == {section: {name: value}}  # as it was
    assert with_new_keys({section: {name: 1, new_name: 2}}) == {section: {new_name: 2}}


def test_a_change_of_a_renamed_key_is_seen() -> None:
    """Of a checkpoint that an earlier version wrote."""
    before = {"objective": "addp", "health": {"skips": 7, "rewinds": 3}}
    found = changes(before, load_config(None, []))
    assert [str(change) for change in found] == ["health.max_nonfinite_steps: 7 -> 100"]


def test_results_on_disk() -> None:
    old = {
        "step": 4,
        "part": "knn",
        "weights": "raw",
        "settings": {"pictures": "a", "seed": 0},
        "places": {"train_pictures": "b"},
        "figures": {"pictures": 9},
        "pictures": {"": "x"},
    }
    result = Result.model_validate(old)
    assert result.settings == {"images": "a", "seed": 0} and result.metrics == {"images": 9}
    assert result.locations == {"train_images": "b"} and result.images == {"": "x"}
    assert Result.model_validate(result.document()) == result


@pytest.mark.parametrize("option", OPTIONS)
def test_an_old_option_is_refused_with_the_new_one(option: str) -> None:
    for words in ([option, "x"], ["--seed", "3", f"{option}=x"]):
        with pytest.raises(RenamedOption, match=f"{option} is called {OPTIONS[option]} now"):
            refuse_old_options(["run", *words])
    refuse_old_options(["run", OPTIONS[option], option.removeprefix("--")])


@pytest.mark.parametrize("option", MOVED_OPTIONS["train"])
def test_an_option_of_another_command_is_refused_with_that_command(option: str) -> None:
    for words in (["base", option, "x"], [f"{option}=x", "base"]):
        with pytest.raises(RenamedOption, match=f"`addp train` has no {option} any more; use") as e:
            refuse_old_options(["train", *words])
        assert MOVED_OPTIONS["train"][option] in str(e.value)
        refuse_old_options(["launch", *words])


@pytest.mark.parametrize("module", ["cluster.cli", "trainer.evaluation.evaluate"])
def test_every_command_line_refuses_them(module: str) -> None:
    """`addp` and the modules that launchers start, each of which is a command line of its own."""
    command = [sys.executable, "-m", module, *["evaluate"] * (module == "cluster.cli")]
    done = subprocess.run(
        [*command, "run", "--pictures", "x"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "error: --pictures is called --images now" in done.stderr
