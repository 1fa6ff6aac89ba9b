"""Weights files, checkpoints and parity folders that lie about themselves or hold no weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.official import official_state
from model.predictor import TokenPredictor
from model.weights import save_network
from tests.hostile.case import Case, text_file
from trainer.checkpointing.format import Manifest
from trainer.checkpointing.snapshot import snapshot, write_snapshot
from trainer.config.reading import load_config

_FIXTURES = Path(__file__).parent.parent / "fixtures"
GEOMETRY = Geometry(image_size=16, patch_size=4, codebook_size=16)
SIZES = TransformerConfig.model_validate({"size": "tiny"})
_PICKLE = b"cos\nsystem\n(S'touch ../outside/x'\ntR."
STEP = "checkpoints/step-00000004"


def _described(**changes: Any) -> Callable[[Path], None]:
    """Writes network.safetensors: a tiny predictor with other values in its description.

    changes: config_X and geometry_X are sizes, any other name is an entry of the metadata. None
    leaves an entry out.
    """

    def make(folder: Path) -> None:
        config, geometry = SIZES.model_dump(mode="json"), GEOMETRY.model_dump(mode="json")
        stated: dict[str, Any] = {"format": "addp-network-1", "kind": "predictor"}
        for key, value in changes.items():
            start, _, name = key.partition("_")
            {"config": config, "geometry": geometry}.get(start, stated)[name or key] = value
        metadata = {"config": json.dumps(config), "geometry": json.dumps(geometry), **stated}
        state = TokenPredictor(GEOMETRY, SIZES).state_dict()
        save_file(
            state,
            folder / "network.safetensors",
            {k: str(v) for k, v in metadata.items() if v is not None},
        )

    return make


def _official(
    change: Callable[[dict[str, Any]], None], name: str = "official.pth"
) -> Callable[[Path], None]:
    """Writes an official file of a tiny predictor, once `change` has been at its tensors."""

    def make(folder: Path) -> None:
        state: dict[str, Any] = official_state({"predictor": TokenPredictor(GEOMETRY, SIZES)})
        change(state)
        torch.save({"model": state}, folder / name)

    return make


def _retyped(dtype: torch.dtype) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state["token_predictor.norm.weight"] = state["token_predictor.norm.weight"].to(dtype)

    return change


def _not_a_number(state: dict[str, Any]) -> None:
    state["token_predictor.norm.weight"][3] = float("nan")


def _numbers(state: dict[str, Any]) -> None:
    renamed = dict(enumerate(state.values()))
    state.clear()
    state.update(renamed)  # type: ignore[arg-type]


def run_folder(folder: Path, **changes: Any) -> None:
    """Write `run`: a run of ADDP with one checkpoint, in whose manifest `changes` are made. A__B is
    the entry B of A; None leaves a key out. Keys are those on disk."""
    run = folder / "run"
    network = ADDP(GEOMETRY, SIZES)
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    entry = write_snapshot(
        run / STEP / "rank-00000.safetensors",
        snapshot(
            ((f"weights/{name}@0", value.flatten()) for name, value in parameters.items()), None
        ),
    )
    run_identity = {
        "objective": "addp",
        "network": SIZES.model_dump(mode="json"),
        "geometry": GEOMETRY.model_dump(mode="json"),
        "frozen": {"tokenizer": "0" * 64},
    }
    manifest = Manifest(
        step=4,
        world_size=1,
        zero_stage=1,
        run_identity=run_identity,
        parameters={n: list(p.shape) for n, p in parameters.items()},
        export_prefix="",
        state_keys=["weights"],
        applied=4,
        scaler={},
        skipped=[],
        trainer_state={"seen": 1.8e9},
        run="a" * 8,
        files={"rank-00000.safetensors": entry},
    ).model_dump(mode="json")
    for key, value in changes.items():
        at, *rest = key.split("__")
        if rest:
            manifest[at] = {**manifest[at], rest[0]: value}
        elif value is None:
            del manifest[key]
        else:
            manifest[key] = value
    (run / STEP / "manifest.json").write_text(json.dumps(manifest))
    config = load_config(
        None,
        [
            "tokenizer.sizes.size=tiny",
            "addp.sizes.size=tiny",
            f"run={run}",
            f"tokenizer.weights={run}/tokenizer.pth",
        ],
    )
    (run / "config.resolved.yaml").write_text(config.model_dump_json())


def _checkpoint(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: run_folder(folder, **changes)


def _fifo_in_checkpoint(folder: Path) -> None:
    run_folder(folder)
    (folder / "run" / STEP / "rank-00000.safetensors").unlink()
    os.mkfifo(folder / "run" / STEP / "rank-00000.safetensors")


def _parity(name: str, **meta: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copytree(_FIXTURES / name, folder / "parity")
        content = json.loads((folder / "parity" / "meta.json").read_text())
        (folder / "parity" / "meta.json").write_text(json.dumps({**content, **meta}))

    return make


def _parity_lacks(key: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copytree(_FIXTURES / "small", folder / "parity")
        tensors = load_file(folder / "parity" / "io.safetensors")
        del tensors[key]
        save_file(tensors, folder / "parity" / "io.safetensors")

    return make


def _fifo(name: str) -> Callable[[Path], None]:
    return lambda folder: os.mkfifo(folder / name)


def _export(name: str, make: Callable[[Path], None], *says: str) -> Case:
    return Case(name, ("export", "network.safetensors", "out"), says=says, make=make)


def _import(
    name: str, make: Callable[[Path], None], *says: str, file: str = "official.pth"
) -> Case:
    heads = ("--predictor-heads", "2", "--predictor-decoder-heads", "2")
    return Case(name, ("import", file, "out", *heads, "--image-size", "16"), says=says, make=make)


def _from_run(name: str, make: Callable[[Path], None], *says: str, code: int = 1) -> Case:
    return Case(name, ("export", "run", "out", "--step", "4"), says=says, make=make, code=code)


def _verify(name: str, make: Callable[[Path], None], *says: str) -> Case:
    return Case(name, ("checkpoints", "run", "verify"), says=says, make=make)


def _saved(network: Callable[[], Any]) -> Callable[[Path], None]:
    return lambda folder: save_network(network(), folder / "network.safetensors")


def _header(text: bytes, length: int | None = None) -> Callable[[Path], None]:
    """Writes a safetensors file with this header, of the stated length."""
    return text_file(
        "network.safetensors",
        (len(text) if length is None else length).to_bytes(8, "little") + text,
    )


CASES = [
    _export("weights of a hundred thousand blocks", _described(config_depth=100_000), "depth"),
    _export(
        "weights of five hundred blocks that are not there",
        _described(config_depth=500),
        "network.safetensors",
    ),
    _export("weights of petabytes", _described(config_dim=1 << 24), "dim"),
    _export(
        "weights as large as may be that are not there",
        _described(config_dim=8192),
        "another shape",
    ),
    _export("weights of no heads", _described(config_heads=0), "heads"),
    _export("weights of minus one block", _described(config_depth=-1), "depth"),
    _export("weights of half a block", _described(config_depth=0.5), "depth"),
    _export(
        "weights of an image of a billion pixels",
        _described(geometry_image_size=1 << 30),
        "image_size",
    ),
    _export(
        "weights of patches larger than the image", _described(geometry_patch_size=32), "patch_size"
    ),
    _export("weights of an unknown kind", _described(kind="emperor"), "emperor"),
    _export("weights of no configuration", _described(config=None), "config"),
    _export("weights whose configuration is a list", _described(config="[1, 2]"), "config"),
    _export("weights whose configuration nests", _described(config="[" * 50_000), "config"),
    _export("weights whose configuration has more keys", _described(config_colour="red"), "colour"),
    _export("weights of no geometry", _described(geometry=None), "geometry"),
    _export("weights whose header is longer than the file", _header(b"{}", 1 << 60), "safetensors"),
    _export("weights whose header is no mapping", _header(b"[]"), "safetensors"),
    _export(
        "weights whose tensor lies outside of the file",
        _header(b'{"a": {"dtype": "F32", "shape": [9999999], "data_offsets": [0, 39999996]}}'),
        "safetensors",
    ),
    _export(
        "weights whose shape overflows",
        _header(
            b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 4], "data_offsets": [0, 0]}}'
        ),
        "safetensors",
    ),
    _export("an empty weights file", text_file("network.safetensors", b""), "network.safetensors"),
    Case(
        "a FIFO as weights",
        ("export", "network.safetensors", "out"),
        code=78,
        make=_fifo("network.safetensors"),
    ),
    _import("integer weights", _official(_retyped(torch.int64)), "norm.weight", "int64"),
    _import("complex weights", _official(_retyped(torch.complex64)), "norm.weight", "complex64"),
    _import("boolean weights", _official(_retyped(torch.bool)), "norm.weight", "bool"),
    _import("weights that are not a number", _official(_not_a_number), "norm.weight", "nan"),
    _import("weights of no tensors", _official(lambda state: state.clear()), "official.pth"),
    _import("weights whose names are numbers", _official(_numbers), "official.pth"),
    _import(
        "weights of a million blocks by their names",
        _official(
            lambda state: state.update(
                {"token_predictor.blocks.1000000.norm1.weight": torch.zeros(1)}
            )
        ),
        "official.pth",
    ),
    _import("a pickle that runs code", text_file("official.pth", _PICKLE), "official.pth"),
    _import("text as weights", text_file("official.pth", b"weights"), "official.pth"),
    _import("a FIFO to import", _fifo("official.pth"), "official.pth"),
    _import("a device to import", lambda folder: None, "/dev/zero", file="/dev/zero"),
    _from_run("a checkpoint without an objective", _checkpoint(facts={}), "step-00000004"),
    _from_run(
        "a checkpoint of an unknown objective",
        _checkpoint(facts__objective="rule"),
        "step-00000004",
    ),
    _from_run(
        "a checkpoint whose network has no heads",
        _checkpoint(facts__network={"heads": 0}),
        "step-00000004",
    ),
    _from_run(
        "a checkpoint without a geometry", _checkpoint(facts__geometry=None), "step-00000004"
    ),
    _from_run(
        "a checkpoint of petabytes",
        _checkpoint(parameters__cls_token=[1 << 20, 1 << 20, 1 << 20]),
        "step-00000004",
    ),
    _from_run(
        "a checkpoint of a negative shape",
        _checkpoint(parameters__cls_token=[-1, 5]),
        "step-00000004",
    ),
    _from_run(
        "a checkpoint of parameters that are not there",
        _checkpoint(parameters__more=[3]),
        "step-00000004",
    ),
    _from_run("a checkpoint without manifest fields", _checkpoint(kinds=None), "kinds"),
    _from_run(
        "a checkpoint of another format", _checkpoint(format="addp-checkpoint-99"), "version"
    ),
    _from_run(
        "a checkpoint whose file lies elsewhere",
        _checkpoint(files={"../../../outside": {"bytes": 0, "sha256": "0" * 64}}),
        "step-00000004",
    ),
    _verify("a checkpoint without files", _checkpoint(files={}), "files"),
    _verify(
        "a checkpoint of negative bytes",
        _checkpoint(files={"x": {"bytes": -1, "sha256": "0" * 64}}),
        "invalid",
    ),
    _verify("a checkpoint of an absurd step", _checkpoint(step=10**30), "invalid"),
    _verify("a FIFO in a checkpoint", _fifo_in_checkpoint, "invalid", "rank-00000.safetensors"),
    Case(
        "a checkpoint saved in the year ten billion",
        ("checkpoints", "run"),
        code=0,
        make=_checkpoint(progress={"seen": 1e18}),
    ),
    Case(
        "a checkpoint that is a list",
        ("checkpoints", "run"),
        code=0,
        says=("invalid",),
        make=text_file(f"run/{STEP}/manifest.json", "[1]"),
    ),
    Case(
        "a checkpoint that nests",
        ("checkpoints", "run"),
        code=0,
        says=("invalid",),
        make=text_file(f"run/{STEP}/manifest.json", "[" * 100_000),
    ),
    Case("a parity folder that is empty", ("parity", "."), says=("parity",)),
    Case(
        "a parity folder without sizes",
        ("parity", "parity"),
        says=("meta.json", "config"),
        make=_parity("small", config={}),
    ),
    Case(
        "a parity folder of enormous sizes",
        ("parity", "parity"),
        says=("meta.json",),
        make=_parity("small", image_size=1 << 40),
    ),
    Case(
        "a parity folder whose loss is text",
        ("parity", "parity"),
        says=("meta.json", "loss"),
        make=_parity("small", loss="low"),
    ),
    Case(
        "a parity folder without a tensor",
        ("parity", "parity"),
        says=("io.safetensors", "mask_t"),
        make=_parity_lacks("mask_t"),
    ),
    Case(
        "a trajectory of no micro batches",
        ("parity", "parity"),
        says=("meta.json",),
        make=_parity("trajectory", accumulation=0),
    ),
    Case(
        "a trajectory of an enormous width",
        ("parity", "parity"),
        says=("meta.json", "dim"),
        code=78,
        make=_parity("trajectory", dim=10**9),
    ),
]
