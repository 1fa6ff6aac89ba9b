"""`load` and what it returns: the networks of any folder of ours, and what their own functions
compute."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import model
from model import ImageModel, SamplingOptions, load
from model.addp import ADDP
from model.config import ConditionalConfig
from model.errors import ConfigError, DataError, WeightsError
from model.pictures import squares
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import load_network, save_network
from tests.model.networks_on_disk import save_networks

FEW = SamplingOptions(steps=3)
UNTOLD = SamplingOptions(steps=3, class_guidance=0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_networks(tmp_path_factory.mktemp("networks") / "run")


@pytest.fixture(scope="module")
def loaded(run: Path) -> ImageModel:
    return load(run)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))


def same(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a, b) for a, b in zip(one, other, strict=True)
    )


def test_every_folder_of_networks_is_found(run: Path, tmp_path: Path) -> None:
    """A run's, its file alone, that of an import, that of an export without the predictor."""
    beside = {
        kind: run.parent / f"frozen-{kind}.safetensors" for kind in ("tokenizer", "predictor")
    }
    for name, kinds in (("addp", ("tokenizer", "predictor")), ("model", ("tokenizer",))):
        (tmp_path / name).mkdir()
        shutil.copy(run / "network.safetensors", tmp_path / name / f"{name}.safetensors")
        for kind in kinds:
            shutil.copy(beside[kind], tmp_path / name / f"{kind}.safetensors")
    shutil.copy(run / "network.safetensors", tmp_path / "alone.safetensors")
    pictures = []
    for path, predictor, named in (
        (run, True, {}),
        (run / "network.safetensors", True, {}),
        (tmp_path / "addp", True, {}),
        (tmp_path / "model", False, {}),
        (tmp_path / "alone.safetensors", True, beside),
    ):
        found = load(path, **named)  # type: ignore[arg-type]
        assert not found.network.training and not found.tokenizer.training
        assert (found.predictor is not None) == predictor
        pictures.append(found.generate(2, sampling=FEW))
    assert all(same(pictures[0], others) for others in pictures)


def test_features_need_the_network_alone(run: Path, tmp_path: Path, photo: Image.Image) -> None:
    shutil.copy(run / "network.safetensors", tmp_path)
    shutil.copy(run / "config.resolved.yaml", tmp_path)
    config = (tmp_path / "config.resolved.yaml").read_text()
    (tmp_path / "config.resolved.yaml").write_text(config.replace("frozen-", "gone-"))
    alone = load(tmp_path)
    assert alone.embed(photo).shape == (1, 32)
    with pytest.raises(ConfigError, match="this needs the tokenizer that the network was trained"):
        alone.tokenize(photo)


def test_what_cannot_be_loaded(run: Path, tmp_path: Path, tokenizer: VQTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"holds no network: none of network.safetensors, model"):
        load(tmp_path)
    with pytest.raises(WeightsError, match="there is no weights file"):
        load(tmp_path / "none.safetensors")
    shutil.copy(run / "config.resolved.yaml", tmp_path)
    with pytest.raises(ConfigError, match=r"is not finished and has no network.safetensors; `addp"):
        load(tmp_path)
    with pytest.raises(WeightsError, match="holds a predictor, but a addp is needed"):
        load(run.parent / "frozen-predictor.safetensors")
    other = VQTokenizer(tokenizer.config.model_copy(update={"image_size": 32}))
    save_network(other, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"was made for .*image_size=32"):
        load(run, tokenizer=tmp_path / "other.safetensors")


def test_it_computes_what_the_networks_compute(loaded: ImageModel, photo: Image.Image) -> None:
    pixels = squares([photo], 16)
    with torch.inference_mode():
        features, ids = loaded.network.encode(pixels)[:, 1:], loaded.tokenizer.encode(pixels)
    assert np.array_equal(loaded.embed(photo, patches=True), features)
    assert np.array_equal(loaded.embed(photo), features.mean(1))
    assert np.array_equal(loaded.tokenize(photo), ids)
    many = [photo] * 65 + [Image.new("RGB", (9, 40), "red")]  # more than are computed together
    embedded = loaded.embed(many)
    assert embedded.shape == (66, 32) and np.allclose(embedded[:65], embedded[0], atol=1e-5)
    assert not np.allclose(embedded[65], embedded[0], atol=1e-3)
    assert same(loaded.decode(ids[0]), loaded.decode(ids.numpy().astype(np.uint16)))
    for wrong, said in (
        (ids[:, 1:], "16 of them"),
        (ids + 16, "whole numbers from 0 to 15"),
        (ids / 2, "whole numbers from 0 to 15"),
    ):
        with pytest.raises(DataError, match=said):
            loaded.decode(wrong)


