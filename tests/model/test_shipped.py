"""The network that ships: its files, what it makes, and what is said where they are damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.images.openmoji import render
from model import ImageModel, SamplingOptions, load
from model import shipped as module
from model.errors import WeightsError
from model.shipped import CLASSES, SHIPPED
from model.weights import read_state


@pytest.fixture(scope="module")
def shipped() -> ImageModel:
    return load()


def test_half_of_the_bytes_hold_all_of_the_values(shipped: ImageModel) -> None:
    networks = {
        "model": shipped.network,
        "tokenizer": shipped.tokenizer,
        "predictor": shipped.predictor,
    }
    files = {name: SHIPPED / f"{name}.safetensors" for name in networks}
    assert sum(file.stat().st_size for file in files.values()) < 10e6
    for name, network in networks.items():
        assert network is not None and not network.training
        stored, _ = read_state(files[name])
        for key, value in network.state_dict().items():
            assert not value.is_floating_point() or stored[key].dtype == torch.float16
            assert value.dtype != torch.float16 and torch.equal(value, stored[key].to(value.dtype))


def test_its_pictures_show_different_things_on_white(shipped: ImageModel) -> None:
    made = shipped.generate(8, classes="all", seed=0)
    pictures = np.stack([np.asarray(picture) for picture in made]) / 255
    assert pictures.shape == (8, 32, 32, 3)
    assert (pictures.min(-1) > 0.9).mean() > 0.2  # paper
    assert pictures.std((1, 2, 3)).min() > 0.05  # with something on each
    apart = np.abs(pictures[:, None] - pictures).mean((2, 3, 4))
    assert apart[~np.eye(8, dtype=bool)].min() > 0.02
    again = load().generate(8, classes="all")
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))


def test_its_sampler_counts_where_no_other_option_is_given(shipped: ImageModel) -> None:
    folder = load(SHIPPED)  # named, it is a network as any other
    few, clear = SamplingOptions(steps=2), SamplingOptions(steps=2, class_guidance=2, top_p=0.6)
    published = SamplingOptions(steps=2, sampler="published")

    def pixels(of: ImageModel, sampling: SamplingOptions) -> bytes:
        return of.generate(1, classes="flags", sampling=sampling)[0].tobytes()

    assert pixels(shipped, few) == pixels(folder, clear) != pixels(folder, few)
    assert pixels(shipped, published) == pixels(folder, few)
    best = folder.generate(2, classes=CLASSES, sampling=clear)
    assert [p.tobytes() for p in shipped.generate(2, sampling=few)] == [p.tobytes() for p in best]


def test_its_tokens_tell_what_an_emoji_looks_like(shipped: ImageModel, tmp_path: Path) -> None:
    render(tmp_path, 32, limit=20)
    files = sorted(tmp_path.rglob("*.png"))
    again = shipped.decode(shipped.tokenize(files))
    few = SamplingOptions(steps=2)
    assert len(shipped.complete(files[0], "left", count=1, sampling=few)) == 1
    pairs = [
        (np.asarray(Image.open(f).convert("RGB")), np.asarray(a))
        for f, a in zip(files, again, strict=True)
    ]
    errors = [((a / 255 - b / 255) ** 2).mean() for a, b in pairs]
    assert -10 * np.log10(np.mean(errors)) > 16  # dB


def test_damaged_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped bit, which safetensors does not see, a file that is missing, and no checksums."""
    copy = tmp_path / "emoji"
    shutil.copytree(SHIPPED, copy)
    monkeypatch.setattr(module, "SHIPPED", copy)
    file = copy / "tokenizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"tokenizer.safetensors is not as .* install addp again"
    ):
        load()
    file.unlink()
    with pytest.raises(WeightsError, match=r"tokenizer.safetensors cannot be read .* install addp"):
        load()
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(WeightsError, match=r"SHA256SUMS cannot be read .* install addp again"):
        load()
