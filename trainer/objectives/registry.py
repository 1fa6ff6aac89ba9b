"""What a run trains: each objective turns (step, slice of the global batch) into the inputs of one
forward pass.

The module that DeepSpeed optimises is `network`; called with those inputs, it returns the loss.
Frozen networks stay outside of it, its optimizer and its checkpoints, which name them by their
fingerprints.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_pipeline.images.image_loader import ImageBatch, ImageLoader
from data_pipeline.images.sources import split_of
from data_pipeline.streaming.epochs import EpochSchedule
from data_pipeline.streaming.loader import Batch, LoaderOptions, TokenLoader
from model.addp import ADDP
from model.denoising import FrozenNetworks
from model.errors import ConfigError
from model.masking import DenoisingMasks, denoising_masks, mage_masks
from model.predictor import TokenPredictor
from model.tokenizer_training import TokenizerTraining
from model.vq import VQTokenizer
from model.weights import Network, fingerprint
from trainer.config.schema import RunConfig
from trainer.engine.precision import MODES
from trainer.objectives.classify import ClassifyObjective, images_fingerprint
from trainer.objectives.given import Beginning, begin, given_network
from trainer.run_folder import RunFolder

Inputs = dict[str, Any]
_UNUSED_LOGIT = (
    -12.0
)  # output bias of vocabulary entries that are no codes, where the bias starts from the data


class Objective(Protocol):
    network: nn.Module  # what is optimised: network(**inputs) -> loss
    result: Network  # the part of it that a checkpoint exports
    epochs: EpochSchedule
    data_fingerprint: str
    order: dict[str, Any]  # options that the order of the samples depends on
    frozen: dict[str, str]  # fingerprints of the frozen networks
    beginning: Beginning | None  # weights that `result` was given

    def batch(self, step: int, offset: int, count: int) -> Any:
        """Data of the samples offset .. offset+count-1 of the step's global batch."""

    def close(self) -> None:
        """End what reads ahead."""

    def inputs(self, batch: Any, step: int, device: torch.device) -> Inputs:
        """What `network` is called with for that data: masks, and what the frozen networks make of
        it."""


class TokenizerObjective:
    """Images -> reconstruction and codebook losses."""

    def __init__(self, config: RunConfig, fresh: bool) -> None:
        if config.data.images is None:
            raise ConfigError("objective tokenizer needs data.images, a folder of class folders")
        if config.data.views.size != config.tokenizer.sizes.image_size:
            raise ConfigError(
                f"data.views.size = {config.data.views.size} must equal tokenizer.sizes.image_size "
                f"= {config.tokenizer.sizes.image_size}"
            )
        if config.precision != "fp32":
            raise ConfigError(
                "objective tokenizer trains in fp32 only (its codebook averages need it): set "
                "precision: fp32"
            )
        source = split_of(config.data.images, "train", config.data.held_out)
        self.loader = ImageLoader(
            source, config.data.views, global_batch=config.batch.global_batch, seed=config.seed
        )
        self.epochs = self.loader.schedule
        tokenizer = VQTokenizer(config.tokenizer.sizes)
        training = TokenizerTraining(tokenizer, config.tokenizer_loss, config.seed)
        self.beginning = begin(config, tokenizer, fresh)
        if self.beginning and fresh:
            training.keep_codebook(config.batch.micro)
        self.result: Network = tokenizer
        self.network: nn.Module = training
        self.frozen: dict[str, str] = {}
        self.data_fingerprint = images_fingerprint(source)
        self.order: dict[str, Any] = {}

    def batch(self, step: int, offset: int, count: int) -> ImageBatch:
        return self.loader.batch(step, offset, count)

    def close(self) -> None:
        self.loader.close()

    def inputs(self, batch: ImageBatch, step: int, device: torch.device) -> Inputs:
        pixels = _on(device, batch.pixels)
        return {"images": pixels.permute(0, 3, 1, 2).float() / 255}


