"""A rank that reads its slice of each step and records what it read: URL LOG RANK RANKS STEPS
CACHE."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from data_pipeline.streaming.loader import LoaderOptions, TokenLoader

BATCH = 40


def main() -> None:
    url, log, rank, ranks, steps, cache = sys.argv[1:]
    reader = TokenLoader(
        url, global_batch=BATCH, seed=0, options=LoaderOptions(window=2, cache=Path(cache))
    )
    count = BATCH // int(ranks)
    offset = int(rank) * count
    with Path(log).open("a+") as file:
        file.seek(0)
        done = sum(1 for _ in file)
        for step in range(done, int(steps)):
            batch = reader.batch(step, offset, count)
            positions = list(range(offset, offset + count))
            file.write(
                json.dumps({"step": step, "positions": positions, "labels": batch.labels.tolist()})
                + "\n"
            )
            file.flush()
            time.sleep(0.005)  # what the network would take
    reader.close()


main()
