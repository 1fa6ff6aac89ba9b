"""What each `precision` means: the one table that configuration, engine, estimates and parity read.
Needs no torch."""

from __future__ import annotations

from typing import Literal, NamedTuple

Precision = Literal["fp32", "bf16-mixed", "bf16", "fp16"]


class Mode(NamedTuple):
    """One precision, by names of torch dtypes.

    weights: the type of the trained network's weights and of its residual stream. products: the
    type that its matrix products are made in. frozen: the type that frozen networks are cast to.
    least_stage: the first ZeRO stage in which DeepSpeed trains rightly in it.
    """

    weights: str
    products: str
    frozen: str
    least_stage: int = 0

    @property
    def mixed(self) -> bool:
        """Whether products are made in another type than that of the weights."""
        return self.weights != self.products

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 4 if self.weights == "float32" else 2

    def __str__(self) -> str:
        if self.mixed:
            text = f"{self.weights} weights and residuals, {self.products} products"
        else:
            text = f"{self.weights} weights, residuals and products"
        return text if self.width == 4 else f"{text}; float32 master weights in the optimizer"


MODES: dict[Precision, Mode] = {
    "fp32": Mode("float32", "float32", "float32"),
    # The frozen networks are cast: what that does to the target is far below what products do to
    # the training.
    "bf16-mixed": Mode("float32", "bfloat16", "bfloat16"),
    # DeepSpeed's bf16 wrapper without ZeRO runs a first optimizer step with zero gradients; its
    # fp16 one hides the loss scale from what clips without ZeRO.
    "bf16": Mode("bfloat16", "bfloat16", "bfloat16", 1),
    "fp16": Mode("float16", "float16", "float16", 1),
}
