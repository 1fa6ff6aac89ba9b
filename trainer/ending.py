"""The end of a run: its copies on the store, what it leaves behind, and what it tells its user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.weights import save_network
from trainer.checkpointing.catalog import LocalCatalog
from trainer.checkpointing.exported import exported_network
from trainer.checkpointing.upload import Uploader
from trainer.config.schema import CheckpointSection, HealthSection, RunConfig
from trainer.distributed.collectives import Collectives, Flags
from trainer.engine.state_keys import EMA, WEIGHTS
from trainer.objectives.registry import objective_class
from trainer.resilience.health import ADVICE, Diverged, unfit
from trainer.resilience.state import TrainerState
from trainer.run_folder import RunFolder, step_folder


def wait_for_copies(
    uploader: Uploader | None,
    section: CheckpointSection,
    collectives: Collectives,
    *,
    alive: Callable[[], None],
    say: Callable[[str], None],
) -> bool:
    """All ranks together: wait until the store has the checkpoints that it is to have, at most
    `checkpoint.retry_seconds`. Returns on rank 0 whether it has them all; True on the others.

    uploader: on rank 0, where the run uploads. alive: called again and again meanwhile.
    """

    def somebody_waits(here: bool) -> bool:
        """Again and again, so that no rank is silent and no exchange is long, however patient the
        configuration is."""
        alive()
        return collectives.agree(Flags(waiting=here)).waiting

    def rank0_waits() -> None:
        somebody_waits(True)

    missing: list[int] = []
    if uploader is not None:
        if uploader.busy:
            say(f"waits for uploads to {section.upload}")
        missing = uploader.close(section.retry_seconds, rank0_waits)
        for step in missing:
            say(f"the checkpoint of step {step} is not on {section.upload}: see incidents/")
    while somebody_waits(False):
        pass
    return not missing


def conclude(
    folder: RunFolder, section: HealthSection, state: TrainerState, done: dict[str, Any]
) -> None:
    """Rank 0, once the last checkpoint stands: publish the trained network and, last of all, the
    completion marker.

    done: what the marker says. Raises Diverged for a run in which nothing was learnt, Damaged,
    StorageError.
    """
    step = done["step"]
    if reason := unfit(state, step, section):
        folder.incident({"event": "unfit", "step": step, "reason": reason})
        raise Diverged(
            f"the last step, {step}, is reached, but {reason}: the run is not done. Its "
            f"checkpoints stand. {ADVICE}"
        )
    with LocalCatalog(folder).saved_state(step) as saved:
        save_network(exported_network(saved, WEIGHTS), folder.network)
        if EMA in saved.manifest.state_keys:
            save_network(exported_network(saved, EMA), folder.ema)
    folder.mark_done({**done, "checkpoint": step_folder(step)})


def end_line(config: RunConfig, folder: RunFolder, step: int) -> str:
    """Where the network is, and what a user does next."""
    network, run = folder.network, folder.path
    files = f"{network}" + (f", its EMA {folder.ema}" if folder.ema.exists() else "")
    follows = objective_class(config.objective).next_steps(run, network)
    return f"done at step {step}: {files}. Next: {follows}"
