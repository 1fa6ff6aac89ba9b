"""The words for a trained network: which of its weights, and the format of an export and of its
values."""

from __future__ import annotations

from typing import Literal

Weights = Literal["raw", "ema"]  # the trained weights, or the moving average of them
Format = Literal["native", "addp", "timm", "huggingface"]  # of an export
Dtype = Literal["float32", "float16"]  # of its values
