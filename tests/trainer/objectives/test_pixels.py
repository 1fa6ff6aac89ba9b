"""Pre-training on masked pixels goes on bit for bit, and its network serves where ADDP's does."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.addp import ADDP
from model.errors import ConfigError
from model.weights import load_network
from tests.trainer.comparing import cut_back, losses, same_end
from tests.trainer.launching import SMALL
from tests.trainer.worlds import finish
from trainer import costs
from trainer.config.reading import load_config
from trainer.evaluation.trained import load_addp
from trainer.objectives.classify import ClassifyObjective
from trainer.objectives.pixels import PixelsObjective
from trainer.recipes import recipe
from trainer.run_folder import RunFolder


def test_a_run_goes_on_and_its_encoder_can_be_fine_tuned(images: Path, tmp_path: Path) -> None:
    sizes = [f"{section}.sizes.size=tiny" for section in ("tokenizer", "addp")]
    common = [*sizes, f"data.images={images}", "data.views.size=16", "precision=fp32"]
    options = ["objective=pixels", *common, "zero_stage=2"]
    finish(tmp_path / "whole", *options)
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]
    cut = cut_back(tmp_path / "whole", tmp_path / "cut", 4)
    finish(cut, *options)
    assert same_end(tmp_path / "whole", cut)

    file = RunFolder(cut).network
    assert isinstance(load_network(file, "addp"), ADDP)
    config = load_config(None, [*SMALL, "objective=classify", *common, f"addp.weights={file}"])
    assert ClassifyObjective(config, fresh=True).initial_weights is not None
    with pytest.raises(ConfigError, match="objective pixels has no tokenizer"):
        load_addp(str(cut))
    with pytest.raises(ConfigError, match="pixels trains in ZeRO 0 to 2"):
        PixelsObjective(load_config(None, [*options[:-1], "zero_stage=3"]))


def test_the_baseline_of_the_demo_sees_as_many_samples_as_its_addp() -> None:
    ours, addp = (load_config(recipe(f"demo-{name}")) for name in ("pixels", "addp"))
    for section in ("batch", "schedule", "optimizer", "addp"):
        assert getattr(ours, section) == getattr(addp, section), section
    operations, whole = costs.image_operations(ours), costs.image_operations(addp)
    assert 0 < operations.trained < whole.trained and operations.frozen == 0
