"""The ADDP model: networks, mask law, training step and sampler. Imports nothing else of this
project.

`load` and what it returns, an `ImageModel`, are for programs that use a trained network
(docs/python.md). They are imported when they are asked for, since most modules need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.api import ImageModel, load
    from model.sampling_options import SamplingOptions

__all__ = ["ImageModel", "SamplingOptions", "load"]
_MODULES = {
    "ImageModel": "model.api",
    "SamplingOptions": "model.sampling_options",
    "load": "model.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
