"""Prove that devices compute right: a training step in small, and products whose sums are known.

    python -m trainer.preflight.node.computing [--seconds S] [DEVICE ...]

Prints a line of JSON when it begins with a device and one when it has finished with it. Without
DEVICE: each GPU that PyTorch sees, or the CPU. Exits with 0 where all computed right, else with 1.

The step is that of tiny networks with weights made from a seed: tokenizer, predictor and ADDP, loss
and gradients. The CPU computes it in float64, and the device in float32 and bfloat16, within the
bounds of `model.parity`.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.addp import ADDP
from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.denoising import FrozenNetworks
from model.entry import run_entry
from model.ledger import Ledger, verdict
from model.masking import DenoisingMasks
from model.parity import TOLERANCES
from model.precision import dtype_name, keep_float32
from model.predictor import TokenPredictor
from model.vq import VQTokenizer

_DTYPES = (torch.float32, torch.bfloat16)
_SEED = 2024
_IMAGES = 2
_INNER = 1024  # sums of so many products of -1, 0 and 1 stay below 256: bfloat16 holds them
_SIDE = {"cuda": 8192, "cpu": 512}
_COPIED = 2**26  # bytes
_SECONDS = {"cuda": 2.0, "cpu": 0.2}


class Step(NamedTuple):
    """Networks and what they are given. ids: (B, L). images: (B, 3, H, W)."""

    frozen: FrozenNetworks
    addp: ADDP
    images: Tensor
    ids: Tensor
    masks: DenoisingMasks


def small_step() -> Step:
    """Return the networks and inputs of the proof, in float64 on the CPU; always the same."""
    generator = torch.Generator().manual_seed(_SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        sizes = TokenizerConfig(size="tiny")  # type: ignore[call-arg]
        geometry = Geometry.of(sizes)
        transformer = TransformerConfig(size="tiny", dropout=0.0)  # type: ignore[call-arg]
        tokenizer, predictor = VQTokenizer(sizes), TokenPredictor(geometry, transformer)
        addp = ADDP(geometry, transformer)
        torch.nn.init.normal_(tokenizer.codebook, std=0.5)
    length = geometry.tokens
    order = torch.rand(_IMAGES, length, generator=generator).argsort(1).argsort(1)
    masked, more = length // 2, length * 3 // 4
    return Step(
        FrozenNetworks(tokenizer, predictor).double(),
        addp.double().eval(),
        torch.rand(
            _IMAGES,
            3,
            geometry.image_size,
            geometry.image_size,
            generator=generator,
            dtype=torch.float64,
        ),
        torch.randint(geometry.codebook_size, (_IMAGES, length), generator=generator),
        DenoisingMasks(order < masked, order < more, masked),
    )


def moved(step: Step, device: torch.device, dtype: torch.dtype) -> Step:
    """Return a copy of a step on a device."""
    masks = step.masks
    return Step(
        copy.deepcopy(step.frozen).to(device, dtype),
        copy.deepcopy(step.addp).to(device, dtype),
        step.images.to(device, dtype),
        step.ids.to(device),
        DenoisingMasks(masks.mask_t.to(device), masks.mask_next.to(device), masks.masked),
    )


def quantities(step: Step) -> dict[str, dict[str, Tensor]]:
    """Compute a step, and return its tensors by their group of tolerances and their name."""
    tokenizer, addp, masks = step.frozen.tokenizer, step.addp, step.masks
    with torch.no_grad():
        codes = tokenizer.encode(step.images)
        decoded = tokenizer.decode(tokenizer.embed(step.ids))
    noisy = step.frozen(step.ids, masks)
    features = addp.encode(noisy.x_t)
    logits = addp.decode(features, step.ids, masks.mask_t)
    loss = addp(noisy.x_t, step.ids, masks.mask_t, noisy.target, 0.1)
    gradients = torch.autograd.grad(loss, list(addp.parameters()), allow_unused=True)
    names = [name for name, _ in addp.named_parameters()]
    return {
        "ids": {"codes": codes},
        "tensor": {
            "reconstruction": decoded,
            "x_t": noisy.x_t,
            "target": noisy.target,
            "features": features.detach(),
            "logits": logits.detach(),
        },
        "loss": {"loss": loss.detach()},
        "gradient_norm": {
            f"gradient of {name}": gradient.double().norm()
            for name, gradient in zip(names, gradients, strict=True)
            if gradient is not None
        },
    }


def compare(
    ours: dict[str, dict[str, Tensor]], reference: dict[str, dict[str, Tensor]], dtype: str
) -> Ledger:
    """Return the deviations of a step's quantities from those of the reference."""
    ledger = Ledger(TOLERANCES[dtype])
    for group, tensors in reference.items():
        for name, expected in tensors.items():
            if group == "ids":
                ledger.ids(name, ours[group][name], expected)
            else:
                ledger.tensor(name, group, ours[group][name].reshape(-1), expected.reshape(-1))
    return ledger


