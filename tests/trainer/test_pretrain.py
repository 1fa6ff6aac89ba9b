"""Whole runs: the real launcher, the real engine, two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import load_network, save_network
from tests.trainer.launching import MAGE, kill_group, start, train, wait_for
from trainer.run_folder import RunFolder


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def losses(run: Path) -> list[float]:
    rows = RunFolder(run).read_metrics()
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, output = train(run, *MAGE, f"data.tokens={tokens}")
    assert code == 0, output
    return run


def test_a_run_leaves_what_it_promises(undisturbed: Path) -> None:
    folder = RunFolder(undisturbed)
    assert folder.is_done and json.loads((undisturbed / "done.json").read_text())["step"] == 12
    assert {p.name for p in folder.checkpoints.iterdir()} == {"step-00000004", "step-00000008", "step-00000012"}
    assert isinstance(load_network(folder.network, "predictor"), TokenPredictor)
    rows = folder.read_metrics()
    assert len(rows) == 12 and all(math.isfinite(row["loss"]) and row["images_per_second"] > 0 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert list(folder.tensorboard.iterdir()) and (undisturbed / "config.resolved.yaml").exists()
    assert json.loads((undisturbed / "environment.json").read_text())["world_size"] == 2


def test_killed_and_resumed_it_ends_bit_for_bit_the_same(undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    """With dropout on, and accumulation of two micro batches."""
    run = tmp_path / "killed"
    process = start(run, *MAGE, f"data.tokens={tokens}")
    wait_for(run / "checkpoints" / "step-00000004", process)
    kill_group(process)
    process.wait()
    assert not RunFolder(run).is_done
    code, output = train(run, *MAGE, f"data.tokens={tokens}")
    assert code == 0 and "resumed at step" in output, output
    assert same_weights(RunFolder(run).network, RunFolder(undisturbed).network)
    assert losses(run) == losses(undisturbed)


def test_one_rank_sees_the_same_batches(undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    """Without dropout the loss path depends on the world size by rounding only."""
    paths = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        code, output = train(run, *MAGE, f"data.tokens={tokens}", "predictor.sizes.dropout=0", processes=processes)
        assert code == 0, output
        paths.append(losses(run))
    assert paths[0] == pytest.approx(paths[1], rel=1e-4)
    assert paths[0] != losses(undisturbed)


def test_a_damaged_checkpoint_is_gone_round_with_its_reason(undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "damaged"
    shutil.copytree(undisturbed, run)
    (run / "done.json").unlink()
    newest = run / "checkpoints" / "step-00000012" / "engine" / "mp_rank_00_model_states.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    code, output = train(run, *MAGE, f"data.tokens={tokens}")
    assert code == 0, output
    assert "refused a checkpoint: step-00000012: engine/mp_rank_00_model_states.pt is damaged" in output
    assert "resumed at step 8 of 12" in output
    assert same_weights(RunFolder(run).network, RunFolder(undisturbed).network)

    (run / "done.json").unlink()
    for manifest in (run / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("{}")
    code, output = train(run, *MAGE, f"data.tokens={tokens}")
    assert code != 0 and "but none is valid" in output and "resumed" not in output and "starts at" not in output


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_addp_trains(
    precision: str, tokens: Path, tokenizer: VQTokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    geometry = Geometry.of(tokenizer.config)
    predictor = TokenPredictor(geometry, TransformerConfig(size="tiny"))  # type: ignore[call-arg]
    save_network(predictor, tmp_path / "predictor.safetensors")
    code, output = train(
        tmp_path / "addp", "objective=addp", "addp.sizes.size=tiny", "tokenizer.sizes.size=tiny",
        "predictor.sizes.size=tiny", f"tokenizer.weights={tokenizer_file}", f"data.tokens={tokens}",
        f"predictor.weights={tmp_path / 'predictor.safetensors'}", f"precision={precision}",
    )  # fmt: skip
    assert code == 0, output
    assert isinstance(load_network(tmp_path / "addp" / "network.safetensors", "addp"), ADDP)
    path = losses(tmp_path / "addp")
    assert path[-1] < path[0]
    manifest = json.loads((tmp_path / "addp" / "checkpoints" / "step-00000012" / "manifest.json").read_text())
    assert set(manifest["frozen"]) == {"tokenizer", "predictor"}
    assert not any("tokenizer" in name for name in manifest["files"])


def test_the_tokenizer_trains_and_resumes_exactly(pictures: Path, tmp_path: Path) -> None:
    options = (
        "objective=tokenizer", "tokenizer.sizes.size=tiny", f"data.pictures={pictures}", "data.views.size=16",
        "precision=fp32", "tokenizer_loss.revive_every=3",
    )  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, output = train(whole, *options)
    assert code == 0, output
    process = start(killed, *options)
    wait_for(killed / "checkpoints" / "step-00000004", process)
    kill_group(process)
    process.wait()
    code, output = train(killed, *options)
    assert code == 0 and "resumed at step" in output, output
    assert same_weights(whole / "network.safetensors", killed / "network.safetensors")


def test_mistakes_are_one_paragraph(undisturbed: Path, tokens: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    """Each with a non-zero exit, before any training. One process each: the messages are the same."""
    geometry = Geometry(image_size=16, patch_size=4, codebook_size=16)
    save_network(TokenPredictor(geometry, TransformerConfig(size="tiny")), tmp_path / "p.safetensors")  # type: ignore[call-arg]
    torch.manual_seed(5)
    other = VQTokenizer(load_network(tokenizer_file, "tokenizer").config)  # type: ignore[arg-type]
    save_network(other, tmp_path / "other.safetensors")
    addp = ("objective=addp", "addp.sizes.size=tiny", "predictor.sizes.size=tiny", "tokenizer.sizes.size=tiny")
    data = f"data.tokens={tokens}"
    cases = [
        ([*MAGE, data, "batch.micro=3"], "batch.micro would work with"),
        ([*MAGE, "data.tokens=/nowhere"], "is no finished token data set"),
        ([*MAGE, data, "predictor.sizes.dim=64"], "belongs to another run"),
        ([*addp, data, "tokenizer.weights=/nowhere.safetensors"], "objective addp needs predictor.weights"),
        (
            [
                *addp,
                data,
                f"tokenizer.weights={tmp_path / 'other.safetensors'}",
                f"predictor.weights={tmp_path / 'p.safetensors'}",
            ],
            "was made by another tokenizer",
        ),
    ]
    for overrides, words in cases:
        run = undisturbed if "another run" in words else tmp_path / "new"
        code, output = train(run, *overrides, processes=2 if run == undisturbed else 1)
        assert code != 0 and words in output, output
        assert "error: " in output
        assert "Traceback" not in output.split("error: ")[0]
        assert not (tmp_path / "new" / "checkpoints").exists()
