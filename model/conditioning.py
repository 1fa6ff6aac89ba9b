"""The classes of a conditional network: which it knows, which it is told, and which one it is asked
for, by name or by number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import ConditionalConfig, TransformerConfig
from model.documents import printable
from model.errors import ConfigError

NOT_TOLD = -1  # in place of a class
ALL = "all"  # every class of the network
NONE = "none"  # no class
Asked = str | int | Sequence[str | int]  # one or several
_NAMED = 20  # classes that an error lists


class KnowsClasses:
    """What ADDP and its predictor have in common: classes, or none."""

    config: TransformerConfig

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes that the network was conditioned on, in the order of
        their labels; none for an unconditional network."""
        return classes_of(self.config)


def classes_of(config: TransformerConfig) -> tuple[str, ...]:
    """Return the names of the classes that a network was conditioned on, in the order of their
    labels; none for an unconditional one."""
    return config.classes if isinstance(config, ConditionalConfig) else ()


def labels_of(known: Sequence[str], asked: Asked) -> list[int]:
    """Return the labels of the classes that are asked for, by name or by number from 0; no label
    where pictures have no class.

    "all" stands for each class that the network knows, which may be none, and "none", alone, for
    no class. Both count before a name: a class that is called so has its number. known: the
    network's classes, in the order of their labels. Raises ConfigError for a class that the network
    does not have.
    """
    several = [asked] if isinstance(asked, str | int) else list(asked)
    labels: list[int] = []
    for one in several:
        if one == ALL:
            labels += range(len(known))
        elif one == NONE:
            if len(several) > 1:
                raise ConfigError("none stands alone: leave it out, or all other classes")
        elif not known:
            raise ConfigError(
                "this network knows no classes: it was trained without a condition. Train its "
                "predictor with condition=classes, and then it; both may begin with the weights "
                "that they have (docs/generation.md)"
            )
        elif one in known:
            labels.append(known.index(str(one)))
        elif (number := _number(one)) is not None and number < len(known):
            labels.append(number)
        else:
            more = f" and {len(known) - _NAMED:,} more" if len(known) > _NAMED else ""
            names = ", ".join(map(printable, known[:_NAMED]))
            raise ConfigError(
                f"this network knows no class {one!r}; its classes are {names}{more}, or their "
                f"numbers from 0 to {len(known) - 1}"
            )
    return labels


def _number(asked: str | int) -> int | None:
    text = str(asked)
    return int(text) if text.isascii() and text.isdigit() else None


def labels_in_turn(labels: Sequence[int], start: int, count: int) -> Tensor:
    """Return the labels of the samples start .. start+count-1, (count,) int64: sample i has label i
    mod n of n labels."""
    return torch.tensor([labels[i % len(labels)] for i in range(start, start + count)])
