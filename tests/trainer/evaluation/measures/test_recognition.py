from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor

from tests.trainer.evaluation.measures.probing import made, score
from tests.trainer.worlds import Ranks
from trainer.evaluation.measures.linear_probe import INVERSE_PENALTY
from trainer.evaluation.measures.neighbours import packed, unpacked

Scores = dict[int, dict[str, Tensor]]


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """What 1, 2 and 3 ranks find."""
    folder, found = tmp_path_factory.mktemp("scores"), {}
    for ranks in (1, 2, 3):
        file = folder / f"{ranks}.safetensors"
        done = Ranks(score, [str(file)], ranks, folder / f"{ranks}.log").wait()
        assert done.codes == [0] * ranks, done.output
        found[ranks] = load_file(file)
    return found


@pytest.mark.parametrize("classes", [2, 5])
def test_knn_is_the_weighted_vote(scores: Scores, classes: int) -> None:
    train, labels, test, truth = made(classes)
    for k in (10, 20, 100, 200):
        other = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        other.fit(normalize(train), labels)
        expected = other.score(normalize(test), truth)
        assert float(scores[1][f"{classes} top1_k{k}"]) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_linear_probe_is_scikit_learns(scores: Scores, classes: int) -> None:
    train, labels, test, truth = made(classes)
    theirs = make_pipeline(
        StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=2000)
    ).fit(train, labels)
    assert float(scores[1][f"{classes} top1"]) == pytest.approx(theirs.score(test, truth))

    theirs.set_params(logisticregression__tol=1e-9).fit(train.astype(np.float64), labels)
    fitted = theirs["logisticregression"]
    expected = torch.from_numpy(np.c_[fitted.coef_, fitted.intercept_].T)
    for dtype, error in ((torch.float64, 1e-6), (torch.float32, 3e-4)):
        weights = scores[1][f"{classes} {dtype}"]
        if classes == 2:
            weights = weights[:, 1:] - weights[:, :1]
        torch.testing.assert_close(centred(weights), centred(expected), rtol=0, atol=error)


def centred(weights: Tensor) -> Tensor:
    """A number that is added to all classes changes nothing."""
    return weights - weights.mean(1, keepdim=True) if weights.shape[1] > 1 else weights


def test_any_number_of_ranks_finds_the_same(scores: Scores) -> None:
    """Votes are equal; the weights are so up to the rounding of sums over ranks in float64."""
    for ranks in (2, 3):
        assert scores[ranks].keys() == scores[1].keys()
        for name, value in scores[ranks].items():
            if "float" in name:
                error = 1e-9 if name.endswith("float64") else 1e-6
                torch.testing.assert_close(value, scores[1][name], rtol=0, atol=error)
            else:
                assert value == scores[1][name], name


def test_packed_cosines_keep_their_order() -> None:
    cosine = torch.tensor([[0.5, -0.25, 1e-30, -1.0, 0.5, 0.0, 1.0]])
    labels = torch.tensor([7, 1, 2, 999_999, 3, 5, 0])
    keys = packed(cosine, labels)
    assert keys[0].argsort(descending=True).tolist() == [6, 0, 4, 2, 5, 1, 3]
    assert all(map(torch.equal, unpacked(keys), (cosine, labels[None])))
