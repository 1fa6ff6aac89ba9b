"""Runs of small segmenters and detectors, made without training, and their evaluators."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_pipeline.storage import LocalStore
from model.dense.detector import Detector
from model.dense.segmenter import Segmenter
from tests.trainer.worlds import Ranks
from trainer.checkpointing.format import FileEntry, Manifest, manifest_bytes, rank_file
from trainer.evaluation.results import Result, read_results
from trainer.objectives.registry import OBJECTIVES, Entry
from trainer.run_folder import step_folder

STEP = 4


def make_run(folder: Path, network: Segmenter | Detector) -> Path:
    """Lay down a run folder with one checkpoint that holds the network."""
    kind, checkpoint = network.kind, folder / "checkpoints" / step_folder(STEP)
    checkpoint.mkdir(parents=True)
    (folder / "config.resolved.yaml").write_text(f"objective: toy-{kind}\nrun: {folder}\n")
    parameters = dict(network.named_parameters())
    tensors = {
        f"weights/{name}@0" if name in parameters else f"buffer/{name}@0": (
            value.flatten() if name in parameters else value
        )
        for name, value in network.state_dict().items()
    }
    file = checkpoint / rank_file(0)
    save_file(tensors, file)
    content = file.read_bytes()
    manifest = Manifest(
        step=STEP,
        world_size=1,
        zero_stage=0,
        run_identity={
            "objective": f"toy-{kind}",
            "network": network.config.model_dump(mode="json"),
            "geometry": network.geometry.model_dump(mode="json"),
        },
        parameters={name: list(p.shape) for name, p in parameters.items()},
        export_prefix="",
        state_keys=["weights"],
        applied=STEP,
        scaler={},
        skipped=[],
        trainer_state={},
        files={
            file.name: FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        },
    )
    (checkpoint / "manifest.json").write_bytes(manifest_bytes(manifest))
    return folder


def evaluate(arguments: list[str]) -> int:
    """A rank of an evaluator. arguments: after how many chunks it is killed, or 0; then those of
    the command. It says which chunks it computes."""
    for kind in ("segmenter", "detector"):
        entry = Entry("none:None", "A toy", "toy", kind, "addp", ())
        OBJECTIVES[f"toy-{kind}"] = entry
    from trainer.command import run_ranks
    from trainer.evaluation.evaluate import main
    from trainer.evaluation.kept_chunks import KeptChunks

    torch.set_num_threads(1)
    life, *command = arguments
    computed, keep = [], KeptChunks.keep

    def keep_and_die(self: KeptChunks, chunk: int, document: object) -> None:
        keep(self, chunk, document)
        computed.append(chunk)
        print(f"computed chunk {chunk}", flush=True)
        if len(computed) == int(life):
            os._exit(9)

    KeptChunks.keep = keep_and_die  # type: ignore[method-assign]
    sys.argv = ["evaluate", *command, "--batch", "2", "--lease", "4"]
    run_ranks(main)
    return 0


def evaluated(run: Path, *options: str, ranks: int = 1) -> Result:
    """Evaluate a run, and return the one result."""
    done = Ranks(evaluate, ["0", str(run), *options], ranks, run.parent / f"{run.name}.log").wait()
    assert done.codes == [0] * ranks, done.output
    (result,) = read_results(LocalStore(run))
    return result
