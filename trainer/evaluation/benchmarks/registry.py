"""The one table of benchmarks. Its order is that of the report. Imports no torch."""

from __future__ import annotations

from trainer.evaluation.benchmarks.accuracy import Accuracy
from trainer.evaluation.benchmarks.base import Benchmark
from trainer.evaluation.benchmarks.conditional import Conditional
from trainer.evaluation.benchmarks.dense import Detection, Segmentation
from trainer.evaluation.benchmarks.fidelity import FID, Proxy
from trainer.evaluation.benchmarks.generation import Samples
from trainer.evaluation.benchmarks.held_out import HeldOut
from trainer.evaluation.benchmarks.recognition import KNN, LinearProbe
from trainer.evaluation.benchmarks.retrieval import Retrieval

BENCHMARKS: dict[str, Benchmark] = {
    "accuracy": Accuracy(),
    "segmentation": Segmentation(),
    "detection": Detection(),
    "knn": KNN(),
    "linear": LinearProbe(),
    "retrieval": Retrieval(),
    "fid": FID(),
    "proxy": Proxy(),
    "conditional": Conditional(),
    "held-out": HeldOut(),
    "samples": Samples(),
}


def fitting(network_kind: str) -> list[str]:
    """The names of the benchmarks that measure networks of a kind."""
    return [name for name, b in BENCHMARKS.items() if network_kind in b.network_kinds]
