"""Evaluation of checkpoints while a run goes on: each once, whole, whoever is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.shards.manifest import read_manifest
from data_pipeline.storage import LocalStore, open_store
from model.errors import ConfigError
from model.vq import VQTokenizer
from tests.patience import PATIENCE, until
from tests.s3_server import FaultProxy, environment
from tests.trainer.evaluation.conftest import addp_options
from tests.trainer.evaluation.evaluating import QUICK, codes, kill, start, without_maker
from tests.trainer.launching import warm_launcher
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import Ranks, World
from trainer.command import run_command
from trainer.config.reading import load_config
from trainer.evaluation.assignments import Request
from trainer.evaluation.evaluate import main
from trainer.evaluation.options import EvaluationOptions, WhichCheckpoints
from trainer.evaluation.requested import check
from trainer.evaluation.results import read_results

SUITE = ("--suite", "samples,proxy,knn,linear", "--reference", "held-out")


def copy_of(run: Path, target: Path) -> Path:
    """Without its evaluations."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("evaluation", ".tmp"))
    return target


@pytest.fixture(scope="session")
def undisturbed(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every checkpoint of a run, by one evaluator that nothing happens to."""
    folder = copy_of(run, tmp_path_factory.mktemp("undisturbed") / "run")
    log = folder.parent / "log"
    ranks = start(folder, log, *SUITE, "--every", "1", "--images", str(images), "--baselines")
    assert codes(ranks) == [0], log.read_text()
    return folder


def test_every_checkpoint_has_every_metric(undisturbed: Path) -> None:
    results = read_results(LocalStore(undisturbed))
    assert [(r.step, r.benchmark) for r in results] == [
        (step, name) for step in (4, 8, 12) for name in ("knn", "linear", "proxy", "samples")
    ]
    metrics = {r.benchmark: r.metrics for r in results if r.step == 12}
    assert metrics["proxy"].keys() >= {"efficientnet_frechet_distance", "efficientnet_precision"}
    assert not any("fid" in key.lower() or "inception" in key for key in metrics["proxy"])
    assert (
        metrics["proxy"]["efficientnet_frechet_distance"] > 1
        and metrics["proxy"]["reference_images"] > 5
    )
    assert {
        "top1_k10",
        "untrained_top1_k10",
        "pixels_top1_k10",
        "majority_class",
        "images",
    } <= metrics["knn"].keys()
    assert metrics["linear"]["top1"] > metrics["linear"]["majority_class"]
    step = undisturbed / "evaluation" / "step-00000012"
    assert sorted(p.name for p in step.glob("*.png")) == [
        "samples-real.png",
        "samples-steps.png",
        "samples.png",
    ]
    assert not (step / "samples").exists() and not list(
        (undisturbed / "evaluation" / "claims").iterdir()
    )


def test_two_ranks_of_the_launcher_find_the_same(
    run: Path, undisturbed: Path, images: Path, tmp_path: Path
) -> None:
    folder = copy_of(run, tmp_path / "run")
    arguments = [str(folder), *QUICK, *SUITE, "--images", str(images), "--baselines"]
    command = warm_launcher(2, "trainer.evaluation.evaluate", arguments)
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours = without_maker(read_results(LocalStore(folder)))
    theirs = [r for r in without_maker(read_results(LocalStore(undisturbed))) if r.step == 12]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.metrics == pytest.approx(other.metrics, rel=1e-4)  # float32, other threads
        assert mine.model_copy(update={"metrics": {}}) == other.model_copy(update={"metrics": {}})


def test_ranks_divide_the_list_of_the_first(run: Path, images: Path, tmp_path: Path) -> None:
    """Hosts see another state of shared storage; divided by lists of their own, the metrics would
    be of neither."""
    folder, log = copy_of(run, tmp_path / "run"), tmp_path / "log"
    hidden = Sabotage(rank=1, unlisted=(next(images.glob("*/*")).name,))
    options = ("--suite", "knn", "--images", str(images), "--held-out", "0.5")
    assert codes(start(folder, log, *options, world_size=2, sabotage=hidden)) == [0, 0], (
        log.read_text()
    )
    alone = copy_of(run, tmp_path / "alone")
    assert codes(start(alone, log, *options)) == [0], log.read_text()
    expected = [result.metrics for result in read_results(LocalStore(alone))]
    assert [result.metrics for result in read_results(LocalStore(folder))] == expected != []


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.long)])
def test_two_evaluators_that_are_killed(
    kills: int, run: Path, undisturbed: Path, images: Path, tmp_path: Path
) -> None:
    """Each is killed so many times, at random; what they leave is what an undisturbed one
    leaves."""
    folder, dice = copy_of(run, tmp_path / "run"), random.Random(kills)
    options = (*SUITE, "--every", "1", "--images", str(images), "--baselines")
    evaluators = [start(folder, tmp_path / f"log{i}", *options) for i in range(2)]
    left = [kills, kills]
    while any(left):
        time.sleep(dice.uniform(0.1, 1.2))
        chosen = dice.choice([i for i in range(2) if left[i]])
        kill(evaluators[chosen])
        left[chosen] -= 1
        for result in (folder / "evaluation").glob("step-*/*.json"):
            json.loads(result.read_text())  # never half of one
        evaluators[chosen] = start(folder, tmp_path / f"log{chosen}", *options)
    for i in range(2):
        assert codes(evaluators[i]) == [0], (tmp_path / f"log{i}").read_text()
    results, expected = read_results(LocalStore(folder)), read_results(LocalStore(undisturbed))
    assert without_maker(results) == without_maker(expected)
    for name in ("samples.png", "samples-steps.png"):
        paths = [f / "evaluation" / "step-00000008" / name for f in (folder, undisturbed)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_following_a_run_on_a_store(
    tokens: Path,
    tokenizer: VQTokenizer,
    tokenizer_file: Path,
    images: Path,
    bucket: str,
    proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From before its first checkpoint to its end, with no copy of its folder, and with an outage
    of the store; then nothing is done again."""
    upload, log = f"{bucket}/followed", tmp_path / "log"
    options = (
        "--follow",
        "--suite",
        "knn,samples",
        "--images",
        str(images),
        "--work",
        str(tmp_path / "work"),
    )
    direct = os.environ["AWS_ENDPOINT_URL_S3"]
    for name, value in environment(proxy.port, AWS_MAX_ATTEMPTS="1").items():
        monkeypatch.setenv(name, value)
    ranks = start(upload, log, *options)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", direct)
    world = World(
        tmp_path / "run",
        [
            *addp_options(tmp_path, tokenizer, tokenizer_file, tokens),
            f"checkpoint.upload={upload}",
            "checkpoint.permanent_every=4",
            "checkpoint.keep=1",
        ],
        1,
        None,
    )
    running = ranks[0].is_alive
    until(lambda: read_results(open_store(upload)), alive=running, said=log.read_text, pause=0.05)
    proxy.refuse = True
    assert world.wait().codes == [0]
    until(lambda: "tries again" in log.read_text(), alive=running, said=log.read_text)
    proxy.heal()
    assert codes(ranks) == [0], log.read_text()
    assert "tries again" in log.read_text()
    results = read_results(open_store(upload))
    assert [(r.step, r.benchmark) for r in results] == [
        (s, p) for s in (4, 8, 12) for p in ("knn", "samples")
    ]
    assert codes(start(upload, log, *options)) == [0]
    assert read_results(open_store(upload)) == results


@pytest.mark.parametrize("refused", ["run", "images"])
def test_credentials_that_are_refused_are_not_waited_for(
    refused: str,
    run: Path,
    bucket: str,
    s3_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the run's store, and those of the images'."""
    folder, log = copy_of(run, tmp_path / "run"), tmp_path / "log"
    for name, value in environment(s3_port, AWS_SECRET_ACCESS_KEY="wrong-secret").items():
        monkeypatch.setenv(name, value)
    names = (f"{bucket}/run",) if refused == "run" else (folder, "--images", f"{bucket}/images")
    assert codes(
        start(names[0], log, "--follow", *map(str, names[1:]), "--work", str(tmp_path / "work"))
    ) == [74]
    text = log.read_text()
    assert (
        "check the credentials" in text and "tries again" not in text and "wrong-secret" not in text
    )


def evaluate_and_count(arguments: list[str]) -> int:
    """How often a folder of images was listed is its last line."""
    listed = []

    def hook(event: str, details: tuple[object, ...]) -> None:
        if event == "os.scandir" and str(details[0]).endswith("/line"):
            listed.append(event)

    sys.addaudithook(hook)
    sys.argv = ["evaluate", *arguments]
    try:
        run_command(main)
    finally:
        print(f"listed {len(listed)} times", flush=True)
    return 0


def test_the_published_reference_is_every_image(run: Path, images: Path, tmp_path: Path) -> None:
    """Listed once a checkpoint. A result of the other protocol, which earlier versions had, is not
    taken for it."""
    folder, log = copy_of(run, tmp_path / "run"), tmp_path / "log"
    options = ["--suite", "proxy,knn", "--checkpoint", "12", "--images", str(images)]
    done = Ranks(evaluate_and_count, [str(folder), *QUICK, *options], 1, log).wait()
    assert done.codes == [0] and "listed 1 times" in done.output, done.output
    knn, proxy = read_results(LocalStore(folder))
    assert proxy.metrics["reference_images"] == 120 and proxy.settings["reference"] == "published"
    assert (
        knn.metrics["images"] < 20
        and "held_out" in knn.settings
        and "held_out" not in proxy.settings
    )

    file = folder / "evaluation" / "step-00000012" / "proxy.json"
    document = json.loads(file.read_text())
    del document["settings"]["reference"]
    file.write_text(json.dumps(document))
    done = Ranks(evaluate_and_count, [str(folder), *QUICK, *options], 1, log).wait()
    assert done.codes == [78] and "reference: 'held-out' there, now 'published'" in done.output, (
        done.output
    )


def test_classes_of_training_images_that_stand_apart_are_matched_by_name(
    run: Path, images: Path, tmp_path: Path
) -> None:
    """Held-out images that lack the first class, whose labels therefore begin one earlier."""
    every, some = tmp_path / "every", tmp_path / "some"
    for held_out in (every, some):
        for name in ("line", "rectangle"):
            shutil.copytree(images / name, held_out / name)
    (every / "ellipse").mkdir()
    found = []
    for held_out in (every, some):
        folder, log = copy_of(run, tmp_path / f"of-{held_out.name}"), tmp_path / "log"
        options = ("--suite", "knn", "--images", str(held_out), "--train-images", str(images))
        assert codes(start(folder, log, *options)) == [0], log.read_text()
        found.append(read_results(LocalStore(folder))[0].metrics)
    assert found[0] == found[1] and found[0]["majority_class"] < 1
    (some / "line").rename(some / "wave")
    assert codes(start(copy_of(run, tmp_path / "unknown"), log, *options)) == [78]
    assert "the training images have no class 'wave' of the data, but ellipse," in log.read_text()


def test_a_damaged_checkpoint_is_left_out(run: Path, images: Path, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path / "run")
    file = next((folder / "checkpoints" / "step-00000008").glob("rank-*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    ranks = start(
        folder, tmp_path / "log", "--every", "1", "--images", str(images), "--weights", "ema"
    )
    assert codes(ranks) == [0]
    assert "step 8 is left out" in (tmp_path / "log").read_text()
    results = read_results(LocalStore(folder))
    assert [(r.step, r.weights) for r in results] == [(4, "ema"), (12, "ema")]


def test_asked_to_stop_while_it_waits(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(run, tmp_path / "run")
    (folder / "done.json").unlink()  # so that more checkpoints are waited for
    monkeypatch.setenv("ADDP_PROGRESS_SECONDS", "0.2")
    (tmp_path / "log").touch()
    (rank,) = start(folder, tmp_path / "log", "--follow", "--images", str(images))
    words = "waiting for a checkpoint: 3 measured"
    until(lambda: words in (tmp_path / "log").read_text(), alive=rank.is_alive)
    rank.terminate()
    assert codes([rank]) == [75], (tmp_path / "log").read_text()
    assert len(read_results(LocalStore(folder))) == 3 and not list(
        (folder / "evaluation" / "claims").iterdir()
    )
    log = (tmp_path / "log").read_text()
    assert (
        all(f"step {step}: knn, benchmark 1 of 1" in log for step in (4, 8, 12))
        and "3 measured stopped after" in log
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--suite", "fid"), "fid needs --inception-weights FILE"),
        (("--suite", "knn,nonsense"), "no such benchmark"),
        (("--suite", "accuracy"), "has the objective addp, which accuracy cannot measure"),
        (("--suite", "knn"), "needs --images"),
        (("--checkpoint", "5"), "no checkpoint of step 5"),
        (("--suite", "held-out"), "need --tokens, a token data set of held-out images"),
    ],
)
def test_mistakes_are_said(
    options: tuple[str, ...], message: str, run: Path, tmp_path: Path
) -> None:
    assert codes(start(run, tmp_path / "log", *options)) == [78]
    assert message in (tmp_path / "log").read_text()


def test_what_a_run_on_a_command_held_out_cannot_be_told(tmp_path: Path) -> None:
    """Its images are named by numbered tars, and the same tars in a folder by their own names."""
    config = load_config(None, ["objective=classify", "data.images=pipe:cat x.tar"])
    (tmp_path / "config.resolved.yaml").write_text(config.model_dump_json())
    places = {"which": WhichCheckpoints(), "weights": "raw", "work": tmp_path, "lease": 1.0}

    def asked(**options: object) -> None:
        given = EvaluationOptions(images="x.tar", **options)  # type: ignore[arg-type]
        check(str(tmp_path), Request(["accuracy"], given, **places))  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=r"from a command .* with --held-out 1"):
        asked()
    asked(held_out=1)
    asked(train_images="y.tar")


def test_other_options_do_not_pass_for_the_same(
    undisturbed: Path, images: Path, tmp_path: Path
) -> None:
    options = ("--suite", "samples", "--checkpoint", "12", "--count", "25")
    assert codes(start(undisturbed, tmp_path / "log", *options)) == [78]
    assert "count: 16 there, now 25" in (tmp_path / "log").read_text()


def test_data_count_by_content(undisturbed: Path, images: Path, tmp_path: Path) -> None:
    """The same images by another name are the same result; others by the same name are not. A
    result of an older version, which says the name only, is held to it."""
    folder, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(undisturbed, folder)
    shutil.copytree(images, moved)
    options = ("--suite", "knn", "--checkpoint", "12", "--baselines", "--images")
    before = read_results(LocalStore(folder))
    assert codes(start(folder, tmp_path / "log", *options, f"{tmp_path}/./moved/")) == [0], (
        tmp_path / "log"
    ).read_text()
    assert read_results(LocalStore(folder)) == before

    (moved / "line" / "000.png").unlink()
    assert codes(start(folder, tmp_path / "changed", *options, str(moved))) == [78]
    assert (
        f"images: other data there, {images}, than now, {moved}"
        in (tmp_path / "changed").read_text()
    )

    file = folder / "evaluation" / "step-00000012" / "knn.json"
    old = json.loads(file.read_text())
    del old["settings"]["images"]  # which it called pictures
    old["settings"]["pictures"] = old.pop("places")["images"]
    old["settings"]["train_pictures"] = old["settings"].pop("train_images")
    file.write_text(json.dumps(old))
    assert codes(start(folder, tmp_path / "old", *options, str(images))) == [0]
    assert codes(start(folder, tmp_path / "old", *options, f"{images}/")) == [78]
    assert f"images: '{images}' there, now '{images}/'" in (tmp_path / "old").read_text()


def test_what_the_run_says_is_not_asked_for(
    run: Path, tokens: Path, held_out_tokens: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    folder, log = copy_of(run, tmp_path / "run"), tmp_path / "log"
    assert codes(start(folder, log, "--suite", "held-out", "--tokens", str(held_out_tokens))) == [
        0
    ], log.read_text()
    said = (
        f"from the run's configuration: --held-out 0.1, --train-tokens {tokens}, --tokenizer "
        f"{tokenizer_file}"
    )
    assert said in log.read_text()
    (result,) = read_results(LocalStore(folder))
    assert result.settings["train_tokens"] == read_manifest(tokens).fingerprint
    assert (result.locations or {})["train_tokens"] == str(tokens)
    assert 0 < result.metrics["cross_entropy"] < 20