def test_pictures_depend_on_the_seed_and_their_number(loaded: ImageModel) -> None:
    made = loaded.generate(66, sampling=FEW)
    again = loaded.generate(2, start=63, sampling=FEW)
    apart = [
        np.asarray(a, int) - np.asarray(b, int) for a, b in zip(made[63:], again, strict=False)
    ]
    assert np.abs(apart).max() <= 1  # the last bit, with the number that is computed together
    assert not same(made[:2], loaded.generate(2, seed=1, sampling=FEW))
    assert len(made) == 66 and made[0].size == (16, 16)


def test_edits(loaded: ImageModel, photo: Image.Image) -> None:
    completed = loaded.complete(photo, "right", count=3, sampling=FEW)
    assert same(completed, loaded.complete(photo, "right", count=3, sampling=FEW))
    half = np.zeros((20, 24), bool)
    half[:, 12:] = True
    blanked = np.where(half[..., None], 0, np.asarray(photo)).astype(np.uint8)
    assert same(completed, loaded.complete(blanked, half, count=3, sampling=FEW))
    assert len(completed) == 3 and not same(completed[:1], completed[1:2])
    other = Image.new("RGB", (30, 30), "green")
    frames = loaded.interpolate(photo, other, frames=3, sampling=FEW)
    assert len(frames) == 3 and frames[0].size == (16, 16)
    with pytest.raises(DataError, match="nothing between them"):
        loaded.interpolate(photo, photo)


def test_many_completions_are_computed_as_many_samples_are(
    loaded: ImageModel, photo: Image.Image
) -> None:
    """At most 64 together; those of the second batch are others than those of the first."""
    together: list[int] = []
    hook = loaded.network.decoder_norm.register_forward_hook(
        lambda _module, _given, features: together.append(len(features))
    )
    many = loaded.complete(photo, "right", count=66, sampling=FEW)
    hook.remove()
    assert set(together) == {64, 2}
    assert len(many) == 66 and len({image.tobytes() for image in many[:2] + many[64:]}) == 4


def test_the_package_itself_has_no_other_names() -> None:
    assert set(model.__all__) == {"ImageModel", "SamplingOptions", "load"}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        model.nonsense  # noqa: B018


def test_pictures_of_classes(run: Path, tmp_path: Path, photo: Image.Image) -> None:
    """By name, by number, or all of them in turn. Other networks say that they know none."""
    shutil.copy(run / "config.resolved.yaml", tmp_path)
    network = load_network(run / "network.safetensors", "addp")
    assert isinstance(network, ADDP)
    sizes = ConditionalConfig(**network.config.model_dump(), classes=("cat", "dog"))
    conditional = ADDP(network.geometry, sizes)
    conditional.load_state_dict(network.state_dict())
    save_network(conditional, tmp_path / "network.safetensors")
    loaded = load(tmp_path)
    assert loaded.classes == ("cat", "dog")
    guided = SamplingOptions(steps=3, class_guidance=3.0)
    pictures = loaded.generate(3, classes=["dog", 0], sampling=guided)
    assert same(pictures[1:], loaded.generate(2, start=1, classes=["dog", "cat"], sampling=guided))
    assert same(loaded.generate(2, sampling=FEW), loaded.generate(2, classes=[0, 1], sampling=FEW))
    assert not same(pictures, loaded.generate(3, classes=["dog"], sampling=guided))
    without = loaded.generate(2, classes="none", sampling=FEW)
    assert same(without, load(run).generate(2, sampling=FEW))
    completed = [
        loaded.complete(photo, "right", count=1, classes=c, sampling=guided)
        for c in ("none", "cat", "dog")
    ]
    assert same(completed[0], loaded.complete(photo, "right", count=1, sampling=guided))
    assert not same(completed[0], completed[1]) and not same(completed[1], completed[2])
    assert loaded.predictor is not None
    knowing = TokenPredictor(network.geometry, sizes).eval()
    knowing.load_state_dict(loaded.predictor.state_dict())
    slots: list[int] = []  # what the predictor reads in the class slot
    knowing.token_emb.register_forward_hook(lambda _, given, __: slots.append(int(given[0][0, 0])))
    beside = ImageModel(loaded.network, loaded.tokenizer, knowing)
    for c, sampling in (("none", FEW), ("dog", FEW), ("dog", UNTOLD)):
        beside.complete(photo, "right", count=1, classes=c, sampling=sampling)
    empty = network.geometry.class_slot_id
    assert slots == [empty, 16 + 1, empty]
    with pytest.raises(ConfigError, match="knows no class 'bird'; its classes are cat, dog, or"):
        loaded.generate(1, classes=["bird"])
    with pytest.raises(ConfigError, match="trained without a condition"):
        load(run).generate(1, classes=["cat"])
