"""Networks from files that a configuration names: what a run begins with, and what stays frozen."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
import torch

from model.config import TokenizerConfig, TokenizerLossConfig
from model.errors import ConfigError, WeightsError
from model.networks import Network, build
from model.official import official_state, write_state
from model.tokenizer_training import TokenizerTraining
from model.vq import VQTokenizer
from model.weights import fingerprint, load_network, save_network
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.worlds import Ranks, finish, run_world
from trainer.checkpointing.catalog import LocalCatalog
from trainer.checkpointing.format import MANIFEST
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.distributed.meeting import join_ranks
from trainer.objectives.addp import load_frozen
from trainer.objectives.initial_weights import given_network, initial_weights, take_initial_weights
from trainer.objectives.registry import make_objective
from trainer.preflight.assumptions import Assumptions
from trainer.preflight.estimates import make_plan
from trainer.run_folder import RunFolder, step_folder
from trainer.startup import same_on_all, takes_initial_weights

TINY = ("tokenizer.sizes.size=tiny", "predictor.sizes.size=tiny", "precision=fp32", *SMALL)
KINDS = {"tokenizer": "tokenizer", "mage": "predictor", "addp": "addp"}


def configured(objective: str, *overrides: str) -> RunConfig:
    """With small networks of all that the objective uses."""
    sizes = ["tokenizer.sizes.size=tiny"]
    sizes += ["predictor.sizes.size=tiny"] if objective in ("mage", "addp") else []
    sizes += ["addp.sizes.size=tiny"] if objective == "addp" else []
    return load_config(
        None, [f"objective={objective}", "precision=fp32", *SMALL, *sizes, *overrides]
    )


def network_of(kind: str, seed: int = 3) -> Network:
    config = configured("addp")
    torch.manual_seed(seed)
    return build(kind, getattr(config, kind).sizes, config.geometry)


def written(network: Network, path: Path) -> Path:
    """A file of ours, or one in the official layout (.pth)."""
    if path.suffix == ".pth":
        write_state(official_state({network.kind: network}), path)
    else:
        save_network(network, path)
    return path


@pytest.mark.parametrize("form", ["ours.safetensors", "official.pth"])
@pytest.mark.parametrize("objective", KINDS)
def test_a_run_begins_with_the_weights_of_its_file(
    objective: str, form: str, tokens: Path, images: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    """But for a run that goes on, which does not read them. Dropout, and how positions started, are
    the run's own."""
    kind = KINDS[objective]
    network = network_of(kind)
    file = written(network, tmp_path / form)
    data = [f"data.images={images}", "data.views.size=16"]
    if objective != "tokenizer":
        data = [
            f"data.tokens={tokens}",
            f"{kind}.sizes.dropout=0.3",
            f"{kind}.sizes.positions=sincos",
        ]
        data += ["output_bias=frequencies"]
    if objective == "addp":
        frozen = written(network_of("predictor"), tmp_path / "frozen.safetensors")
        data += [f"tokenizer.weights={tokenizer_file}", f"predictor.weights={frozen}"]
    config = configured(objective, *data, f"{kind}.weights={file}")
    for fresh in (True, False):
        with closing(make_objective(config, fresh)) as made:
            assert (
                made.initial_weights is not None
                and str(made.initial_weights) == f"{kind}.weights = {file}"
            )
            assert made.initial_weights.fingerprint == (fingerprint(network) if fresh else None)
            assert (fingerprint(made.exported) == fingerprint(network)) is fresh
            assert made.exported.config == getattr(config, kind).sizes


