"""Large-scale jitter: an image at 0.1 to 2 times the size of the square that it is put into
(arXiv 2012.07177; detectron2's flip, `ResizeScale` and `FixedSizeCrop`)."""

from __future__ import annotations

from data_pipeline.annotations.placement import Placement
from data_pipeline.annotations.recipes import DetectionRecipe
from model.randomness import uniforms


def jitter(width: int, height: int, recipe: DetectionRecipe, seed: int, index: int) -> Placement:
    """Draw how an image is placed. index: the global sample index; with the seed it determines the
    scale, the cut and the flip."""
    scale, cut, flip = uniforms(seed, "scale-jitter", index, 1, 3)[0].tolist()
    low, high = recipe.scale
    factor = recipe.size * (low + scale * (high - low)) / max(width, height)
    wide, tall = max(1, round(width * factor)), max(1, round(height * factor))
    # One number for both sides, as detectron2 draws it: the cut lies on the diagonal.
    left, top = (round(cut * max(0, length - recipe.size)) for length in (wide, tall))
    return Placement(width, height, wide, tall, left, top, recipe.size, flip < recipe.flip)
