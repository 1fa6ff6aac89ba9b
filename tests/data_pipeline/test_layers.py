"""The packages of data_pipeline import in one direction, and no modules import each other in a
circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = ["storage", "images", "shards", "streaming", "sharding"]  # each imports those before it


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_of(path): path
    for package in ("model", "data_pipeline")
    for path in (ROOT / package).rglob("*.py")
}


def imports(name: str) -> set[str]:
    """The modules of these packages that a module imports, also inside of functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return (names & MODULES.keys()) - {name}


def test_packages_import_in_one_direction() -> None:
    for name in MODULES:
        package = name.split(".")[1] if name.count(".") > 1 else ""
        if package in LAYERS:
            others = {other.split(".")[1] for other in imports(name) if other.count(".") > 1}
            later = set(LAYERS[LAYERS.index(package) + 1 :])
            assert not others & later, (name, others & later)


def test_no_circle() -> None:
    TopologicalSorter({name: imports(name) for name in MODULES}).prepare()  # raises CycleError
