"""The formulas are torch-fidelity's, the statistics stream, and no network passes for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ConfigError
from trainer.evaluation.measures.fidelity import (
    EfficientNet,
    FeatureSet,
    Inception,
    Moments,
    _library,
    fidelity_metrics,
)


def feature_set(features: np.ndarray, parts: int) -> FeatureSet:
    """As ranks make it: each adds its chunks, and the ranks' moments are merged."""
    ranks = [Moments(features.shape[1]) for _ in range(min(parts, 3))]
    for number, chunk in enumerate(np.array_split(features, parts)):
        ranks[number % len(ranks)].add(chunk)
    for other in ranks[1:]:
        ranks[0].merge(other)
    return FeatureSet(ranks[0].mean, ranks[0].covariance, features, features)


def drawn(seed: int, count: int, width: int, shift: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(shift, 1, (count, width)) @ rng.normal(0, 1, (width, width))).astype(
        np.float32
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), parts=st.integers(1, 40), shift=st.floats(-100, 100))
def test_streaming_is_one_pass(seed: int, parts: int, shift: float) -> None:
    x = drawn(seed, 200, 6, shift)
    streamed, exact = feature_set(x, parts), x.astype(np.float64)
    assert np.allclose(streamed.mean, exact.mean(0), rtol=1e-10)
    assert np.allclose(
        streamed.covariance,
        np.cov(exact, rowvar=False),
        rtol=1e-6,
        atol=1e-8 * np.cov(exact.T).max(),
    )


def test_formulas_are_torch_fidelitys() -> None:
    ours, theirs = drawn(0, 300, 16, 0.0), drawn(1, 200, 16, 0.4)
    metrics = fidelity_metrics(Inception.labels, feature_set(ours, 7), feature_set(theirs, 11))
    a, b = torch.from_numpy(ours), torch.from_numpy(theirs)
    of = _library("metric_fid")
    fid = of.fid_statistics_to_metric(
        of.fid_features_to_statistics(a), of.fid_features_to_statistics(b), False
    )
    kid = _library("metric_kid").kid_features_to_metric(a, b, kid_subset_size=200, verbose=False)
    isc = _library("metric_isc").isc_features_to_metric(a)
    prc = _library("metric_prc").prc_features_to_metric(a, b, verbose=False)
    assert metrics == pytest.approx(
        {
            "fid": fid["frechet_inception_distance"],
            "kid": kid["kernel_inception_distance_mean"],
            "kid_std": kid["kernel_inception_distance_std"],
            "inception_score": isc["inception_score_mean"],
            "inception_score_std": isc["inception_score_std"],
            "precision": prc["precision"],
            "recall": prc["recall"],
        },
        rel=1e-4,
    )
    # and the definition of the distance, by another road
    roots = scipy.linalg.sqrtm(np.cov(ours.T) @ np.cov(theirs.T)).real
    gap = ours.mean(0) - theirs.mean(0)
    assert metrics["fid"] == pytest.approx(
        gap @ gap + np.trace(np.cov(ours.T) + np.cov(theirs.T) - 2 * roots), rel=1e-4
    )


def test_equal_sets_have_no_distance() -> None:
    x = feature_set(drawn(2, 150, 16, 0.0), 5)
    metrics = fidelity_metrics(EfficientNet.labels, x, x)
    assert (
        abs(metrics["efficientnet_frechet_distance"]) < 1e-3
        and metrics["efficientnet_precision"] == 1
    )
    assert not any("fid" in name or "inception" in name for name in metrics)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the right shapes: the standard file is in no package."""
    torch.manual_seed(0)
    empty: dict[str, Any] = {}
    extractor = _library("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    load = extractor.load_state_dict
    extractor.load_state_dict = lambda self, state: None
    try:
        path = tmp_path_factory.mktemp("inception") / "weights.pth"
        torch.save(empty, path)
        network = extractor("x", ["2048"], feature_extractor_weights_path=path)
    finally:
        extractor.load_state_dict = load
    torch.save(network.state_dict(), path)
    return path


def test_inception_from_a_file_of_the_users(inception_file: Path) -> None:
    extractor = Inception(inception_file, torch.device("cpu"))
    pixels = (torch.rand(2, 3, 40, 40) * 255).byte()
    features, logits = extractor(pixels)
    assert (
        features.shape == (2, 2048)
        and logits.shape == (2, 1008)
        and len(extractor.fingerprint) == 64
    )


def test_another_file_is_refused(inception_file: Path, tmp_path: Path) -> None:
    state = torch.load(inception_file, weights_only=True)
    state.pop("fc.weight")
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(ConfigError, match="does not hold the Inception-v3 of FID"):
        Inception(tmp_path / "cut.pth", torch.device("cpu"))


def test_packaged_features_tell_images_apart() -> None:
    extractor = EfficientNet(torch.device("cpu"))
    pixels = torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), 255.0)]).byte()
    features, logits = extractor(pixels)
    assert features.shape == (2, 1280) and logits.shape == (2, 1000)
    assert float((features[0] - features[1]).abs().mean()) > 0.01