def prove_step(
    step: Step, reference: dict[str, dict[str, Tensor]], device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Return {"holds", "words"}: whether the device computes the step as the CPU did in float64.

    step: from `small_step`. reference: its quantities.
    """
    ours = quantities(moved(step, device, dtype))
    name = dtype_name(dtype)
    ledger = compare(ours, reference, name)
    holds = all(row["holds"] for row in ledger.rows.values())
    words = f"a training step in {name}"
    if not holds:
        report = {"dtype": name, "device": str(device), "holds": False, "quantities": ledger.rows}
        words = f"{words}: {verdict(report)}"
    return {"holds": holds, "words": words}


def prove_products(
    device: torch.device, dtype: torch.dtype, seconds: float, side: int
) -> dict[str, Any]:
    """Multiply the same two matrices again and again, and compare each product with the first one.

    Their elements are -1, 0 and 1, so that each sum is a whole number that even bfloat16 holds, in
    whatever order it is made. The first product is compared with the CPU's, times a vector.
    side: of the product. Returns {"holds", "words", "tflops"}.
    """
    generator = torch.Generator().manual_seed(_SEED)
    left = torch.randint(-1, 2, (side, _INNER), generator=generator, dtype=torch.int8)
    right = torch.randint(-1, 2, (_INNER, side), generator=generator, dtype=torch.int8)
    vector = torch.randint(-1, 2, (side, 1), generator=generator).double()
    a, b = left.to(device, dtype), right.to(device, dtype)
    first = a @ b
    known = left.double() @ (right.double() @ vector)
    wrong = int((first.double().cpu() @ vector != known).sum())
    repeats = differ = 0
    began = time.monotonic()
    while repeats == 0 or time.monotonic() - began < seconds:
        # On the device, so that no wait for each of them slows it down.
        differences = torch.stack([((a @ b) != first).sum() for _ in range(8)])
        differ += int((differences > 0).sum())
        repeats += len(differences)
    tflops = repeats * 2 * side * side * _INNER / (time.monotonic() - began) / 1e12
    words = f"{repeats} equal products in {dtype_name(dtype)}"
    if wrong or differ:
        words = (
            f"products in {dtype_name(dtype)}: {wrong} of {side} sums are wrong, and {differ} of "
            f"{repeats} repetitions differ"
        )
    return {"holds": not (wrong or differ), "words": words, "tflops": tflops}


def prove_copy(source: torch.device, target: torch.device, count: int) -> dict[str, Any]:
    """Return {"holds", "words"}: whether bytes come from one device to another one as they were.

    count: of the bytes. Between two GPUs they go by NVLink, or by PCIe.
    """
    generator = torch.Generator().manual_seed(_SEED)
    content = torch.randint(256, (count,), dtype=torch.uint8, generator=generator)
    there = content.to(source).to(target).cpu()
    wrong = int((there != content).sum())
    words = f"a copy to {target}"
    return {"holds": not wrong, "words": f"{words}: {wrong} bytes are wrong" if wrong else words}


def prove(
    device: torch.device,
    step: Step,
    seconds: float | None = None,
    neighbour: torch.device | None = None,
) -> dict[str, Any]:
    """Return the record of one device, as it is printed.

    seconds: of each kind of product. neighbour: the device that it copies to; None: none.
    """
    keep_float32()
    kind = device.type
    limit = _SECONDS.get(kind, 1.0) if seconds is None else seconds
    reference = quantities(step)
    proofs = [prove_step(step, reference, device, dtype) for dtype in _DTYPES]
    proofs += [prove_products(device, dtype, limit, _SIDE.get(kind, 512)) for dtype in _DTYPES]
    proofs += [prove_copy(device, neighbour, _COPIED)] if neighbour else []
    name = torch.cuda.get_device_name(device) if kind == "cuda" else ""
    return {"device": str(device), "name": name, "proofs": proofs}


def main(arguments: list[str] | None = None) -> int:
    """Prove the devices. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.preflight.node.computing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("devices", metavar="DEVICE", nargs="*", help="as cuda:1, or cpu")
    parser.add_argument("--seconds", type=float, help="for the products of each type")
    options = parser.parse_args(arguments)
    names = options.devices or [f"cuda:{n}" for n in range(torch.cuda.device_count())] or ["cpu"]
    step = small_step()
    holds = True
    neighbours = [*names[1:], names[0]] if len(names) > 1 else [None]
    for name, neighbour in zip(names, neighbours, strict=True):
        print(json.dumps({"device": name}), flush=True)
        target = torch.device(neighbour) if neighbour else None
        record = prove(torch.device(name), step, options.seconds, target)
        print(json.dumps(record), flush=True)
        holds &= all(proof["holds"] for proof in record["proofs"])
    return 0 if holds else 1


if __name__ == "__main__":
    run_entry(main)
