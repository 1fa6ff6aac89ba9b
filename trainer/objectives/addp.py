"""Pre-training of ADDP (algorithm 1): tokens become noisy pixels, and the network tells from them
the tokens of the step before."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from model.addp import ADDP
from model.compiling import Compiler
from model.denoising import FrozenNetworks
from model.errors import ConfigError
from model.masking import LOW, DenoisingMasks, denoising_masks
from model.predictor import TokenPredictor
from model.resizing import Resized
from model.shapes import shapes_only
from model.vq import VQTokenizer
from model.weights import fingerprint, load_network
from trainer.config.schema import RunConfig
from trainer.engine.precision import MODES
from trainer.objectives.base import Inputs, Objective
from trainer.objectives.condition import check_predictor, reads_labels
from trainer.objectives.counting import inference_flops
from trainer.objectives.footprint import Rehearsal
from trainer.objectives.initial_weights import given_network, take_initial_weights, without_values
from trainer.objectives.tokens import TokenBatch, TokenObjective


def load_frozen(config: RunConfig) -> FrozenNetworks:
    """The frozen tokenizer and predictor of an ADDP run. Raises ConfigError where one is not
    configured, WeightsError where it does not fit."""
    if config.tokenizer.weights is None or config.predictor.weights is None:
        missing = "tokenizer" if config.tokenizer.weights is None else "predictor"
        raise ConfigError(f"objective addp needs {missing}.weights, the frozen {missing}")
    tokenizer, predictor = given_network(config, "tokenizer"), given_network(config, "predictor")
    assert isinstance(tokenizer, VQTokenizer) and isinstance(predictor, TokenPredictor)
    return FrozenNetworks(tokenizer, predictor)


def frozen_dtype(config: RunConfig) -> torch.dtype:
    """The type in which the frozen networks of an ADDP run compute."""
    dtype = getattr(torch, MODES[config.precision].frozen)
    assert isinstance(dtype, torch.dtype)
    return dtype


def denoising_inputs(
    frozen: FrozenNetworks,
    ids: Tensor,
    masks: DenoisingMasks,
    smoothing: float,
    weights: Tensor | None = None,
    classes: Tensor | None = None,
) -> Inputs:
    """The inputs of the ADDP network, from what the frozen networks make of ids (B, L) and masks,
    all of them on one device. weights: (B,), or None where all rows count. classes: what the
    network and the predictor are told, (B,); None where they are told nothing."""
    noisy = frozen(ids, masks, classes)
    return {
        "images": noisy.x_t,
        "ids": ids,
        "mask": masks.mask_t,
        "target": noisy.target,
        "smoothing": smoothing,
        "visible_count": ids.shape[1] - masks.masked,
        "weights": weights,
        "classes": classes,
    }


class ADDPObjective(TokenObjective):
    """Trains ADDP on what a frozen tokenizer and a frozen predictor make of the tokens."""

    initial_section = "addp"
    inputs_ahead = True

    def __init__(self, config: RunConfig, fresh: bool = False) -> None:
        frozen = load_frozen(config)
        prints = {name: fingerprint(getattr(frozen, name)) for name in ("tokenizer", "predictor")}
        super().__init__(config, fresh, tokenizer=prints["tokenizer"])
        self.frozen = prints
        self.frozen_networks = frozen.to(frozen_dtype(config))
        check_predictor(config, frozen.predictor, self.sizes)
        network = ADDP(config.geometry, self.sizes)
        self.start_output_bias(network.mlm_layer.bias)
        self.initial_weights = take_initial_weights(config, network, fresh)
        self.exported = self.network = network

    def draw_masks(self, draw: int, start: int, count: int, length: int) -> DenoisingMasks:
        return denoising_masks(self.config.seed, draw, start, count, length)

    def inputs(self, batch: TokenBatch, step: int, device: torch.device) -> Inputs:
        """As `denoising_inputs` has them."""
        # To go through all tensors takes 10 ms a step, whether one moves or not.
        if self.frozen_networks.device != device:
            self.frozen_networks.to(device)
        return _inputs(self.frozen_networks, batch.on(device), self.config)

    def use_compiler(self, compiler: Compiler | None) -> bool:
        """As the base class says, and the frozen networks, too."""
        self.frozen_networks.use_compiler(compiler)
        return super().use_compiler(compiler)

    @classmethod
    def check_weights(cls, config: RunConfig) -> dict[Path, Resized | None]:
        load_frozen(config)
        assert config.tokenizer.weights is not None and config.predictor.weights is not None
        return {config.tokenizer.weights: None, config.predictor.weights: None}

    @classmethod
    def outlined(cls, config: RunConfig) -> Objective:
        return _OutlinedADDP(config)

    @classmethod
    def networks(cls, config: RunConfig) -> tuple[nn.Module, list[nn.Module]]:
        predictor = TokenPredictor(config.geometry, config.predictor.sizes)
        decoder = VQTokenizer(config.tokenizer.sizes).decoder
        return ADDP(config.geometry, config.addp.sizes), [predictor, decoder]

    @classmethod
    def frozen_flops(cls, config: RunConfig) -> float:
        """Two passes of the predictor, and one of the tokenizer's decoder."""
        g = config.geometry
        with shapes_only():
            predictor = TokenPredictor(g, config.predictor.sizes)
            tokenizer = VQTokenizer(config.tokenizer.sizes)
            ids = torch.empty(1, g.tokens, dtype=torch.int64)
            mask = torch.empty(1, g.tokens, dtype=torch.bool)
            codes = torch.empty(1, tokenizer.config.code_dim, g.grid, g.grid)
        return 2 * inference_flops(lambda: predictor.probabilities(ids, mask)) + inference_flops(
            lambda: tokenizer.decode(codes)
        )

    @classmethod
    def blank_masks(cls, mask: Tensor, masked: int) -> DenoisingMasks:
        return DenoisingMasks(mask, mask.clone(), masked)

    @classmethod
    def rehearsal(cls, config: RunConfig) -> Rehearsal:
        """At the least mask ratio, most tokens are visible to the decoder."""
        g, tokenizer = config.geometry, VQTokenizer(config.tokenizer.sizes)
        frozen = FrozenNetworks(tokenizer, TokenPredictor(g, config.predictor.sizes))
        frozen.to(frozen_dtype(config))

        def inputs(batch: TokenBatch) -> Inputs:
            return _inputs(frozen, batch, config)

        return Rehearsal(ADDP(g, config.addp.sizes), inputs, most_masked=LOW)

    @classmethod
    def next_steps(cls, run: Path, network: Path) -> str:
        return f"`addp evaluate {run} --suite knn --images IMAGES`, `addp generate {run}`"


