"""The ADDP network of a run, finished or not: what generation and evaluation start from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from model.addp import ADDP
from model.errors import ConfigError
from model.vq import VQTokenizer
from model.weights import load_network
from trainer.checkpoint_admin import open_run
from trainer.config import RunConfig, load_config
from trainer.run_folder import RunFolder, Weights


class Trained(NamedTuple):
    """Both networks in eval mode. step: of the checkpoint; None for the network of a finished run."""

    network: ADDP
    tokenizer: VQTokenizer
    config: RunConfig
    step: int | None


def load_addp(run: Path, weights: Weights = "raw", step: int | None = None) -> Trained:
    """step: that checkpoint, verified; without one the finished run's network, or else its newest valid checkpoint.

    Raises ConfigError, WeightsError, Damaged or NoValidCheckpoint.
    """
    folder = RunFolder(run)
    resolved = folder.path / "config.resolved.yaml"
    if not resolved.is_file():
        raise ConfigError(f"{run} is no run folder: it has no config.resolved.yaml")
    config = load_config(resolved)
    if config.objective != "addp":
        raise ConfigError(f"{run} trained a {config.objective}; an ADDP run is needed here")
    if step is None and folder.is_done:
        network = load_network(folder.trained(weights), "addp")
    else:
        place = open_run(str(run))
        step = place.newest_valid() if step is None else place.known(step)
        network = place.network(step, weights)
    assert config.tokenizer.weights is not None
    tokenizer = load_network(config.tokenizer.weights, "tokenizer", config=config.tokenizer.sizes)
    assert isinstance(network, ADDP) and isinstance(tokenizer, VQTokenizer)
    return Trained(network.eval(), tokenizer.eval(), config, step)