def _on(device: torch.device, array: NDArray[Any]) -> Tensor:
    """On CUDA by way of pinned memory, so that the copy does not wait for the work before it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _weights(batch: Batch, device: torch.device) -> Tensor | None:
    """(B,), 0 for rows of quarantined shards and padding; None where all count."""
    return None if batch.weights is None else _on(device, batch.weights)


class TokenObjective:
    """Shared by the objectives that read token shards."""

    def __init__(self, config: RunConfig, tokenizer_hash: str | None) -> None:
        data = config.data
        if (data.tokens is None) == (not data.mixture):
            raise ConfigError(
                f"objective {config.objective} needs data.tokens, a data set made by `addp "
                "tokenize`, or data.mixture"
            )
        self.config = config
        self.loader = TokenLoader(
            data.tokens or list(data.mixture.items()),
            global_batch=config.batch.global_batch,
            seed=config.seed,
            tokenizer=tokenizer_hash,
            incident=RunFolder(config.run).incident,
            options=LoaderOptions(
                data.window,
                data.stripes,
                data.tail,
                labels=False,
                cache=data.cache,
                cache_bytes=int(data.cache_gib * 2**30),
                on_bad_shard=data.on_bad_shard,
                patience=data.retry_seconds,
            ),
        )
        manifest = self.loader.manifest
        if (manifest.codebook_size, manifest.tokens) != (
            config.geometry.codebook_size,
            config.geometry.tokens,
        ):
            raise ConfigError(
                f"{data.tokens or data.mixture} holds {manifest.tokens} tokens an image of "
                f"{manifest.codebook_size} codes, but tokenizer.sizes gives "
                f"{config.geometry.tokens} of {config.geometry.codebook_size}"
            )
        self.epochs = self.loader.schedule
        self.data_fingerprint = self.loader.fingerprint
        self.order = self.loader.order_options

    def start_output_bias(self, bias: Tensor) -> None:
        """With `output_bias: frequencies`: log frequencies of the K codes, next to nothing for the
        unused ids."""
        if self.config.output_bias == "frequencies":
            frequencies = torch.from_numpy(self.loader.code_frequencies())
            with torch.no_grad():
                bias.fill_(_UNUSED_LOGIT)
                bias[..., : len(frequencies)] = frequencies.log().to(bias)

    def ratio_draw(self, batch: Batch, step: int) -> int:
        """Index of the mask ratio that a micro batch gets (ADDP algorithm 1; the reference draws
        one for each)."""
        return step if self.config.mask_ratio_scope == "step" else batch.start

    def batch(self, step: int, offset: int, count: int) -> Batch:
        return self.loader.batch(step, offset, count)

    def close(self) -> None:
        self.loader.close()


class MageObjective(TokenObjective):
    """Tokens -> masked-token prediction (the token predictor's own training)."""

    def __init__(self, config: RunConfig, fresh: bool) -> None:
        super().__init__(config, None)
        network = TokenPredictor(config.geometry, config.predictor.sizes)
        self.start_output_bias(network.mlm_layer.bias)
        self.beginning = begin(config, network, fresh)
        self.result: Network = network
        self.network: nn.Module = network
        self.frozen = {"tokenizer": self.loader.manifest.tokenizer}

    def inputs(self, batch: Batch, step: int, device: torch.device) -> Inputs:
        ids = _on(device, batch.ids.astype("int64"))
        masks = mage_masks(self.config.seed, self.ratio_draw(batch, step), batch.start, *ids.shape)
        return {
            "ids": ids,
            "mask": masks.mask.to(device),
            "kept": masks.kept.to(device),
            "smoothing": self.config.label_smoothing,
            "weights": _weights(batch, device),
        }


def load_frozen(config: RunConfig) -> FrozenNetworks:
    """The frozen tokenizer and predictor of an ADDP run. Raises ConfigError or WeightsError where
    they do not fit."""
    if config.tokenizer.weights is None or config.predictor.weights is None:
        missing = "tokenizer" if config.tokenizer.weights is None else "predictor"
        raise ConfigError(f"objective addp needs {missing}.weights, the frozen {missing}")
    tokenizer, predictor = given_network(config, "tokenizer"), given_network(config, "predictor")
    assert isinstance(tokenizer, VQTokenizer) and isinstance(predictor, TokenPredictor)
    return FrozenNetworks(tokenizer, predictor)


def frozen_dtype(config: RunConfig) -> torch.dtype:
    """That the frozen networks of an ADDP run compute in."""
    dtype = getattr(torch, MODES[config.precision].frozen)
    assert isinstance(dtype, torch.dtype)
    return dtype


def denoising_inputs(
    frozen: FrozenNetworks,
    ids: Tensor,
    masks: DenoisingMasks,
    smoothing: float,
    weights: Tensor | None = None,
) -> Inputs:
    """Of the ADDP network, from what the frozen ones make of ids (B, L) and masks, all on their
    device."""
    noisy = frozen(ids, masks)
    return {
        "images": noisy.x_t,
        "ids": ids,
        "mask": masks.mask_t,
        "target": noisy.target,
        "smoothing": smoothing,
        "visible_count": ids.shape[1] - masks.masked,
        "weights": weights,
    }


class ADDPObjective(TokenObjective):
    """Tokens -> noisy pixels -> tokens (algorithm 1)."""

    def __init__(self, config: RunConfig, fresh: bool) -> None:
        frozen = load_frozen(config)
        self.frozen = {
            "tokenizer": fingerprint(frozen.tokenizer),
            "predictor": fingerprint(frozen.predictor),
        }
        super().__init__(config, self.frozen["tokenizer"])
        self.frozen_networks = frozen.to(frozen_dtype(config))
        network = ADDP(config.geometry, config.addp.sizes)
        self.start_output_bias(network.mlm_layer.bias)
        self.beginning = begin(config, network, fresh)
        self.result: Network = network
        self.network: nn.Module = network

    def inputs(self, batch: Batch, step: int, device: torch.device) -> Inputs:
        if (
            self.frozen_networks.device != device
        ):  # to go through all tensors takes 10 ms a step, moving or not
            self.frozen_networks.to(device)
        ids = _on(device, batch.ids.astype("int64"))
        masks = denoising_masks(
            self.config.seed, self.ratio_draw(batch, step), batch.start, *ids.shape
        )
        masks = masks._replace(mask_t=masks.mask_t.to(device), mask_next=masks.mask_next.to(device))
        weights = _weights(batch, device)
        return denoising_inputs(
            self.frozen_networks, ids, masks, self.config.label_smoothing, weights
        )


def given_fingerprints(objective: Objective) -> dict[str, str]:
    """Of the networks, by name, that this rank read from files."""
    first = objective.beginning
    return objective.frozen | (
        {first.key: first.fingerprint} if first and first.fingerprint else {}
    )


def make_objective(config: RunConfig, fresh: bool = False) -> Objective:
    """fresh: there is no checkpoint to go on from, so that a pre-training begins with the weights
    that it was given. Raises what reading weights and data raises."""
    if config.objective == "tokenizer":
        return TokenizerObjective(config, fresh)
    if config.objective == "classify":
        return ClassifyObjective(config)
    return (
        MageObjective(config, fresh) if config.objective == "mage" else ADDPObjective(config, fresh)
    )
