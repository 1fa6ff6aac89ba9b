"""Runs that are killed at random, again and again."""

from __future__ import annotations

import collections
import random
import time
from pathlib import Path

from tests.trainer.worlds import World, finish
from trainer.checkpointing.catalog import LocalCatalog
from trainer.checkpointing.format import MANIFEST, PUBLISHED
from trainer.run_folder import RunFolder


def moment(run: Path) -> str:
    """What the kill fell into, by what is left."""
    unfinished = list((run / "checkpoints").glob("*.tmp"))
    if not run.exists():
        return "before the run folder"
    if any((path / MANIFEST).exists() for path in unfinished):
        return "between manifest and rename"
    if unfinished:
        return "writing files"
    catalog = LocalCatalog(RunFolder(run))
    if any(not (catalog.folder(step) / MANIFEST).exists() for step in catalog.steps()):
        return "removing old ones"
    return "steps, restore or start" if catalog.steps() else "before the first checkpoint"


def survive(
    run: Path, options: tuple[str, ...], kills: int, dice: random.Random
) -> collections.Counter[str]:
    """Run, and kill, until that many kills are done; then to the end."""
    moments: collections.Counter[str] = collections.Counter()
    for _ in range(kills):
        before = saved(run)
        world = World(run, options, 2, None)
        deadline = time.monotonic() + dice.uniform(0.2, 2.5)
        while time.monotonic() < deadline and world.alive():
            time.sleep(0.002)
        if not world.alive():
            codes, output = world.wait()
            assert codes == [0, 0], output
            break
        world.kill(None if dice.random() < 0.5 else [dice.randrange(2)])
        # A rank that is left ends by itself once it talks to the dead one. What is left after that
        # is ended, as launchers do.
        deadline = time.monotonic() + 3
        while world.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        world.kill()
        moments[moment(run)] += 1
        catalog = LocalCatalog(RunFolder(run))
        for step in catalog.steps():
            if (catalog.folder(step) / MANIFEST).exists():
                catalog.verify(step)
        assert saved(run) >= before
        assert "starts at step 0" not in world.log.read_text() or before == 0, "a start from zero"
    finish(run, *options)
    return moments


def saved(run: Path) -> int:
    path = run / "checkpoints" / PUBLISHED
    return int(path.read_text()) if path.exists() else 0