def _inputs(frozen: FrozenNetworks, batch: TokenBatch, config: RunConfig) -> Inputs:
    return denoising_inputs(
        frozen, batch.ids, batch.masks, config.label_smoothing, batch.weights, batch.classes
    )


class _OutlinedADDP(ADDPObjective):
    """An ADDP run as checks look at it; it makes no inputs. The tokenizer is read to name it, since
    the data are compared by its name. The values of the predictor are read only when a checkpoint
    is there to be compared with, and the trained network has shapes alone."""

    def __init__(self, config: RunConfig) -> None:
        file = config.tokenizer.weights
        tokenizer = None
        if file is not None and file.is_file():  # else the check of the weights has said so
            sizes = config.tokenizer.sizes
            tokenizer = fingerprint(load_network(file, "tokenizer", config=sizes))
        TokenObjective.__init__(self, config, tokenizer=tokenizer)
        self.frozen = {"tokenizer": tokenizer} if tokenizer is not None else {}
        with without_values():
            file = config.predictor.weights
            if reads_labels(config) and file is not None and file.is_file():
                predictor = given_network(config, "predictor")
                assert isinstance(predictor, TokenPredictor)
                check_predictor(config, predictor, self.sizes)
            self.exported = self.network = ADDP(config.geometry, self.sizes)

    def frozen_fingerprints(self) -> dict[str, str]:
        """The fingerprints of both networks. The predictor is read only for this."""
        if "predictor" not in self.frozen:
            self.frozen["predictor"] = fingerprint(given_network(self.config, "predictor"))
        return self.frozen
