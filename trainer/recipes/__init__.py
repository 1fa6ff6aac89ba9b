"""The run files that come with the package, by name.

`base`, `large`, `mage-base` and so on are the published recipes, those that begin with `demo-` are
the steps of `addp demo`, those that begin with `emoji-` made the network that ships, and
defaults.yaml lists every key. The head of each file says how to run it, on what hardware, and what
to expect.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent
_DEFAULTS = "defaults"  # lists every key; it is not a recipe


def recipe_names() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml") if path.stem != _DEFAULTS)


def recipe(name: str) -> Path | None:
    """Return the run file of a recipe; None where no recipe has that name."""
    return _FOLDER / f"{name}.yaml" if name in recipe_names() else None
