"""Official files in and out, and timm's layout against a plain ViT that is written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from model.addp import ADDP
from model.classifier import Classifier
from model.config import ClassifierConfig, Geometry, TokenizerConfig, TransformerConfig
from model.encoder import IMAGENET_MEAN, IMAGENET_STD
from model.errors import ADDPError, ConfigError, WeightsError
from model.networks import Network, build
from model.official import (
    import_official,
    official_metadata,
    official_state,
    timm_state,
    write_state,
)
from model.official_sizes import Untold
from model.weights import fingerprint, load_network

FIXTURES = Path(__file__).parents[1] / "fixtures"
SIZES = TransformerConfig(dim=64, depth=3, heads=4, decoder_depth=1, decoder_heads=4, dropout=0.0)
GEOMETRY = Geometry(image_size=32, patch_size=8, codebook_size=16)


def published(
    kinds: tuple[str, ...] = ("addp", "predictor", "tokenizer"), **changed: Any
) -> dict[str, Network]:
    """Return small networks whose sizes all the published rules fit."""
    sizes = TransformerConfig(
        **({"dim": 64, "depth": 1, "heads": 1, "decoder_depth": 1, "decoder_heads": 16} | changed)
    )
    vq = TokenizerConfig(
        image_size=256,
        channels=32,
        channel_multipliers=(1, 1),
        residual_blocks=1,
        code_dim=4,
        codebook_size=8,
    )
    configs: dict[str, Any] = {"addp": sizes, "predictor": sizes, "tokenizer": vq}
    geometry = Geometry(image_size=8, patch_size=2, codebook_size=8)
    return {kind: build(kind, configs[kind], geometry) for kind in kinds}


def draw(data: st.DataObject) -> dict[str, Network]:
    """Draw networks of random sizes that belong together."""
    few = st.integers(1, 3)
    levels = data.draw(few)
    groups = data.draw(few)
    image_size = data.draw(few) << (levels - 1)
    tokenizer = TokenizerConfig(
        image_size=image_size,
        channels=groups * data.draw(few),
        norm_groups=groups,
        channel_multipliers=tuple(data.draw(few) for _ in range(levels)),
        residual_blocks=data.draw(few),
        code_dim=data.draw(few),
        codebook_size=data.draw(few),
    )

    def transformer() -> TransformerConfig:
        heads, decoder_heads = data.draw(few), data.draw(few)
        return TransformerConfig(
            dim=heads * decoder_heads * data.draw(few),
            depth=data.draw(few),
            heads=heads,
            decoder_depth=data.draw(few),
            decoder_heads=decoder_heads,
            dropout=0.0,
        )

    configs = {"addp": transformer(), "predictor": transformer(), "tokenizer": tokenizer}
    kinds = data.draw(st.sets(st.sampled_from(sorted(configs)), min_size=1))
    return {kind: build(kind, configs[kind], Geometry.of(tokenizer)) for kind in kinds}


@settings(max_examples=12, deadline=None)
@given(data=st.data(), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_any_sizes_come_back(
    data: st.DataObject, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is exported in the official layout is imported without an option: the networks are the
    same, and nothing is guessed."""
    networks = draw(data)
    path = tmp_path_factory.mktemp("official") / f"out{suffix}"
    write_state(official_state(networks), path, official_metadata(networks))
    again, guesses = import_official(path)
    assert guesses == [] and again.keys() == networks.keys()
    for kind, network in networks.items():
        assert again[kind].config == network.config and fingerprint(again[kind]) == fingerprint(
            network
        )
        assert getattr(again[kind], "geometry", None) == getattr(network, "geometry", None)
        # As a run takes it, without `addp import`.
        assert fingerprint(load_network(path, kind)) == fingerprint(network)


def test_round_trip_of_an_official_file(tmp_path: Path) -> None:
    folder = FIXTURES / "small"
    networks, guesses = import_official(folder / "weights.safetensors", SMALL)
    assert guesses == [] and set(networks) == {"addp", "predictor", "tokenizer"}
    addp = networks["addp"]
    assert isinstance(addp, ADDP) and addp.geometry.image_size == 64
    assert (addp.config.dim, addp.config.depth, addp.config.decoder_depth) == (64, 3, 2)
    assert networks["predictor"].config.decoder_heads == 4 and addp.config.decoder_heads == 8

    write_state(official_state(networks), tmp_path / "out.pth", official_metadata(networks))
    official = load_file(folder / "weights.safetensors")
    # as the official code reads it: the tensors under "model", and nothing that weights_only would
    # refuse
    written = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert written.keys() <= official.keys() and len(written) == 312
    for (
        name,
        value,
    ) in written.items():  # MAGE's table of positions always has 257 rows; the rest is not used
        assert torch.equal(value, official[name].float()[: len(value)]), name


