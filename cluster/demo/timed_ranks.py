"""A few steps of each training, timed under the same engine and on as many ranks as it will have.

The ranks are forked from this process, which has PyTorch loaded: a launch takes longer than the
steps.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

from cluster.launch.backend import free_port
from model.addp import ADDP
from model.denoising import FrozenNetworks
from model.errors import ADDPError
from model.masking import denoising_masks, mage_masks
from model.predictor import TokenPredictor
from model.tokenizer_training import TokenizerTraining
from model.vq import VQTokenizer
from trainer.config.schema import RunConfig
from trainer.objectives.addp import denoising_inputs
from trainer.objectives.dense import DenseObjective
from trainer.objectives.registry import objective_class
from trainer.schedule import accumulation_steps
from trainer.timing import Stopwatch

_STEPS = 4  # of each training, after one that is not timed
_CLASSES, _THINGS = 7, 6  # in the images of dense transfer
_LONGEST = 300.0  # seconds until the ranks are given up


class CannotTime(ADDPError):
    """The steps could not be timed."""


def time_steps(configs: Sequence[RunConfig], processes: int) -> list[float]:
    """Return the seconds of an optimizer step of each training, in so many processes.

    This process must not have computed yet: threads of PyTorch do not live through a fork.

    Raises CannotTime; ConfigError where a global batch cannot be divided among the processes.
    """
    for config in configs:
        accumulation_steps(config, processes)
    context = multiprocessing.get_context("fork")
    answers, ours = context.Pipe(duplex=False)
    place = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        context.Process(
            target=_be_rank, args=(place | _number(rank), configs, processes, ours), daemon=True
        )
        for rank in range(processes)
    ]
    for rank in ranks:
        rank.start()
    ours.close()
    try:
        answer = answers.recv() if answers.poll(_LONGEST) else "they took too long"
    except EOFError:
        answer = "they ended without a word"
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    if isinstance(answer, str):
        raise CannotTime(f"a few steps of the trainings could not be timed: {answer}")
    seconds: list[float] = answer
    return seconds


def _number(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def _be_rank(
    place: dict[str, str], configs: Sequence[RunConfig], processes: int, answers: Connection
) -> None:
    """Be one of the ranks: rank 0 sends the seconds, and whoever fails sends why. Never returns."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.environ.update(place)
    try:
        seconds = _timed(configs, processes)
        if place["RANK"] == "0":
            answers.send(seconds)
    except Exception as error:  # noqa: BLE001 - it is raised in the process that waits
        answers.send(f"{type(error).__name__}: {error}")
    os._exit(0)  # what a process tears down at its end was set up in another


def _timed(configs: Sequence[RunConfig], processes: int) -> list[float]:
    from trainer.engine.engine import Engine, start_distributed

    _, _, device = start_distributed()
    seconds = []
    for config in configs:
        accumulation = accumulation_steps(config, processes)
        network, frozen = _networks(config)
        engine = Engine(network, config, accumulation, processes)
        if frozen is not None:
            frozen.to(device)
        for step in range(1 + _STEPS):
            if step == 1:
                began = time.perf_counter()
            batches = (_inputs(config, frozen, step, device) for _ in range(accumulation))
            engine.optimizer_step(batches, config.learning_rate, Stopwatch(device.type == "cuda"))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) / _STEPS)
    return seconds


def _networks(config: RunConfig) -> tuple[nn.Module, FrozenNetworks | None]:
    """Return the network that is trained, and what is frozen beside it, untrained."""
    objective = objective_class(config.objective)
    if issubclass(objective, DenseObjective):
        return objective.network_for(config, ("any",) * _CLASSES), None
    tokenizer = VQTokenizer(config.tokenizer.sizes)
    if config.objective == "tokenizer":
        return TokenizerTraining(tokenizer, config.tokenizer_loss, config.seed), None
    predictor = TokenPredictor(config.geometry, config.predictor.sizes)
    if config.objective == "mage":
        return predictor, None
    return ADDP(config.geometry, config.addp.sizes), FrozenNetworks(tokenizer, predictor)


def _inputs(
    config: RunConfig, frozen: FrozenNetworks | None, step: int, device: torch.device
) -> dict[str, Any]:
    """Make the inputs of a micro batch, of pixels or tokens drawn by chance."""
    geometry, count = config.geometry, config.batch.micro
    if config.objective in ("segment", "detect"):
        return _dense_inputs(config, device)
    if config.objective == "tokenizer":
        size = geometry.image_size
        return {"images": torch.rand(count, 3, size, size, device=device)}
    ids = torch.randint(geometry.codebook_size, (count, geometry.tokens), device=device)
    if frozen is None:
        drawn = mage_masks(config.seed, step, 0, count, geometry.tokens)
        return {
            "ids": ids,
            "mask": drawn.mask.to(device),
            "kept": drawn.kept.to(device),
            "smoothing": config.label_smoothing,
        }
    masks = denoising_masks(config.seed, step, 0, count, geometry.tokens)
    masks = masks._replace(mask_t=masks.mask_t.to(device), mask_next=masks.mask_next.to(device))
    return denoising_inputs(frozen, ids, masks, config.label_smoothing)


def _dense_inputs(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Make the inputs of a segmenter or a detector: images of several things."""
    count, detects = config.batch.micro, config.objective == "detect"
    size = config.detector.jitter.size if detects else config.segmenter.crops.size
    images = torch.rand(count, 3, size, size, device=device)
    if not detects:
        labels = torch.randint(_CLASSES, (count, size, size), device=device)
        return {"images": images, "labels": labels}
    corners = torch.arange(_THINGS, dtype=torch.float32) * (size / (2 * _THINGS))
    boxes = torch.stack([corners, corners, corners + size / 3, corners + size / 3], 1)
    instances = {
        "boxes": boxes.to(device),
        "labels": torch.arange(_THINGS, device=device),
        "masks": torch.ones(_THINGS, size, size, dtype=torch.bool, device=device),
    }
    return {"images": images, "sizes": [(size, size)] * count, "instances": [instances] * count}
