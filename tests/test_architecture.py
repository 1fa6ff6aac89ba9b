"""The rules of the tree: packages import in one direction, so do the folders within them, and each
outside system is touched in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The packages, and the folders and modules of each, from the foundation up: each may import those
# that stand before it. A table that is lighter than the rest of its folder has a place of its own:
# engine.precision and objectives.registry. `model` is flat, and read beside the paper; it only has
# no circles.
ORDER = {
    "model": [],
    "data_pipeline": [
        *("progress", "storage", "images", "annotations", "scenes", "shards", "streaming"),
        "sharding",
    ],
    "trainer": [
        # What everything else may know: files, names and numbers. No torch.
        *(
            "records",
            "host_memory",
            "formats",
            "peaks",
            "run_folder",
            "recipes",
            "start_times",
            "engine.precision",
        ),
        *("objectives.registry", "config"),
        # Ranks that work together, and that survive.
        *("distributed", "timing", "resilience", "command"),
        # What is trained, what trains it, and what keeps it.
        *("schedule", "engine", "objectives", "checkpointing"),
        # What a run is made of, and the run.
        *(
            "board",
            "costs",
            "metrics",
            "prefetch",
            "borders",
            "micro_batches",
            "ending",
            "compiling",
        ),
        *("loop", "startup", "pretrain"),
        # What looks at runs: before, after, and beside the reference.
        *("preflight", "evaluation", "export", "trajectory_folder", "trajectory"),
    ],
    "cluster": ["supervise", "launch", "status", "sharding", "demo", "commands", "cli"],
}
PACKAGES = list(ORDER)
ONE_PLACE = {
    "deepspeed": "trainer/engine",
    "xformers": "model/attention.py",
    "pycocotools": "data_pipeline/annotations/pycoco.py",
    "kornia": "trainer/objectives/augmentation.py",
    "transformers": "model/dense/upernet.py",
    "torchvision": "model/dense/mask_rcnn.py",
    "torch_fidelity": "trainer/evaluation/measures/fidelity.py",
    "apex": "trainer/engine/optimizers.py",
    "boto3": "data_pipeline/storage/s3.py",
    "botocore": "data_pipeline/storage/s3.py",
    "requests": "data_pipeline/storage/http.py",
    "huggingface_hub": "data_pipeline/storage/http.py",
    "webdataset": "data_pipeline/storage/streams.py",
    "ray": "cluster/sharding/ray_engine.py",
}
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


@cache
def imported(path: Path, for_types: bool = False) -> frozenset[str]:
    """Return every module that a file imports, at its top or within a function.

    for_types: also those that it imports for a type checker only.
    """
    names = set()
    for node in nodes(ast.parse(path.read_text()), for_types):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= members & MODULES.keys()  # `from package import module`
            if not members <= MODULES.keys():
                names.add(node.module)
    return frozenset(names)


def nodes(node: ast.AST, for_types: bool) -> Iterator[ast.AST]:
    """Yield the node and all within it, with or without what only a type checker sees."""
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
        return
    for child in ast.iter_child_nodes(node):
        yield from nodes(child, for_types)


def room(module: str) -> tuple[str, str]:
    """Return the package of a module, and its folder or module in ORDER: (trainer, engine)."""
    package, _, rest = module.partition(".")
    return package, rest if rest in ORDER[package] else rest.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name in imported(path, for_types=True)}
    assert not tops & set(PACKAGES[PACKAGES.index(package) + 1 :])
    for outside, place in ONE_PLACE.items():
        assert outside not in tops or path.is_relative_to(ROOT / place)


def test_every_folder_has_its_place_in_the_order() -> None:
    """And nothing else has: a name in ORDER that is no folder or module is one of the past."""
    rooms = {room(name) for name in MODULES if name.partition(".")[2]}
    placed = {(package, name) for package, order in ORDER.items() for name in order}
    missing = {(package, name) for package, name in rooms - placed if package != "model"}
    assert not missing, "give each a place in ORDER, after what it imports"
    assert not placed - rooms, "take these out of ORDER"


def test_folders_import_one_way() -> None:
    upward = set()
    for name, path in MODULES.items():
        package, own = room(name)
        order = ORDER[package]
        for other in imported(path) & MODULES.keys():
            other_package, other_room = room(other)
            if (
                package == other_package
                and {own, other_room} <= set(order)
                and order.index(other_room) > order.index(own)
            ):
                upward.add((name, other))
    assert not upward, f"these import what stands above them in ORDER: {sorted(upward)}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        name: {other for other in imported(path) & MODULES.keys() if other != name}
        for name, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def closure(modules: set[str]) -> set[str]:
    """Return these modules and all that they import, directly or not.

    Of modules that are not ours, the first part of the name is returned: torch.
    """
    seen: set[str] = set()
    waiting = set(modules)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            parents = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
            waiting |= imported(MODULES[name]) | parents
    return {name if name in MODULES else name.split(".")[0] for name in seen}


# What starts runs knows the trainer by its run folder alone. It runs on login nodes, and beside a
# trainer that may be broken.
LIGHT = [
    name
    for name in MODULES
    if name.startswith(("cluster.launch", "cluster.supervise", "cluster.status"))
]
RUN_FOLDER = {
    "trainer",
    "trainer.run_folder",
    "trainer.formats",
    "trainer.records",
    # which process of how many this one is
    "trainer.distributed",
    "trainer.distributed.world",
}


def test_launches_know_the_run_folder_only() -> None:
    for name in LIGHT:
        direct = {other for other in imported(MODULES[name]) if other.startswith("trainer")}
        assert direct <= RUN_FOLDER, name
    everything = closure(set(LIGHT))
    assert {name for name in everything if name.split(".")[0] == "trainer"} <= RUN_FOLDER
    assert not everything & {"torch", "deepspeed", "numpy"}


def test_launches_load_the_run_folder_only() -> None:
    """A process that imports all of them shows what the walk over the imports says."""
    code = f"import {', '.join(LIGHT)}, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert loaded >= set(LIGHT)
    assert {name for name in loaded if name.split(".")[0] == "trainer"} <= RUN_FOLDER
    assert not loaded & {"torch", "deepspeed"}


NO_TORCH = [
    "data_pipeline.streaming.order",
    "data_pipeline.shards.format",
    "data_pipeline.streaming.loader",
    "data_pipeline.streaming.segmentation_loader",
    "data_pipeline.streaming.detection_loader",
    "data_pipeline.storage.s3",
    "data_pipeline.images.sources",
    "cluster.commands.tokenize",
    "trainer.run_folder",
    "trainer.recipes",
    "trainer.config.defaults",
    "trainer.config.reading",
    "trainer.objectives.registry",
    "trainer.resilience.stopping",
    "trainer.resilience.heartbeat",
    "trainer.resilience.stacks",
    "trainer.distributed.world",
    "trainer.distributed.environment",
    "cluster.cli",
    "cluster.demo.run",
    "cluster.launch.launch",
    "trainer.evaluation.report",
    "trainer.evaluation.benchmarks.registry",
]


def test_light_modules_need_no_torch() -> None:
    """One after the other in one process: the first that loads torch is named."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, f'{name} loads torch'"
    )
    command = [sys.executable, "-c", code, *NO_TORCH]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_of_files_say_a_job() -> None:
    vague = {"utils", "util", "misc", "common", "helpers", "helper"}
    assert not any(vague & {part.removesuffix(".py") for part in p.parts} for p in FILES)


def test_nothing_unsafe_is_loaded() -> None:
    forbidden = (
        "weights_only=False",
        "allow_pickle=True",
        "shell=True",
        "extractall(",
        "pickle.load",
    )
    assert not [(p.name, word) for p in FILES for word in forbidden if word in p.read_text()]