def test_guesses_are_named(tmp_path: Path) -> None:
    """A published file says none of these sizes."""
    write_state(official_state(published()), tmp_path / "addp.pth")
    networks, guesses = import_official(tmp_path / "addp.pth")
    expected = [
        ("heads of the addp", "1 (width / 64, as published)", "--heads"),
        ("decoder_heads of the addp", "16 (as published)", "--decoder-heads"),
        ("heads of the predictor", "1 (width / 64, as published)", "--predictor-heads"),
        ("decoder_heads of the predictor", "16 (as published)", "--predictor-decoder-heads"),
        ("norm_groups of the tokenizer", "32 (as published)", "--norm-groups"),
    ]
    assert guesses == [
        f"{what} is not in addp.pth; assumed {value}; give {option} if that is wrong"
        for what, value, option in expected
    ]
    assert networks["tokenizer"].config.image_size == 8  # the grid of patches tells it

    write_state(official_state(published(("tokenizer",))), tmp_path / "vqgan.ckpt")
    networks, guesses = import_official(tmp_path / "vqgan.ckpt", Untold(norm_groups=8))
    assert len(guesses) == 1 and guesses[0].startswith(
        "image_size of the tokenizer is not in vqgan.ckpt; assumed 256"
    )
    assert networks["tokenizer"].config.norm_groups == 8

    write_state(official_state(published(("predictor",))), tmp_path / "mage.pth")
    networks, guesses = import_official(
        tmp_path / "mage.pth", Untold(predictor_heads=4, image_size=16)
    )
    assert len(guesses) == 1 and networks["predictor"].config.heads == 4
    assert networks["predictor"].geometry == Geometry(image_size=16, patch_size=4, codebook_size=8)


SMALL = Untold(
    heads=4, decoder_heads=8, predictor_heads=4, predictor_decoder_heads=4, norm_groups=32
)


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (("addp",), {"heads": 3}, "dim = 64 is no multiple of heads = 3"),
        (
            ("addp",),
            {"predictor_heads": 2},
            "--predictor-heads is of no use: .* holds no predictor, but addp",
        ),
        (
            ("addp",),
            {"image_size": 64},
            "--image-size 64 contradicts .* by its tensors, image_size = 8",
        ),
        (("predictor",), {"image_size": 9}, "--image-size 9 does not fit the grid of 4 x 4"),
        (("tokenizer",), {"norm_groups": 5}, "channels = 32 must be a multiple of norm_groups = 5"),
    ],
)
def test_options_that_do_not_fit(
    kinds: tuple[str, ...], options: dict[str, int], message: str, tmp_path: Path
) -> None:
    write_state(official_state(published(kinds)), tmp_path / "x.pth")
    with pytest.raises(ADDPError, match=message):
        import_official(tmp_path / "x.pth", Untold(**options))


def test_what_no_published_rule_fits_is_asked_for(tmp_path: Path) -> None:
    write_state(official_state(published(("addp",), dim=24, decoder_heads=2)), tmp_path / "x.pth")
    with pytest.raises(
        ConfigError,
        match=r"width / 64 does not fit the width 24.*: give --heads N, --decoder-heads N",
    ):
        import_official(tmp_path / "x.pth")
    imported = import_official(tmp_path / "x.pth", Untold(heads=1, decoder_heads=2))
    assert imported.guesses == [] and imported.networks["addp"].config.heads == 1


