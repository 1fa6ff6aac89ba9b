"""Classes of data and of a network, matched by their names."""

from __future__ import annotations

from collections.abc import Sequence

from model.errors import ConfigError


def labels_in(known: Sequence[str], of_data: Sequence[str]) -> list[int]:
    """Return the network's label of each class of the data, which may lack some of the network's
    classes, or have them in another order.

    Raises ConfigError for a class that the network does not know, and for names that say nothing
    since they stand twice.
    """
    if list(known) == list(of_data):
        return list(range(len(known)))
    unknown = [name for name in of_data if name not in known]
    if unknown:
        raise ConfigError(
            f"the network knows no class {unknown[0]!r} of the data; its classes: "
            f"{', '.join(known[:5])}{', ...' if len(known) > 5 else ''}"
        )
    if len(set(known)) < len(known) or len(set(of_data)) < len(of_data):
        raise ConfigError(
            "two classes have one name, and the network's classes are not those of the data in "
            "their order: which is which cannot be known"
        )
    return [known.index(name) for name in of_data]
