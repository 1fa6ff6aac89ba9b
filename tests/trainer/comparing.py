"""What tests read from run folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trainer.checkpointing.catalog import LocalCatalog
from trainer.run_folder import RunFolder


def losses(run: Path) -> list[float]:
    """Of each step, once: nothing was done twice or left out."""
    rows = RunFolder(run).read_metrics()
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def weight_distance(a: Path, b: Path) -> float:
    first, second = load_file(a), load_file(b)
    return max(float((first[k].float() - second[k].float()).abs().max()) for k in first)


def same_end(a: Path, b: Path) -> bool:
    """Bit for bit: every loss, the weights and, where there is one, their EMA."""
    first, second = RunFolder(a), RunFolder(b)
    assert first.is_done and second.is_done
    assert first.ema.exists() == second.ema.exists()
    pairs = [(first.network, second.network)]
    if first.ema.exists():
        pairs.append((first.ema, second.ema))
    return losses(a) == losses(b) and all(same_weights(*pair) for pair in pairs)


def cut_back(run: Path, to: Path, step: int) -> Path:
    """A copy of a finished run as it was when `step` had just been saved."""
    shutil.copytree(run, to)
    for name in ("done.json", "network.safetensors", "network-ema.safetensors"):
        (to / name).unlink(missing_ok=True)
    catalog = LocalCatalog(RunFolder(to))
    for later in catalog.steps():
        if later > step:
            catalog.remove(later)
    return to


def incidents(run: Path, event: str) -> list[dict[str, Any]]:
    all_incidents = RunFolder(run).read_incidents()
    return [record for record in all_incidents if record["event"] == event]