def test_stated_sizes_are_not_believed(tmp_path: Path) -> None:
    """They must agree with the options, and with the tensors, before memory is taken for them."""
    networks = published(("addp",))
    metadata, path = official_metadata(networks), tmp_path / "x.safetensors"
    write_state(official_state(networks), path, metadata)
    with pytest.raises(
        ConfigError, match=r"--heads 2 contradicts .*: it states heads = 1; leave the option out"
    ):
        import_official(path, Untold(heads=2))
    for old, new, message in [
        ('"dim": 64', '"dim": 32768', "states dim = 32768 of its addp, but its tensors have 64"),
        ('"dim": 64', '"dim": 1048576', "dim: Input should be less than or equal to"),
        ('"depth": 1', '"depth": 200', "states depth = 200"),
        ('"heads": 1', '"heads": 7', "dim = 64 is no multiple of heads = 7"),
        ('"heads": 1', '"heads": 0', "greater than 0"),
        ('"image_size": 8', '"image_size": 400', "does not fit the addp.*pos_embed"),
        ('"codebook_size": 8', '"codebook_size": 60000', "does not fit the addp.*token_emb"),
        ("{", "[", "no readable JSON"),
    ]:
        assert old in metadata["networks"]
        write_state(
            official_state(networks),
            path,
            metadata | {"networks": metadata["networks"].replace(old, new, 1)},
        )
        with pytest.raises(WeightsError, match=message):
            import_official(path)


def test_what_is_no_official_file_is_said(tmp_path: Path) -> None:
    write_state({"something": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds no network of ADDP"):
        import_official(tmp_path / "x.pth")
    state = official_state(published(("addp",)))
    write_state(
        {k.replace("blocks.0", "blocks.1000000000"): v for k, v in state.items()},
        tmp_path / "x.pth",
    )
    with pytest.raises(WeightsError, match="not numbered without gaps"):
        import_official(tmp_path / "x.pth")


def plain_vit(state: dict[str, Tensor], images: Tensor, heads: int) -> Tensor:
    """timm's VisionTransformer.forward_features, from its documentation; with `norm_pre` where the
    state has it."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    bias = state.get("patch_embed.proj.bias")
    weight = state["patch_embed.proj.weight"]
    x = (
        F.conv2d((images - mean) / std, weight, bias, stride=weight.shape[-1])
        .flatten(2)
        .transpose(1, 2)
    )
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    dim = x.shape[-1]

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    if "norm_pre.weight" in state:
        x = norm("norm_pre", x)
    for i in range(len({k.split(".")[1] for k in state if k.startswith("blocks.")})):
        q, k, v = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / (dim // heads) ** 0.5).softmax(-1)
        x = x + linear(f"blocks.{i}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        x = x + linear(
            f"blocks.{i}.mlp.fc2",
            F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", x))),
        )
    return norm("norm", x) if "norm.weight" in state else x


def randomised(network: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def test_timm_keeps_the_features() -> None:
    network = ADDP(GEOMETRY, SIZES).eval()
    randomised(network)
    images = torch.rand(2, 3, 32, 32)
    kept = timm_state(network, "keep")
    assert "patch_embed.proj.bias" not in kept and "norm_pre.weight" in kept
    assert torch.allclose(plain_vit(kept, images, 4), network.encode(images), atol=1e-4)
    dropped = timm_state(network, "drop")
    expected = {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    }
    assert {k for k in dropped if not k.startswith("blocks.")} == expected
    assert not torch.allclose(plain_vit(dropped, images, 4), network.encode(images), atol=0.1)


@pytest.mark.parametrize("tokenizer_norm", [False, True])
def test_timm_takes_a_fine_tuned_classifier(tokenizer_norm: bool) -> None:
    network = Classifier(
        GEOMETRY,
        ClassifierConfig(encoder=SIZES, classes=tuple("abcdefg"), tokenizer_norm=tokenizer_norm),
    ).eval()
    randomised(network)
    images = torch.rand(2, 3, 32, 32)
    state = timm_state(network, "keep")
    pooled = plain_vit(state, images, 4)[:, 1:].mean(1)
    logits = F.linear(
        F.layer_norm(pooled, (64,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6),
        state["head.weight"],
        state["head.bias"],
    )
    assert torch.allclose(logits, network.logits(images), atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_feature_maps(size: tuple[int, int]) -> None:
    network = ADDP(Geometry(image_size=64, patch_size=16, codebook_size=16), SIZES).eval()
    images = torch.rand(2, 3, *size)
    maps = network.feature_maps(images)
    assert [tuple(m.shape) for m in maps] == [
        (2, 64, size[0] // s, size[1] // s) for s in (4, 8, 16, 32)
    ]
    assert all(m.isfinite().all() for m in maps)
    if size == (64, 96):
        last = network.feature_maps(images, at=(1, 2, 3, 3))[2]
        assert torch.allclose(
            last.flatten(2).transpose(1, 2), network.encode(images)[:, 1:], atol=1e-5
        )
