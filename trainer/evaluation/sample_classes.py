"""Which class each sample of a conditional network has: a function of the sample's index, so that a
set is the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.conditioning import Asked, labels_in_turn, labels_of
from model.randomness import uniforms


@dataclass(frozen=True)
class SampleClasses:
    """The classes of samples.

    names: of the classes, as the network has them. labels: their labels. counts: how many real
    images have each of them, in proportion to which they are drawn; None where they take turns.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    counts: tuple[int, ...] | None = None

    @classmethod
    def in_turn(cls, known: Sequence[str], asked: Asked) -> SampleClasses | None:
        """Return the classes that are asked for, as in `labels_of`: sample i has the (i mod n)-th
        of n; None where none is asked for.

        known: the network's classes. Raises ConfigError for one that it does not know.
        """
        labels = labels_of(known, asked)
        if not labels:
            return None
        return cls(tuple(known[label] for label in labels), tuple(labels))

    @classmethod
    def as_in_data(cls, known: Sequence[str], labels: Sequence[int]) -> SampleClasses:
        """Return classes that are drawn as often as real images have them. labels: the network's,
        of all images; each class counts once where there is none."""
        counts = np.bincount(np.array(labels, np.int64), minlength=len(known))
        if not labels:
            counts += 1
        there = np.nonzero(counts)[0].tolist()
        names = tuple(known[label] for label in there)
        return cls(names, tuple(there), tuple(int(counts[label]) for label in there))

    def of(self, seed: int, start: int, count: int) -> Tensor:
        """Return the labels of the samples start .. start+count-1, (count,) int64."""
        if self.counts is None:
            return labels_in_turn(self.labels, start, count)
        draws = uniforms(seed, "generate/class", start, count, 1)[:, 0]
        ends = np.cumsum(self.counts)
        return torch.tensor(self.labels)[np.searchsorted(ends, draws * ends[-1], side="right")]

    @property
    def settings(self) -> Any:
        """What a set states of its classes, as JSON."""
        if self.counts is None:
            return list(self.names)
        return dict(zip(self.names, self.counts, strict=True))
