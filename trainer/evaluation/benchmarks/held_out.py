"""What held-out data cost: reconstructions of a tokenizer, masked tokens of a predictor or ADDP."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.evaluation.benchmarks.base import (
    DOWN,
    IMAGES,
    TOKENS,
    UP,
    Benchmark,
    ImageTitle,
    Metric,
    Outcome,
)

if TYPE_CHECKING:
    from trainer.evaluation.task import Task


class HeldOut(Benchmark):
    """PSNR of a tokenizer; cross-entropy of masked tokens of the networks that predict them."""

    title = "Held-out data"
    summary = "PSNR of a tokenizer, or masked-token cross-entropy"
    network_kinds = ("tokenizer", "predictor", "addp")
    options = (*TOKENS, *IMAGES)
    uses_tokenizer = True
    metrics: ClassVar = {
        "psnr": Metric("PSNR of reconstructions", UP, "dB"),
        "codebook_used": Metric("codebook in use", UP, "%"),
        "cross_entropy": Metric("cross-entropy", DOWN, "nats a masked token"),
        "unigram": Metric("unigram cross-entropy of the codes", "", "nats a token", plotted=False),
        "gain": Metric("under the unigram", UP, "nats a token"),
        "classes_told": Metric("classes that the network is told", plotted=False),
    }
    images: ClassVar = {
        "x_t": ImageTitle(
            "What ADDP sees",
            "Held-out images, from left: the image; decoded with 99, 90, 75, 60 and 51 % of its "
            "tokens unreliable (the predictor's expected codes); decoded from all its own tokens.",
        ),
        "reconstructions": ImageTitle(
            "Reconstructions", "Held-out images; below, what the tokenizer keeps."
        ),
    }

    def run(self, task: Task) -> Outcome:
        from trainer.evaluation.measures import masked_tokens, reconstruction

        if task.network.kind == "tokenizer":
            return reconstruction.measure(task)
        return masked_tokens.measure(task)
