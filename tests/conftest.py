"""What tests share: small real images, a tokenizer, token data sets. No GPU, no network."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw

from data_pipeline.images.view_recipe import ViewRecipe
from model.config import TokenizerConfig
from model.vq import VQTokenizer
from model.weights import save_network
from tests.datasets import tokenize
from tests.fast import mark_fast_tests
from tests.s3_server import FaultProxy, client, environment, s3_server
from tests.web_server import WebServer, web_server

# Idle threads of ranks that share a few cores would spin, and take them from those that work.
# OpenMP reads it when it starts, here and in every process that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The same examples each time: a test that fails by chance says nothing about the change it is run
# for. `pytest --hypothesis-profile=random` looks for new ones.
settings.register_profile("random", deadline=None, max_examples=1000)
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.load_profile("fixed")

# They take longest, and begin first: at the end no worker waits for another for long.
_LONGEST = (
    "tests/cluster/demo/test_demo.py",
    "tests/cluster/sharding/test_ray_engine.py",
    "tests/trainer/resilience/test_stopping.py",
    "tests/test_hostile.py",
    "tests/trainer/evaluation/test_evaluate.py",
    "tests/trainer/checkpointing/test_faults.py",
    "tests/trainer/test_resume.py",
    "tests/cluster/commands/test_tokenize.py",
    "tests/test_your_images.py",
)

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_fast_tests(items)
    order = {file: number for number, file in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@pytest.fixture(scope="session")
def schedules() -> dict[str, Any]:
    return json.loads((FIXTURES / "schedules.json").read_text())


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"))


def draw_images(root: Path) -> Path:
    """Draw three classes of 40 shapes each, below `root`, and return it."""
    rng = np.random.default_rng(0)
    for shape in ("ellipse", "rectangle", "line"):
        (root / shape).mkdir(parents=True)
        for i in range(40):
            image = Image.new("RGB", (24, 20), "white")
            box = [*rng.integers(0, 8, 2), *rng.integers(12, 19, 2)]
            color = tuple(int(c) for c in rng.integers(0, 255, 3))
            getattr(ImageDraw.Draw(image), shape)([int(v) for v in box], fill=color)
            image.save(root / shape / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def tokenizer() -> VQTokenizer:
    return fresh_tokenizer()


def fresh_tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    network = VQTokenizer(TokenizerConfig(size="tiny")).eval()  # type: ignore[call-arg]
    torch.nn.init.normal_(network.codebook, std=0.5)
    return network


@pytest.fixture(scope="session")
def tokenizer_file(tokenizer: VQTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tokenizer.safetensors"
    save_network(tokenizer, path)
    return path


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A running S3 server."""
    with s3_server(tmp_path_factory.mktemp("s3") / "data") as port:
        yield port


@pytest.fixture
def proxy(s3_port: int) -> Iterator[FaultProxy]:
    """A proxy in front of that server, which makes no faults until it is told to."""
    proxy = FaultProxy(s3_port)
    yield proxy
    proxy.close()


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The url of an empty bucket, whose server this process's environment names."""
    for name, value in environment(s3_port).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client(s3_port).create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A web server, which serves nothing until it is told to. A request is tried three times."""
    monkeypatch.setenv("ADDP_HTTP_ATTEMPTS", "3")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with web_server() as server:
        yield server


@pytest.fixture(scope="session")
def tokens(images: Path, tokenizer: VQTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token data set of the training images: several shards, with three views of each image."""
    out = tmp_path_factory.mktemp("tokens") / "train"
    tokenize(images, out, tokenizer, ViewRecipe(size=16, views=3), rows=32, split="train")
    return out


@pytest.fixture(scope="session")
def held_out_tokens(
    images: Path, tokenizer: VQTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "val"
    tokenize(images, out, tokenizer, ViewRecipe.center(16), split="val")
    return out


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the corruption matrix and the kills, as this run has tested them."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    rows = [
        (value, r.outcome)
        for r in reports
        for key, value in r.user_properties
        if key == "corruption"
    ]
    if rows:
        terminalreporter.section("corruption matrix")
        for (fault, place, outcome), result in rows:
            terminalreporter.line(
                f"{fault:36s} {place:12s} {outcome}" + ("" if result == "passed" else "  FAILED")
            )
    chaos = [value for r in reports for key, value in r.user_properties if key == "chaos"]
    if chaos:
        terminalreporter.section("kills")
        for stage, runs, moments in chaos:
            fell = ", ".join(f"{count} {moment}" for moment, count in sorted(moments.items()))
            terminalreporter.line(
                f"ZeRO-{stage}: {sum(moments.values())} kills in {runs} runs: {fell}"
            )
