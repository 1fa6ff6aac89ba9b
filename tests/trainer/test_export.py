"""A run's network for other programs: what is written is what was trained."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.commands.weights import import_weights
from model.addp import ADDP
from model.config import ConditionalConfig, Geometry, TransformerConfig
from model.errors import ConfigError
from model.vq import VQTokenizer
from model.weights import load_network
from tests.trainer.evaluation.conftest import addp_options
from tests.trainer.worlds import finish
from tests.warm import warm_python
from trainer.config.schema import RunConfig
from trainer.evaluation.trained import frozen_predictor, load_addp, run_config
from trainer.export import Source, export, model_card, open_network
from trainer.formats import Format

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(
    tokens: Path, tokenizer, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    finish(
        folder / "run", *addp_options(folder, tokenizer, tokenizer_file, tokens), "schedule.total=4"
    )
    return folder / "run"


def test_the_official_layout_comes_back(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    addp = [warm_python(), "-m", "cluster.cli"]
    subprocess.run(
        [*addp, "export", str(run), str(tmp_path / "addp.pth"), "--format", "addp"], check=True
    )
    done = subprocess.run(
        [*addp, "import", str(tmp_path / "addp.pth"), str(tmp_path / "in")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count('"kind"') == 3 and "assumed" not in done.stderr
    before, after = (
        load_file(run / "network.safetensors"),
        load_file(tmp_path / "in" / "addp.safetensors"),
    )
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    config = run_config(str(run))
    for kind, section in (
        ("addp", config.addp),
        ("predictor", config.predictor),
        ("tokenizer", config.tokenizer),
    ):
        assert load_network(tmp_path / "in" / f"{kind}.safetensors", kind).config == section.sizes
    # what the file does not say is named where it is printed
    torch.save(
        {"model": torch.load(tmp_path / "addp.pth", weights_only=True)["model"]},
        tmp_path / "bare.pth",
    )
    sizes = {"heads": 2, "decoder_heads": 2, "predictor_heads": 2, "predictor_decoder_heads": 2}
    import_weights(tmp_path / "bare.pth", tmp_path / "bare", **sizes)
    assert capsys.readouterr().err.startswith(
        "norm_groups of the tokenizer is not in bare.pth; assumed 32"
    )
    # and what came in goes out again
    again = open_network(str(tmp_path / "in" / "addp.safetensors"), None, "raw")
    assert load_file(export(again, "timm", tmp_path / "vit.safetensors", "drop", None))[
        "cls_token"
    ].shape == (1, 1, 32)


def test_the_model_card_has_no_control_characters(tokenizer: VQTokenizer) -> None:
    tiny = TransformerConfig(size="tiny")  # type: ignore[call-arg]
    sizes = ConditionalConfig(**tiny.model_dump(), classes=("cat", "\x1b[2J\ndog"))
    card = model_card(Source(ADDP(Geometry.of(tokenizer.config), sizes), "run", None, None))
    assert "- classes that it can be asked for: cat, '\\x1b[2J\\ndog'\n" in card


def test_the_model_cards_code_runs(run: Path, tmp_path: Path) -> None:
    folder = export(
        open_network(str(run), 4, "ema"), "huggingface", tmp_path / "card", "drop", None
    )
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "predictor.safetensors",
        "tokenizer.safetensors",
    ]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: addp\n")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    done = subprocess.run(
        [sys.executable, "-c", code[1]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["features (2, 32)", "samples 4 (16, 16)"], done.stderr


def test_float16_keeps_what_it_can_hold(run: Path, tmp_path: Path) -> None:
    """Networks in half of the bytes load as float32, by `addp generate`, too."""
    source = open_network(str(run), None, "raw")
    folder = export(source, "huggingface", tmp_path / "half", "drop", None, "float16")
    before = load_file(run / "network.safetensors")
    stored = [load_file(file) for file in folder.glob("*.safetensors")]
    assert {value.dtype for state in stored for value in state.values()} == {torch.float16}
    trained = load_addp(str(folder))
    loaded = trained.network.state_dict()
    assert all(torch.equal(loaded[key], value.half().float()) for key, value in before.items())
    assert trained.tokenizer.codebook.dtype == torch.float32
    assert frozen_predictor(trained.config) is not None
    vit = export(source, "timm", tmp_path / "vit.safetensors", "drop", None, "float16")
    assert torch.equal(load_file(vit)["cls_token"], before["cls_token"].half())
    source.network.cls_token.data.fill_(1e5)  # type: ignore[union-attr, operator]
    with pytest.raises(ConfigError, match="float16 cannot hold cls_token of the addp"):
        export(source, "native", tmp_path / "large", "drop", None, "float16")
    assert not list(tmp_path.glob("large*"))


@pytest.mark.parametrize("form", ["native", "addp", "timm", "huggingface"])
def test_exports_follow_the_umask(form: Format, run: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for suffix in (".pth", ".safetensors") if form in ("addp", "timm") else ("",):
            export(
                open_network(str(run), None, "raw"), form, tmp_path / f"out{suffix}", "drop", None
            )
    finally:
        os.umask(before)
    modes = {p.relative_to(tmp_path): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert modes and all(
        mode == (0o750 if (tmp_path / p).is_dir() else 0o640) for p, mode in modes.items()
    ), modes


def test_a_run_follows_the_umask(run: Path) -> None:
    """All that it wrote: a colleague reads what the umask lets him read."""
    mask = os.umask(0)
    os.umask(mask)
    wrong = [p for p in run.rglob("*") if p.is_file() and p.stat().st_mode & 0o777 != 0o666 & ~mask]
    assert (
        not wrong
        and (run / "network.safetensors").is_file()
        and (run / "network-ema.safetensors").is_file()
    )


def test_an_export_without_its_predictor_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_network(str(run), None, "raw")
    assert source.config is not None
    gone = source.config.predictor.model_copy(update={"weights": tmp_path / "gone.safetensors"})
    source = source._replace(config=source.config.model_copy(update={"predictor": gone}))
    export(source, "addp", tmp_path / "out.pth", "drop", None)
    assert (
        "gone.safetensors is not on this machine: the file has no token_predictor.*"
        in capsys.readouterr().err
    )


def test_a_run_on_masked_pixels_has_no_frozen_networks(run: Path, tmp_path: Path) -> None:
    """Its network is exported alone, and its card promises no pictures."""
    source = open_network(str(run), None, "raw")
    source = source._replace(config=RunConfig(objective="pixels"))
    folder = export(source, "huggingface", tmp_path / "card", "drop", None)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert "model.generate" not in (folder / "README.md").read_text()
    export(source, "addp", tmp_path / "addp.safetensors", "drop", None)
    import_weights(tmp_path / "addp.safetensors", tmp_path / "in")
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["addp.safetensors"]


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists; give a name that is free"):
        export(open_network(str(run), None, "raw"), "native", tmp_path / "there", "drop", None)
    with pytest.raises(ConfigError, match="no checkpoint of step 3"):
        open_network(str(run), 3, "raw")
