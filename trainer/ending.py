"""What a run that has come to its end leaves behind, and what it tells its user."""

from __future__ import annotations

from typing import Any

from model.weights import save_network
from trainer.checkpointing.catalog import LocalCatalog
from trainer.checkpointing.exported import exported_network
from trainer.checkpointing.format import EMA, WEIGHTS
from trainer.config.schema import HealthSection, RunConfig
from trainer.resilience.health import ADVICE, Diverged, unfit
from trainer.resilience.state import TrainerState
from trainer.run_folder import RunFolder, step_folder


def conclude(
    folder: RunFolder, section: HealthSection, progress: TrainerState, done: dict[str, Any]
) -> None:
    """Rank 0, once the last checkpoint stands: publish the trained network and, last of all, the
    completion marker.

    done: what the marker says. Raises Diverged for a run in which nothing was learnt, Damaged,
    StorageError.
    """
    step = done["step"]
    if reason := unfit(progress, step, section):
        folder.incident({"event": "unfit", "step": step, "reason": reason})
        raise Diverged(
            f"the last step, {step}, is reached, but {reason}: the run is not done. Its "
            f"checkpoints stand. {ADVICE}"
        )
    with LocalCatalog(folder).saved_state(step) as state:
        save_network(exported_network(state, WEIGHTS), folder.network)
        if EMA in state.manifest.state_keys:
            save_network(exported_network(state, EMA), folder.ema)
    folder.mark_done({**done, "checkpoint": step_folder(step)})


def end_line(config: RunConfig, folder: RunFolder, step: int) -> str:
    """Where the network is, and what comes next."""
    network, run = folder.network, folder.path
    files = f"{network}" + (f", its average {folder.ema}" if folder.ema.exists() else "")
    measure = f"`addp evaluate {run} --suite"
    follows = {
        "tokenizer": f"{measure} held-out`, `addp tokenize plan IMAGES OUT --tokenizer {network}`",
        "mage": (
            f"{measure} held-out --tokens TOKENS`, an ADDP run with predictor.weights={network}"
        ),
        "addp": f"{measure} knn --images IMAGES`, `addp generate {run}`",
        "classify": f"{measure} accuracy --images IMAGES --held-out 1`",
    }[config.objective]
    return f"done at step {step}: {files}. Next: {follows}"
