"""What float32 means: the one place that says so. Imports torch only where it is called."""

from __future__ import annotations


def keep_float32() -> None:
    """Products and convolutions of float32 tensors are float32, in this process from now on.

    PyTorch lets cuDNN use TF32, of 10 bits, for convolutions unless told otherwise. The reference turns it off, and so
    does everything here that computes with a network, in every precision: there are float32 parts in all of them.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
