"""Sharding jobs as a user runs them: commands in processes of their own, which may be killed at any
moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.storage import Store, open_store
from tests.patience import PATIENCE, until
from tests.warm import warm_python

Environment = dict[str, str]


def command(*arguments: str) -> list[str]:
    return [warm_python(), "-m", "cluster.cli", "tokenize", *map(str, arguments)]


def tokenize(*arguments: str, env: Environment | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
        timeout=PATIENCE,
    )


def succeed(*arguments: str, env: Environment | None = None) -> dict[str, Any]:
    done = tokenize(*arguments, "--json", env=env)
    assert done.returncode == 0, done.stderr + done.stdout
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def contents(store: Store) -> dict[str, bytes]:
    return {entry.name: store.read(entry.name) for entry in store.list()}


def visible_shards_are_whole(store: Store, whole: dict[str, bytes]) -> None:
    """Whatever can be seen under a final name is final: shards, parts, plan and manifest."""
    for entry in store.list():
        assert store.read(entry.name) == whole[entry.name], entry.name


def run_with_kills(
    arguments: list[str],
    store: Store,
    whole: dict[str, bytes],
    chance: random.Random,
    span: float,
    env: Environment | None = None,
    most_kills: int = 4,
) -> int:
    """Start the job, SIGKILL its whole process group at a random moment within `span` seconds of
    its first object, and again, until one is let through. Returns the number of kills that hit a
    running job."""
    kills = 0
    for _ in range(most_kills):
        before = sum(1 for _ in store.list())
        process = subprocess.Popen(
            command(*arguments),
            env={**os.environ, **(env or {})},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(partial(_has_begun, process, store, before))
        time.sleep(chance.uniform(0, span))
        if process.poll() is None:
            kills += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        visible_shards_are_whole(store, whole)
    return kills


def _has_begun(process: subprocess.Popen[bytes], store: Store, before: int) -> bool:
    """Whether a job has added to the objects of before, or has ended."""
    return process.poll() is not None or sum(1 for _ in store.list()) > before


def plan(
    images: Path, out: str, weights: Path, rows: int, env: Environment | None = None
) -> dict[str, Any]:
    """Plan a job of two views an image."""
    words = ("--tokenizer", str(weights), "--views", "2", "--rows", str(rows))
    return succeed("plan", str(images), out, *words, env=env)


def undisturbed(
    images: Path, out: str, weights: Path, rows: int, env: Environment | None = None
) -> dict[str, bytes]:
    """Plan, run, finalize; every object by its name."""
    plan(images, out, weights, rows, env)
    succeed("run", out, "--tokenizer", str(weights), "--finalize", env=env)
    return contents(open_store(out))
