"""Classes of data and of what is asked about them, matched by their names."""

from __future__ import annotations

from collections.abc import Sequence

from model.documents import printable
from model.errors import ConfigError


def labels_in(
    known: Sequence[str], of_data: Sequence[str], knowing: str = "the network knows"
) -> list[int]:
    """Return the known label of each class of the data, which may lack some of the known classes,
    or have them in another order.

    knowing: who knows them, for messages. Raises ConfigError for a class that is not known, and for
    names that say nothing since they stand twice.
    """
    if list(known) == list(of_data):
        return list(range(len(known)))
    unknown = [name for name in of_data if name not in known]
    if unknown:
        raise ConfigError(
            f"{knowing} no class {unknown[0]!r} of the data, but "
            f"{', '.join(map(printable, known[:5]))}{', ...' if len(known) > 5 else ''}"
        )
    if len(set(known)) < len(known) or len(set(of_data)) < len(of_data):
        raise ConfigError(
            f"two classes have one name, and {knowing} other classes than the data, or in another "
            "order: which is which cannot be known"
        )
    return [known.index(name) for name in of_data]
