"""Logistic regression on frozen features by L-BFGS, in blocks and over ranks.

Rank 0 takes the steps. Each evaluation of the loss and its gradient goes over all ranks:

    rank 0        weights --------------> every rank
                                             |  products of its blocks on the device, added up in
                                             |  float64
                  next step <---------- sum over ranks

So ranks need not round alike, and hold no more than their own features, one block's logits, and
the gradient.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.optim import LBFGS

from trainer.engine.optimizers import EagerOptimizer
from trainer.evaluation.measures.features import Features

# Fixed beforehand, the same for every kind of feature.
INVERSE_PENALTY = 0.01
_MOST_STEPS = 2000
_TOLERANCE = 1e-4  # of the gradient's largest element, relative to its first
_HISTORY = 10  # steps that L-BFGS remembers
# Products are float64, too, where N D K is at most this. Where it is more, float32's rounding
# averages out over the images, and on many GPUs float64 would take a long time.
_EXACT = 2**34
_EPSILON = torch.finfo(torch.float64).eps


class _EagerLBFGS(EagerOptimizer, LBFGS):
    """PyTorch's L-BFGS, without the second in which it would load the compiler."""

    step = torch.no_grad()(inspect.unwrap(LBFGS.step))


def linear(train: Features, test: Features) -> dict[str, Tensor]:
    """Return which test images, (N,) bool, logistic regression on standardised features classifies
    rightly, by all ranks together: it takes minutes where MAE's protocol takes hours. They are
    returned on rank 0, and none on the other ranks."""
    probe, ranks = LinearProbe(train), train.collectives
    own = [(probe(x) == labels).cpu() for x, labels in test]
    right = [block for blocks in ranks.collect(own) for block in blocks]
    return {"top1": torch.cat(right)} if ranks.rank == 0 else {}


class LinearProbe:
    """Multinomial logistic regression, fitted to features by all ranks together.

    It minimises the mean cross-entropy plus |W|^2 / (2 C n), as scikit-learn does, on features of
    mean 0 and variance 1; C = 0.01, and the bias is free. With two classes scikit-learn has one
    vector of weights, the difference of ours, so that |W|^2 counts twice.

    weights: float64 (D + 1, K), the last row the bias. classes: the labels of the columns; those
    that no training image has are left out. evaluations: of the loss and its gradient.
    """

    def __init__(
        self, train: Features, tolerance: float = _TOLERANCE, dtype: torch.dtype | None = None
    ) -> None:
        """tolerance: where to stop, as a share of the largest element of the first gradient. dtype:
        of the products; None chooses by the size."""
        self._train, self._ranks = train, train.collectives
        self.evaluations = 0
        self.classes = train.of_label.nonzero().flatten().to(train.device)
        exact = train.count * train.width * len(self.classes) <= _EXACT
        self._dtype = dtype or (torch.float64 if exact else torch.float32)
        self._mean, self._scale = self._standard()
        weights = torch.zeros(
            train.width + 1, len(self.classes), dtype=torch.float64, device=train.device
        )
        if self._ranks.rank == 0:
            weights = self._minimised(weights, tolerance)
            self._asked(None)
        else:
            while (asked := self._asked(None)) is not None:
                self._sums(asked)
        self.weights = self._ranks.broadcast_from_rank0(weights.cpu).to(train.device)

    def __call__(self, features: Tensor) -> Tensor:
        """The label of each row of features (N, D)."""
        weights = self.weights.to(self._dtype)
        return self.classes[self._logits(self._standardised(features), weights).argmax(1)]

    def _standard(self) -> tuple[Tensor, Tensor]:
        """The mean of each feature, and its standard deviation; 1 where it is constant."""
        n, device = self._train.count, self._train.device
        sums = torch.zeros(2, self._train.width, dtype=torch.float64, device=device)
        for x, _ in self._train:
            sums[0] += x.sum(0, dtype=torch.float64)
        mean = self._ranks.sum(sums[0]) / n
        for x, _ in self._train:
            sums[1] += (x.double() - mean).square().sum(0)
        variance = self._ranks.sum(sums[1]) / n
        constant = variance <= (n * mean * _EPSILON).square()
        scale = variance.sqrt().masked_fill(constant, 1)
        return mean.to(self._dtype), scale.to(self._dtype)

    def _standardised(self, features: Tensor) -> Tensor:
        return features.sub(self._mean).div_(self._scale)

    def _logits(self, x: Tensor, weights: Tensor) -> Tensor:
        return torch.addmm(weights[-1], x, weights[:-1])

    # On rank 0.

    def _minimised(self, start: Tensor, tolerance: float) -> Tensor:
        """The weights where the loss is least, from `start`."""
        weights, first = torch.nn.Parameter(start), 0.0

        def evaluate() -> Tensor:
            # In units of the first gradient, which is smaller the more classes there are.
            nonlocal first
            loss, gradient = self._loss(weights.detach())
            first = first or float(gradient.abs().max()) or 1.0
            weights.grad = gradient / first
            return loss / first

        optimizer = _EagerLBFGS(
            [weights],
            max_iter=_MOST_STEPS,
            tolerance_grad=tolerance,
            tolerance_change=torch.finfo(self._dtype).eps / 100,  # rounding, not progress
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(evaluate)
        return weights.detach()

    def _loss(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient (D + 1, K), by all ranks."""
        asked = self._asked(weights.to(self._dtype).cpu())
        assert asked is not None
        total = self._sums(asked) / self._train.count
        loss, gradient = total[0], total[1:].view_as(weights)
        penalty = (2 if len(self.classes) == 2 else 1) / (INVERSE_PENALTY * self._train.count)
        gradient[:-1] += penalty * weights[:-1]
        return loss + penalty / 2 * weights[:-1].square().sum(), gradient

    # On all ranks together.

    def _asked(self, weights: Tensor | None) -> Tensor | None:
        """Rank 0's weights; None where it needs no more sums."""
        return self._ranks.broadcast_from_rank0(lambda: weights)

    def _sums(self, weights: Tensor) -> Tensor:
        """The sum of all images' cross-entropies, and its gradient, float64 (1 + (D + 1) K,)."""
        self.evaluations += 1
        weights = weights.to(self._train.device)
        sums = torch.zeros(1 + weights.numel(), dtype=torch.float64, device=weights.device)
        gradient = sums[1:].view_as(weights)
        for features, labels in self._train:
            x, columns = self._standardised(features), torch.searchsorted(self.classes, labels)
            log_p, truth = self._logits(x, weights).log_softmax(1), columns[:, None]
            sums[0] -= log_p.gather(1, truth).sum(dtype=torch.float64)
            error = log_p.exp_().scatter_add_(1, truth, -torch.ones_like(x[:, :1]))
            gradient[:-1] += x.T @ error
            gradient[-1] += error.sum(0, dtype=torch.float64)
        return self._ranks.sum(sums)
