"""How close generated images are to real ones: FID and its relatives, and the same formulas on
packaged features."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from model.errors import ConfigError
from trainer.evaluation.benchmarks.base import (
    DOWN,
    IMAGES,
    SAMPLES,
    SPLIT,
    UP,
    Benchmark,
    Metric,
    Outcome,
)

if TYPE_CHECKING:
    from trainer.evaluation.options import EvaluationOptions
    from trainer.evaluation.task import Task

_REAL = Metric("real images", plotted=False)


class _Fidelity(Benchmark):
    """Samples beside real images, by torch-fidelity's formulas."""

    title = "Samples"
    network_kinds = ("addp",)
    options = (*SAMPLES, *IMAGES, "reference")
    uses_tokenizer = True

    def depends_on(self, options: EvaluationOptions) -> tuple[str, ...]:
        """The published reference is all images: which of them are held out does not matter."""
        unused = SPLIT if options.reference == "published" else ()
        return tuple(name for name in self.options if name not in unused)


class FID(_Fidelity):
    """FID, IS, KID, precision and recall on Inception-v3, comparable to published results."""

    detail = "beside real images (Inception)"
    summary = "FID, IS, KID, precision and recall"
    options = (*_Fidelity.options, "inception_weights")
    metrics: ClassVar = {
        "fid": Metric("FID", DOWN),
        "inception_score": Metric("Inception score", UP),
        "kid": Metric("KID", DOWN),
        "precision": Metric("precision", UP),
        "recall": Metric("recall", UP),
        "reference_images": _REAL,
    }

    def check(self, options: EvaluationOptions) -> None:
        file = options.inception_weights
        if file is None or not file.is_file():
            raise ConfigError(
                f"fid needs --inception-weights FILE ({file or 'none given'}): the standard "
                "Inception-v3 as torch-fidelity distributes it, "
                "pt_inception-2015-12-05-6726825d.pth. Without it, the benchmark `proxy` gives the "
                "same formulas on packaged EfficientNet features: good to compare checkpoints, not "
                "to compare with published results"
            )

    def run(self, task: Task) -> Outcome:
        from trainer.evaluation.measures.fidelity import Inception
        from trainer.evaluation.measures.sample_quality import compare_samples

        assert task.options.inception_weights is not None  # by `check`
        return Outcome(
            compare_samples(task, Inception(task.options.inception_weights, task.device))
        )


class Proxy(_Fidelity):
    """The same formulas on packaged EfficientNet features: for self-tests, the demo and comparing
    checkpoints."""

    detail = "beside real images (EfficientNet: not FID)"
    summary = "the same formulas on packaged EfficientNet features"
    metrics: ClassVar = {
        "efficientnet_frechet_distance": Metric("Fréchet distance on EfficientNet features", DOWN),
        "efficientnet_score": Metric("EfficientNet score", UP),
        "efficientnet_kernel_distance": Metric("kernel distance on EfficientNet features", DOWN),
        "efficientnet_precision": Metric("precision on EfficientNet features", UP),
        "efficientnet_recall": Metric("recall on EfficientNet features", UP),
        "reference_images": _REAL,
    }

    def run(self, task: Task) -> Outcome:
        from trainer.evaluation.measures.fidelity import EfficientNet
        from trainer.evaluation.measures.sample_quality import compare_samples

        return Outcome(compare_samples(task, EfficientNet(task.device)))
