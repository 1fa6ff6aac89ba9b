"""Random numbers of one scene, taken one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from model.randomness import uniforms

T = TypeVar("T")


class Draws:
    """A pure function of (seed, purpose, index): the same numbers in the same order, however many
    of them are taken. most: how many can be taken."""

    def __init__(self, seed: int, purpose: str, index: int, most: int) -> None:
        self._numbers = iter(uniforms(seed, purpose, index, 1, most)[0].tolist())

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._numbers)

    def ratio(self, low: float, high: float) -> float:
        """Like `between`, but each doubling between low and high is equally likely."""
        return low * (high / low) ** next(self._numbers)

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[int(next(self._numbers) * len(choices))]
