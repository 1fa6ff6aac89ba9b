"""An ADDP training step up to the loss (algorithm 1, steps 2 to 4), by frozen networks: tokens in,
(x_t, target) out.

    ids, mask_next --predictor--> expected codes            unreliable tokens
                                      |
                                      |   where masked in mask_t; the codes of ids elsewhere
                                      v
                                     z_t --tokenizer--> image x_t
    ids, mask_t ----predictor--> target q(z_{t-1} | z_t)    counts where masked in mask_t
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.compiling import Compiler, compile_blocks
from model.masking import DenoisingMasks
from model.predictor import TokenPredictor
from model.vq import VQTokenizer, fast_layout


class NoisyImage(NamedTuple):
    """What the network learns from.

    x_t: (B, 3, H, W), decoded from reliable and unreliable tokens (section 3.2). target: (B, L, K),
    q(z_{t-1} | z_t). soft_embedding: (B, Dz, h, w), the expected codes under the prediction from
    mask_next.
    """

    x_t: Tensor
    target: Tensor
    soft_embedding: Tensor


class FrozenNetworks(nn.Module):
    """Tokenizer and predictor, in eval mode and without gradients. No optimizer and no checkpoint
    holds them.

    The paper describes a fixed predictor, so eval mode cannot be left here (the reference leaves
    its dropout on).
    """

    _compiled_decode: Callable[[VQTokenizer, Tensor], Tensor] | None = None

    def __init__(self, tokenizer: VQTokenizer, predictor: TokenPredictor) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.predictor = predictor
        self.eval()
        self.requires_grad_(False)
        self._lay_out()

    @property
    def device(self) -> torch.device:
        return self.tokenizer.codebook.device

    def train(self, mode: bool = True) -> FrozenNetworks:
        """Stay in eval mode."""
        return super().train(False)

    def use_compiler(self, compiler: Compiler | None) -> None:
        """Compile the predictor's blocks one by one, and the tokenizer's decoder as a whole, in
        channels last; None: no longer."""
        compile_blocks(self.predictor, compiler)
        self._compiled_decode = compiler(VQTokenizer.decode) if compiler else None
        self._lay_out()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenNetworks:
        """What `to` and its like call: another device may want another layout."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._lay_out()
        return self

    def _lay_out(self) -> None:
        """Lay the decoder's weights out as its input will be; else each call would do it again."""
        for weights in self.tokenizer.decoder.parameters():
            if weights.ndim == 4:
                weights.data = weights.data.contiguous(memory_format=self._layout)

    @property
    def _layout(self) -> torch.memory_format:
        return fast_layout(self.device, compiled=self._compiled_decode is not None)

    @torch.no_grad()
    def forward(
        self, ids: Tensor, masks: DenoisingMasks, classes: Tensor | None = None
    ) -> NoisyImage:
        """Decode z_t of tokens ids (B, L) to pixels, and predict the target at the positions masked
        in mask_t. classes: what the predictor is told, as in `TokenPredictor.logits`."""
        both = self.predictor.probabilities(
            torch.cat([ids, ids]),
            torch.cat([masks.mask_next, masks.mask_t]),
            None if classes is None else torch.cat([classes, classes]),
        )
        p_next, target = both.chunk(2)
        soft = self.tokenizer.soft_embed(p_next)
        side = soft.shape[-1]
        unreliable = masks.mask_t.view(-1, 1, side, side)
        z_t = torch.where(unreliable, soft, self.tokenizer.embed(ids.long()))
        decode = self._compiled_decode or VQTokenizer.decode
        x_t = decode(self.tokenizer, z_t.contiguous(memory_format=self._layout))
        return NoisyImage(x_t, target, soft)
