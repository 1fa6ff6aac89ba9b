"""The configuration and the trained networks of a run, finished or not, in its folder or on the
store that it uploads to."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.storage import (
    AccessDenied,
    BucketMissing,
    ObjectMissing,
    StorageError,
    is_remote,
    open_store,
)
from model.addp import ADDP
from model.api import NETWORK_FILES, load
from model.errors import ConfigError, WeightsError
from model.precision import InferencePrecision, warn_of_bf16
from model.predictor import TokenPredictor
from model.shipped import shipped_folder
from model.vq import VQTokenizer, fast_layout
from model.weights import fingerprint, load_network
from trainer.checkpointing.catalog import open_catalog
from trainer.config.reading import LARGEST_FILE, resolved_config
from trainer.config.schema import RunConfig
from trainer.formats import Weights
from trainer.objectives.registry import OBJECTIVES
from trainer.run_folder import DONE, RunFolder


class Trained(NamedTuple):
    """An ADDP network and its tokenizer, both in eval mode.

    step: of the checkpoint; None for the network of a finished run.
    """

    network: ADDP
    tokenizer: VQTokenizer
    config: RunConfig
    step: int | None


def run_config(run: str) -> RunConfig:
    """The resolved configuration of a run, from its folder or the store that it uploads to.

    Raises ConfigError where there is none, or StorageError.
    """
    try:
        text = open_store(run).read("config.resolved.yaml")
    except ObjectMissing as error:
        raise ConfigError(
            f"{run} is no run folder, nor what a run uploads to: it has no config.resolved.yaml"
        ) from error
    if len(text) > LARGEST_FILE:
        raise ConfigError(f"{run}/config.resolved.yaml is larger than a configuration may be")
    return resolved_config(text, f"{run}/config.resolved.yaml")


def frozen_tokenizer(config: RunConfig, file: Path | None, expected: str | None) -> VQTokenizer:
    """The tokenizer that an ADDP run was trained with, in eval mode.

    file: a copy of it; None for the file that the configuration names. expected: its fingerprint,
    by the run's checkpoint. Raises WeightsError where it is missing or another one, ConfigError
    where the run has none.
    """
    path = file or config.tokenizer.weights
    if path is None:
        raise ConfigError(
            f"a run of objective {config.objective} has no tokenizer, and its network generates "
            "nothing; its features can be measured (knn, linear, retrieval)"
        )
    if file is None and not path.is_file():
        raise WeightsError(
            f"the run's tokenizer {path} is not on this machine; name a copy with --tokenizer FILE"
        )
    tokenizer = load_network(path, "tokenizer", config=config.tokenizer.sizes)
    assert isinstance(tokenizer, VQTokenizer)
    if expected is not None and fingerprint(tokenizer) != expected:
        raise WeightsError(f"{path} is another tokenizer than the run was trained with")
    return tokenizer.eval()


def frozen_predictor(config: RunConfig) -> TokenPredictor | None:
    """The predictor that an ADDP run was trained with, in eval mode; None where its file is not on
    this machine."""
    path = config.predictor.weights
    if path is None or not path.is_file():
        return None
    predictor = load_network(
        path, "predictor", config=config.predictor.sizes, geometry=config.geometry
    )
    assert isinstance(predictor, TokenPredictor)
    return predictor.eval()


def load_addp(
    run: str | None,
    weights: Weights = "raw",
    step: int | None = None,
    tokenizer: Path | None = None,
) -> Trained:
    """Load the networks of an ADDP run.

    run: its folder, or the store that it uploads to; or the folder of an export or an import; or
    None, for the network that ships with the package. step: the checkpoint to take, verified. None
    takes the finished run's network, or else the newest valid checkpoint. tokenizer: a copy of the
    run's tokenizer on this machine.

    Raises ConfigError, WeightsError, StorageError, Damaged or NoValidCheckpoint.
    """
    folder = shipped_folder() if run is None else Path(run)
    if run is None or _is_export(run):
        if step is not None or weights != "raw":
            raise ConfigError(
                f"{folder} holds one network and no checkpoints; leave out --checkpoint and "
                "--weights"
            )
        return _exported(folder, tokenizer)
    config = run_config(run)
    if OBJECTIVES[config.objective].network_kind != "addp":
        raise ConfigError(f"{run} has the objective {config.objective}; an ADDP run is needed here")
    expected = None
    if step is None and not is_remote(run) and RunFolder(run).is_done:
        network = load_network(RunFolder(run).trained(weights), "addp")
    else:
        catalog = open_catalog(run)
        step = catalog.newest_valid() if step is None else catalog.known(step)
        network, manifest = catalog.trained(step, weights)
        frozen = manifest.run_identity.get("frozen")
        expected = frozen.get("tokenizer") if isinstance(frozen, dict) else None
    assert isinstance(network, ADDP)
    return Trained(network.eval(), frozen_tokenizer(config, tokenizer, expected), config, step)


def _is_export(run: str) -> bool:
    """Whether this is a folder of networks, and no run's."""
    if is_remote(run) or (Path(run) / "config.resolved.yaml").exists():
        return False
    return any((Path(run) / name).is_file() for name in NETWORK_FILES)


def _exported(folder: Path, tokenizer: Path | None) -> Trained:
    """Load the networks of a folder that `addp export` or `addp import` wrote."""
    loaded = load(folder, tokenizer=tokenizer)
    frozen: dict[str, Any] = {}
    for kind, network in (("tokenizer", loaded.tokenizer), ("predictor", loaded.predictor)):
        if network is not None:
            file = folder / f"{kind}.safetensors"
            frozen[kind] = {"sizes": network.config, "weights": file}
    return Trained(loaded.network, loaded.tokenizer, RunConfig(objective="addp", **frozen), None)


def in_precision(trained: Trained, precision: InferencePrecision) -> Trained:
    """The networks to generate with: themselves in fp32, copies in bf16.

    In bf16 the whole networks are converted: autocast would keep the residual stream in float32.
    """
    if precision == "fp32":
        return trained
    warn_of_bf16(trained.network.pos_embed.device.type, "Use --precision fp32 here, or a GPU")
    network = copy.deepcopy(trained.network).bfloat16()
    tokenizer = copy.deepcopy(trained.tokenizer).bfloat16()
    tokenizer.to(memory_format=fast_layout(tokenizer.codebook.device))  # type: ignore[call-overload]
    return trained._replace(network=network, tokenizer=tokenizer)


def is_lasting(run: str, error: StorageError) -> bool:
    """Whether it is of no use to wait for the store that a run uploads to, since it refuses us or
    does not exist."""
    return isinstance(error, AccessDenied) or (isinstance(error, BucketMissing) and is_remote(run))


def is_done(run: str) -> bool:
    """Whether the run has finished. Raises StorageError."""
    try:
        open_store(run).read(DONE)
    except ObjectMissing:
        return False
    return True
