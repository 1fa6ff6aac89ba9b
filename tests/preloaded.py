"""Imports what the project's processes import, once: processes forked from one that has done this
start in a few hundredths of a second instead of two to five seconds.

What is imported here starts no thread, which a fork would lose.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

MODULES = (
    "cluster.cli",
    "cluster.demo.run",
    "cluster.sharding.ray_engine",
    "data_pipeline.sharding.inspection",
    "data_pipeline.sharding.tokenize",
    "data_pipeline.sharding.verify",
    "data_pipeline.streaming.loader",
    "model.parity",
    "trainer.board",
    "trainer.engine.engine",
    "trainer.evaluation.measures.linear_probe",
    "trainer.evaluation.measures.masked_tokens",
    "trainer.evaluation.measures.neighbours",
    "trainer.evaluation.measures.recognition",
    "trainer.evaluation.measures.reconstruction",
    "trainer.evaluation.measures.sample_grids",
    "trainer.evaluation.measures.sample_quality",
    "trainer.evaluation.evaluate",
    "trainer.evaluation.generate",
    "trainer.evaluation.report",
    "trainer.export",
    "trainer.loop",
    "trainer.objectives.addp",
    "trainer.objectives.classify",
    "trainer.objectives.detect",
    "trainer.objectives.mage",
    "trainer.objectives.pixels",
    "trainer.objectives.segment",
    "trainer.objectives.tokenizer",
    "trainer.preflight.checks",
    "trainer.preflight.doctor.examination",
    "trainer.preflight.planning",
    "trainer.pretrain",
    # What the libraries import when they are first used.
    "boto3",
    "deepspeed",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.module_inject.auto_ep_presets.registry",
    "deepspeed.runtime.zero.muon.original_muon",
    "matplotlib.pyplot",
    "model.dense.mask_rcnn",
    "pytest",
    "pycocotools.cocoeval",
    "torch._dynamo",
    "torch.profiler._cupti_monitor",
    "transformers.models.upernet.modeling_upernet",
)

for _name in MODULES:
    try:
        importlib.import_module(_name)
    except ImportError as error:  # which a forkserver would pass over in silence
        raise RuntimeError(f"{_name} cannot be imported") from error

import deepspeed.ops  # noqa: E402 - after the accelerator is chosen

from data_pipeline.storage import StorageError, open_store  # noqa: E402
from tests.trainer.launching import MAGE  # noqa: E402
from trainer.config.reading import load_config  # noqa: E402
from trainer.costs import image_operations  # noqa: E402

# What every start of the engine asks the compiler, and what every small run counts of its network:
# both are remembered.
_ = deepspeed.ops.__compatible_ops__
_ADDP = (*MAGE[1:], "objective=addp", "addp.sizes.size=tiny", "tokenizer.weights=none")
for _options in (MAGE, (*_ADDP, "predictor.weights=none")):
    image_operations(load_config(None, ["run=none", "data.tokens=none", *_options]))

# What S3 clients read of botocore's files.
with contextlib.suppress(StorageError):  # the environment of the tests' own process names no server
    open_store("s3://none/none")

# A collection in a fork would touch, and so copy, every page that holds one of these objects.
gc.collect()
gc.freeze()