def test_without_a_file_weights_are_random_and_a_classifier_reads_its_encoder_at_every_start() -> (
    None
):
    for objective in (*KINDS, "classify"):
        assert initial_weights(configured(objective)) is None
    assert initial_weights(configured("classify", "addp.weights=here")) is None
    assert initial_weights(configured("addp", "predictor.weights=here")) is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("addp.sizes.heads=4",),
            r"a\.safetensors does not fit addp\.sizes: its heads is 2, not 4; set addp\.sizes to",
        ),
        (
            ("addp.sizes.dim=64", "addp.sizes.depth=3"),
            r"its dim is 32, not 64, its depth is 2, not 3",
        ),
        (("tokenizer.sizes.codebook_size=32",), "was made for"),
        (("addp.weights={predictor}",), "holds a predictor, but a addp is needed"),
        (
            ("addp.weights={official}", "addp.sizes.dim=64"),
            "does not fit the addp of the configured size",
        ),
        (("addp.weights=/none",), "there is no weights file /none"),
    ],
)
def test_weights_that_do_not_fit_are_named_before_a_network_is_made(
    overrides: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    """By rank 0, whose error all raise."""
    files = {"predictor": written(network_of("predictor"), tmp_path / "p.safetensors")}
    files["official"] = written(network_of("addp"), tmp_path / "a.pth")
    mine = written(network_of("addp"), tmp_path / "a.safetensors")
    given = [f"addp.weights={mine}", *(o.format(**files) for o in overrides)]
    config, folder = configured("addp", *given), RunFolder(tmp_path / "run")
    with pytest.raises(WeightsError, match=words):
        takes_initial_weights(config, folder)
    with pytest.raises(WeightsError, match=words):
        take_initial_weights(config, network_of("addp"), True)
    if "/none" not in words:
        with pytest.raises(WeightsError, match=words):
            make_plan(None, _plan(given), [2], Assumptions(images=1000))
    goes_on = folder.checkpoints / step_folder(4)
    goes_on.mkdir(parents=True)
    (goes_on / MANIFEST).touch()
    assert not takes_initial_weights(config, folder)
    upload = configured("addp", *given, f"checkpoint.upload={folder.path}")
    assert not takes_initial_weights(upload, RunFolder(tmp_path / "empty"))


def _plan(given: list[str]) -> list[str]:
    return ["objective=addp", *TINY, "addp.sizes.size=tiny", *given]


def test_a_plan_says_what_the_run_begins_with(tmp_path: Path) -> None:
    file = written(network_of("addp"), tmp_path / "a.safetensors")
    for path in (file, tmp_path / "elsewhere"):
        plan = make_plan(None, _plan([f"addp.weights={path}"]), [2], Assumptions(images=1000))
        assert plan["begins_with"] == f"addp.weights = {path}"


def test_frozen_networks_are_of_the_configured_sizes(tokenizer_file: Path, tmp_path: Path) -> None:
    file = written(network_of("predictor"), tmp_path / "p.safetensors")
    weights = (f"tokenizer.weights={tokenizer_file}", f"predictor.weights={file}")
    frozen = load_frozen(configured("addp", *weights, "predictor.sizes.dropout=0"))
    assert fingerprint(frozen.predictor) == fingerprint(network_of("predictor"))
    with pytest.raises(
        WeightsError, match=r"does not fit predictor\.sizes: its decoder_depth is 1, not 2"
    ):
        load_frozen(configured("addp", *weights, "predictor.sizes.decoder_depth=2"))
    with pytest.raises(
        WeightsError, match=r"does not fit tokenizer\.sizes: its residual_blocks is 1, not 2"
    ):
        given_network(
            configured("addp", *weights, "tokenizer.sizes.residual_blocks=2"), "tokenizer"
        )


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_a_tokenizer_goes_on_with_its_codes(codebook: str, tokenizer: VQTokenizer) -> None:
    """A fresh one takes vectors of its first batch in their place."""
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16)
    for kept in (True, False):
        network = VQTokenizer(TokenizerConfig(size="tiny"))  # type: ignore[call-arg]
        network.load_state_dict(tokenizer.state_dict())
        training = TokenizerTraining(network, TokenizerLossConfig(codebook=codebook), 0)  # type: ignore[arg-type]
        if kept:
            training.keep_codebook(4)
        training(images)
        moved = (
            (network.codebook - tokenizer.codebook).norm() / tokenizer.codebook.norm()
        ).detach()
        assert float(moved) < 0.2 if kept else float(moved) > 0.5
        assert float(training.usage.sum()) == pytest.approx(4 * 16, rel=0.1) or not kept


def _meet(arguments: list[str]) -> int:
    """A rank, with the file that is its own."""
    join_ranks()
    network = load_network(arguments[int(os.environ["RANK"])], "predictor")
    try:
        same_on_all(
            Collectives(),
            RunConfig(),
            {"tokenizer": "alike", "predictor.weights": fingerprint(network)},
        )
    except ConfigError as error:
        print(error, flush=True)
        return 7
    return 0


def test_ranks_whose_files_differ_are_named(tmp_path: Path) -> None:
    files = [
        str(written(network_of("predictor", seed), tmp_path / f"{seed}.safetensors"))
        for seed in (1, 2)
    ]
    assert Ranks(_meet, [files[0], files[0]], 2, tmp_path / "log").wait().codes == [0, 0]
    codes, output = Ranks(_meet, files, 2, tmp_path / "log").wait()
    assert (
        codes == [7, 7]
        and output.count("rank 1 sees other files than rank 0: predictor.weights differ") == 2
    )


def test_a_run_says_what_it_began_with_and_goes_on_without_it(tokens: Path, tmp_path: Path) -> None:
    """The first step's rate is 0, so that its checkpoint holds what the run began with."""
    network = network_of("predictor")
    file = written(network, tmp_path / "p.safetensors")
    options = (
        *MAGE,
        f"data.tokens={tokens}",
        f"predictor.weights={file}",
        "checkpoint.every=1",
        "schedule.total=3",
    )
    run = tmp_path / "run"
    output = finish(run, *options, "zero_stage=3")
    assert (
        f"starts at step 0 of 3 on 2 ranks as run {RunFolder(run).read_identity()['run']}, from "
        in output
    )  # type: ignore[index]
    assert f", from predictor.weights = {file}, fingerprint {fingerprint(network)}\n" in output
    first, _ = LocalCatalog(RunFolder(run)).trained(1, "raw")
    assert fingerprint(first) == fingerprint(network)
    file.unlink()
    output = finish(run, *options, "schedule.total=4", "resume.allow=[schedule.total]", processes=1)
    assert (
        f"predictor.weights = {file} is not read: the run goes on from its own checkpoint" in output
    )
    codes, output = run_world(tmp_path / "new", *options)
    assert (
        codes == [WeightsError.exit_code] * 2
        and output.count(f"there is no weights file {file}") == 2
    ), output
    assert not (tmp_path / "new" / "checkpoints").exists()
