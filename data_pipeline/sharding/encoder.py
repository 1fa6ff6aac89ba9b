"""The tokenizer at work: full batches of views -> token ids. This is the costly end of a sharding
job; everything else has to keep up with it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.precision import InferencePrecision, keep_float32, warn_of_bf16
from model.vq import VQTokenizer, fast_layout


class TokenEncoder:
    """Encodes batches of views, which all have the same shape; zeros fill up the last one of a
    shard. So there is one kernel and one compiled graph, and a view's tokens do not depend on how
    many others came with it.

    precision: of the convolutions; distances to codes are always computed in float32. compiled:
    whether torch.compile is used, which pays on GPUs after a minute.
    """

    def __init__(
        self,
        tokenizer: VQTokenizer,
        *,
        device: str = "cpu",
        batch: int = 128,
        precision: InferencePrecision = "fp32",
        compiled: bool = False,
    ) -> None:
        keep_float32()
        self.config = tokenizer.config
        self.batch = batch
        self.device = torch.device(device)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        if precision == "bf16":
            warn_of_bf16(
                self.device.type, "Make these tokens on a GPU, or plan with --precision fp32"
            )
        self._layout = fast_layout(self.device, compiled=compiled)
        encoder = tokenizer.encoder.to(self.device, dtype, memory_format=self._layout)  # type: ignore[call-overload]
        self._encoder = encoder.eval()
        self._quantize = tokenizer.quantize.to(self.device).eval()
        self._dtype = dtype
        self._ids = torch.compile(self._encode) if compiled else self._encode

    def _encode(self, pixels: Tensor) -> Tensor:
        # The bytes are NHWC, which is channels last without a copy.
        images = pixels.permute(0, 3, 1, 2).to(self._dtype, memory_format=self._layout) / 255
        ids: Tensor = self._quantize(self._encoder(images).float())
        return ids

    @torch.inference_mode()
    def __call__(self, views: NDArray[np.uint8]) -> Tensor:
        """Encode uint8 (batch, H, W, 3) to ids (batch, L) on the device. On CUDA the call does not
        wait for them."""
        assert len(views) == self.batch, (len(views), self.batch)
        pixels = torch.from_numpy(views)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return self._ids(pixels.to(self.device, non_blocking=True))


class BatchFiller:
    """Collects the views of one shard into full batches, across the borders of images."""

    def __init__(self, encoder: TokenEncoder) -> None:
        self._encoder = encoder
        self._ids: list[Tensor] = []
        self._views = 0
        self._start()

    def _start(self) -> None:
        size = self._encoder.config.image_size
        self._batch = np.zeros((self._encoder.batch, size, size, 3), np.uint8)
        self._filled = 0

    def add(self, views: NDArray[np.uint8]) -> None:
        """Add the views of an image, uint8 (V, H, W, 3)."""
        self._views += len(views)
        while len(views):
            taken = min(len(views), self._encoder.batch - self._filled)
            self._batch[self._filled : self._filled + taken] = views[:taken]
            self._filled += taken
            views = views[taken:]
            if self._filled == self._encoder.batch:
                self._flush()

    def _flush(self) -> None:
        self._ids.append(self._encoder(self._batch))
        self._start()

    def tokens(self) -> NDArray[np.uint16]:
        """Return the tokens of all views that were added, in this order: (views, L)."""
        if self._filled:
            self._flush()
        if not self._ids:
            return np.empty((0, self._encoder.config.tokens), np.uint16)
        return torch.cat(self._ids)[: self._views].cpu().numpy().astype(np.uint16)
