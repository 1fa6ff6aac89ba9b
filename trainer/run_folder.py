"""The run folder and the exit codes: the contract between a run and everything that watches it. Imports no torch.

RUN/
  config.resolved.yaml   the configuration with every key
  environment.json       versions, host, command
  metrics.jsonl          one line every `log_every` steps
  incidents.jsonl        faults, also those that passed; no file where there were none
  tensorboard/
  checkpoints/step-N/    manifest.json (written last), network.safetensors, engine/, rng-*.safetensors
  network.safetensors    the trained network, once the run is complete
  done.json              written last of all: the run is complete
  evaluation/            one JSON file for each evaluation
  samples/               pictures
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from data_pipeline.storage import write_atomically

EXIT_DONE = 0
EXIT_CONFIG = 78
EXIT_NO_VALID_CHECKPOINT = 79


class RunFolder:
    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.incidents = self.path / "incidents.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.network = self.path / "network.safetensors"
        self.evaluation = self.path / "evaluation"
        self.samples = self.path / "samples"
        self._done = self.path / "done.json"

    @property
    def is_done(self) -> bool:
        return self._done.is_file()

    def mark_done(self, content: dict[str, Any]) -> None:
        write_json(self._done, content)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Metric lines; a last line that a kill cut short is left out."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def incident(self, record: dict[str, Any]) -> None:
        """Append a fault, with its time and rank, to incidents.jsonl. May be called by any thread and rank."""
        line = json.dumps({"time": time.time(), "rank": int(os.environ.get("RANK", 0)), **record}) + "\n"
        self.path.mkdir(parents=True, exist_ok=True)
        with self.incidents.open("a") as file:  # one write of a short line: appends do not mix
            file.write(line)

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will do again."""
        kept = [json.dumps(row) for row in self.read_metrics() if row["step"] < step]
        if self.metrics.exists():
            replace_text(self.metrics, "".join(line + "\n" for line in kept))


def replace_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    write_atomically(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    replace_text(path, json.dumps(content, indent=1) + "\n")
