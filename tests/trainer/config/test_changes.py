"""What a configuration may change when a run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import ConfigError
from trainer.config.changes import FIXED, FREE, TRAINING, changes, forbidden, within
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.config.uses import users


def test_every_key_is_free_or_changes_the_optimisation_or_is_fixed() -> None:
    """A new key has to be classified; a name in the lists that is no key is a mistake."""
    keys, lists = list(users(RunConfig)), (FREE, TRAINING, tuple(FIXED))
    assert "optimizer.base_lr" in keys and "addp.sizes.dropout" in keys
    assert [key for key in keys if sum(within(key, names) for names in lists) != 1] == []
    assert [
        name for names in lists for name in names if not any(within(key, (name,)) for key in keys)
    ] == []
    assert [
        name for name in (*FREE, *FIXED) if name not in keys
    ] == []  # no section: what is free is so by name


@pytest.mark.parametrize("name", FIXED)
def test_no_permission_for_what_a_checkpoint_is_of(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"resume.allow: {name} cannot change while a run goes on: .*another run"
    ):
        load_config(None, [f"resume.allow=[log_every, {name}]"])
    load_config(
        None, [f"resume.allow=[{name.split('.')[0]}]"] if "." in name else []
    )  # a section has other keys


def test_keys_that_the_objective_does_not_use_change_nothing() -> None:
    """Those of earlier versions' runs may have been set, and are refused now."""
    before = load_config(None, ["objective=mage"]).model_dump(mode="json")
    before["classifier"]["method"], before["data"]["held_out"] = "linear", 0.3
    assert changes(before, load_config(None, ["objective=mage"])) == []


def test_changes_are_named_and_those_of_the_optimisation_need_a_permission() -> None:
    before = load_config(None, ["data.mixture={a: 1}"]).model_dump(mode="json")
    assert (
        changes(before, load_config(None, ["data.mixture={a: 1.0}", "schedule.total=1600"])) == []
    )
    now = load_config(None, ["optimizer.base_lr=0.2", "optimizer.betas=[0.9,0.99]", "log_every=5"])
    found = changes(before, now)
    assert [str(change) for change in found] == [
        f"data.mixture: {{'{Path.cwd()}/a': 1.0}} -> {{}}",
        "optimizer.base_lr: 0.0001 -> 0.2",
        "optimizer.betas: [0.9, 0.95] -> [0.9, 0.99]",
        "log_every: 20 -> 5",
    ]
    for allow, left in (
        ((), ["base_lr", "betas"]),
        (("optimizer.base_lr",), ["betas"]),
        (("optimizer",), []),
    ):
        assert [change.key.split(".")[1] for change in forbidden(found, allow)] == left


def test_an_older_version_s_configuration_says_nothing_about_new_keys() -> None:
    before = load_config(None).model_dump(mode="json")
    del before["schedule"], before["optimizer"]["clip"]
    before["gone"] = {"key": 1}
    assert changes(before, load_config(None, ["schedule.total=300", "optimizer.clip=1"])) == []


def test_a_permission_for_a_key_that_is_none() -> None:
    with pytest.raises(
        ConfigError,
        match=r"there is no key schedul\.total; the nearest known one is schedule\.total",
    ):
        load_config(None, ["resume.allow=[schedul.total]"])


def test_what_is_settled_at_the_start_is_no_change_before_it() -> None:
    """A checkpoint states whether its networks were compiled; `auto` will find out."""
    before = load_config(None, ["compile=on"]).model_dump(mode="json")
    assert before["compile"] == "on"  # and not true, which YAML makes of it
    assert changes(before, load_config(None, [])) == []
    (change,) = changes(before, load_config(None, ["compile=off"]))
    assert str(change) == "compile: on -> off" and forbidden([change], ()) == []
