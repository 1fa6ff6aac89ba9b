"""Where an image goes in the square that a network sees: it is flipped, resized, cut, and padded.

stored image       resized        cut           in the square
width x height     wide x high    at left, top  at the upper left
+--------+         +------------+               +--------+
|   x    |  flip,  |        +---|----+          | image  |
|        |  resize |        |   | x  |   cut    |     x  |
+--------+         |        |   |    |          +--------+
                   +--------+---+    |          padding below and on the right,
                            +--------+          where the image ends within the square
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# ImageNet's mean colour: it becomes nearly 0 where networks normalise, as padding does that
# detectron2 and mmsegmentation add behind their normalisation.
PADDING = (124, 116, 104)


class Placement(NamedTuple):
    """width, height: of the stored image. wide, high: of the resized one. left, top: of the cut in
    the resized and flipped image. side: of the square. All in pixels."""

    width: int
    height: int
    wide: int
    high: int
    left: int
    top: int
    side: int
    flipped: bool

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width of the part of the square that shows the image."""
        return min(self.side, self.high - self.top), min(self.side, self.wide - self.left)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part of the stored, flipped image that is seen: left, top, right, bottom."""
        x, y = self.width / self.wide, self.height / self.high
        high, wide = self.seen
        right, bottom = (self.left + wide) * x, (self.top + high) * y
        return self.left * x, self.top * y, min(right, self.width), min(bottom, self.height)

    def cut(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """Return what is seen of an image of the stored size."""
        if self.flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        high, wide = self.seen
        return image.resize((wide, high), resampling, box=self.box)

    def padded(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the square that shows an RGB image of the size `seen`: uint8 (3, side, side)."""
        square = np.empty((3, self.side, self.side), np.uint8)
        high, wide = self.seen
        if (high, wide) != (self.side, self.side):
            square[:] = np.array(PADDING, np.uint8)[:, None, None]
        square[:, :high, :wide] = np.asarray(image).transpose(2, 0, 1)
        return square

    def moved(self, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return where points (..., 2), x and y in pixels of the stored image, lie in the
        square."""
        moved = points.astype(np.float64)
        if self.flipped:
            moved[..., 0] = self.width - moved[..., 0]
        moved *= (self.wide / self.width, self.high / self.height)
        moved -= (self.left, self.top)
        return moved

    def restored(self, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return where points (..., 2) of the square lie in the stored image; it undoes `moved`."""
        restored = points.astype(np.float64)
        restored += (self.left, self.top)
        restored *= (self.width / self.wide, self.height / self.high)
        if self.flipped:
            restored[..., 0] = self.width - restored[..., 0]
        return restored


def fitted(width: int, height: int, side: int) -> Placement:
    """Return the placement without a flip or a cut, in which the longer side fills the square."""
    scale = side / max(width, height)
    wide, high = (max(1, int(length * scale + 0.5)) for length in (width, height))
    return Placement(width, height, wide, high, 0, 0, side, flipped=False)
