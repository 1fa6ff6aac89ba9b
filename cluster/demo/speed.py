"""How fast this machine is, as busy as it is now: what the demo is made of, each piece timed for a
moment by the clock on the wall.

Ids and pixels are drawn by chance: what they hold does not matter to the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cluster.demo.timed_ranks import time_steps
from data_pipeline.images.images import BadImage, ImageEntry, read_image
from data_pipeline.images.sources import split_of
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view
from data_pipeline.sharding.encoder import TokenEncoder
from data_pipeline.storage import Store
from model.addp import ADDP
from model.errors import ConfigError
from model.sampler import next_image
from model.vq import VQTokenizer
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import own_device
from trainer.evaluation.measures.fidelity import EfficientNet

_BATCH = 64  # images of a timed piece
_READ = 16  # images that are read, and whose features are extracted
# Seconds of a denoising step of one image, on two idle cores of an AMD EPYC at 2.6 GHz.
_USUAL = 0.003
# Borders, metric lines and checkpoints take so much of a step beside the engine.
_LOOP = 1.05


class Speed(NamedTuple):
    """Seconds on this machine.

    steps: of an optimizer step, by the name of the training. view: to make a view of an image and
    encode it. denoising: of one denoising step of one sample. feature: to read an image and encode
    it with ADDP. fidelity: to extract the features of an image for the Fréchet distance.
    slowness: of all else, over what it takes on the machine of the README.
    """

    steps: dict[str, float]
    view: float
    denoising: float
    feature: float
    fidelity: float
    slowness: float


def measure_speed(
    images: Path, configs: dict[str, RunConfig], sizes: RunConfig, processes: int
) -> Speed:
    """Time this machine; it takes some fifteen seconds.

    images: class folders. configs: of the trainings that are to come, by name. sizes: of the
    networks. processes: ranks of each training.

    Raises CannotTime; ConfigError where a global batch cannot be divided among the processes.
    """
    # First the ranks: they are forked, and this process must not have computed by then.
    engine = time_steps(list(configs.values()), processes)
    steps = {name: _LOOP * seconds for name, seconds in zip(configs, engine, strict=True)}
    config, source = sizes, split_of(images)
    some = source.images[:: -(-len(source.images) // _READ)][:_READ]
    device = own_device()
    tokenizer = VQTokenizer(config.tokenizer.sizes).to(device).eval()
    network = ADDP(config.geometry, config.addp.sizes).to(device).eval()
    size, threads = config.geometry.image_size, torch.get_num_threads()
    with torch.inference_mode():
        reading = _seconds(lambda: _read(source.store, some, size)) / len(some)
        encoder = TokenEncoder(tokenizer, device=device.type)
        views = np.zeros((encoder.batch, size, size, 3), np.uint8)
        encoding = _seconds(lambda: encoder(views)) / encoder.batch
        denoising = _seconds(lambda: _denoise(network, tokenizer)) / _BATCH
        pixels = torch.zeros(_BATCH, 3, size, size, device=device)
        features = _seconds(lambda: network.encode(pixels)) / _BATCH
        fidelity = _seconds(_fidelity(pixels[:_READ].byte(), device)) / _READ
    return Speed(
        steps,
        view=encoding + reading / threads,
        denoising=denoising,
        feature=features + reading / threads,
        fidelity=fidelity,
        slowness=denoising / _USUAL,
    )


def _seconds(work: Callable[[], object]) -> float:
    """Do the work twice, and return the seconds of the second time."""
    for _ in range(2):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return time.perf_counter() - began


def _read(store: Store, images: Sequence[ImageEntry], size: int) -> None:
    recipe = ViewRecipe(size=size, views=1, scale=(0.75, 1.0))
    for entry in images:
        with suppress(BadImage):
            make_view(read_image(store, entry), entry.id, 0, recipe)


def _denoise(network: ADDP, tokenizer: VQTokenizer) -> None:
    """Predict and decode, with half of the tokens masked."""
    geometry, device = network.geometry, network.pos_embed.device
    ids = torch.zeros(_BATCH, geometry.tokens, dtype=torch.int64, device=device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, : geometry.tokens // 2] = True
    images = torch.zeros(_BATCH, 3, geometry.image_size, geometry.image_size, device=device)
    logits = network.logits(images, ids, mask, geometry.tokens - geometry.tokens // 2)
    next_image(tokenizer, logits[..., : geometry.codebook_size], ids, mask)


def _fidelity(pixels: Tensor, device: torch.device) -> Callable[[], object]:
    """Return what extracts the features for the Fréchet distance, or nothing where that network is
    not installed: then the demo leaves them out, too."""
    try:
        extractor = EfficientNet(device)
    except ConfigError:
        return lambda: None
    return lambda: extractor(pixels)
