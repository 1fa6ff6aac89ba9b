"""Proves a machine, dtype or backend: reproduces the outputs of the reference from its inputs and
weights, which a folder holds.

    python -m model.parity FOLDER [--device cuda] [--dtype bfloat16]
    python -m model.parity --attention [--device cuda] [--json]

FOLDER holds `weights.safetensors` (official keys), `io.safetensors` and `meta.json`. Prints JSON
with the largest deviation of each quantity, relative to the reference's largest value, and then, on
standard error, the verdict in one line; exits 0 if all quantities hold, 1 if not. --attention: a
table of what each attention backend does on the device, without a folder; exits 1 if none works for
some dtype.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.addp import ADDP
from model.attention_report import attention_lines, attention_report
from model.denoising import FrozenNetworks
from model.device import usable_device
from model.entry import run_entry
from model.errors import WeightsError
from model.ledger import Ledger, verdict
from model.masking import DenoisingMasks
from model.parity_folder import Meta, ReferenceGeneration, Tensors, build_networks, read_folder
from model.precision import dtype_name, keep_float32, warn_of_bf16
from model.sampler import Generation, advance, next_image
from model.sampling.schedules import mask_length
from model.sampling_options import SamplingOptions
from model.vq import VQTokenizer

# Largest allowed deviation by dtype. float32 and float64 prove the method; half precisions prove
# that a backend is sane: rounding alone moves them this far from a float32 reference. Gradients of
# small biases are sums that nearly cancel, and depend most on how a processor rounds: in bfloat16
# up to 0.12 was seen where it is emulated.
TOLERANCES: dict[str, dict[str, float]] = {
    name: {
        "ids": 0.0,
        "tensor": 1e-4,
        "loss": 1e-5,
        "gradient_norm": 1e-3,
        "gradient": 1e-3,
        "image": 1e-4,
    }
    for name in ("float32", "float64")
} | {
    "bfloat16": {
        "ids": 0.1,
        "tensor": 0.1,
        "loss": 1e-2,
        "gradient_norm": 0.2,
        "gradient": 0.2,
        "image": 0.1,
    },
    "float16": {
        "ids": 0.02,
        "tensor": 0.02,
        "loss": 1e-3,
        "gradient_norm": 0.02,
        "gradient": 0.02,
        "image": 0.02,
    },
}
_LOSS_SCALE = {"float16": 2.0**12}  # as in training: float16 gradients would underflow


def compare(folder: Path, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Compare every quantity of a folder, and return a `Ledger.report`. Raises WeightsError for a
    folder that is none, ConfigError for a device that cannot be used."""
    meta, io = read_folder(folder)
    usable_device(device)
    keep_float32()
    if dtype == "bfloat16":
        warn_of_bf16(
            torch.device(device).type, "Prove it on a GPU (--device cuda), or another --dtype here"
        )
    torch_dtype: torch.dtype = getattr(torch, dtype)
    frozen, addp = build_networks(folder, meta)
    frozen.to(device, torch_dtype)
    addp.to(device, torch_dtype)
    ledger = Ledger(TOLERANCES[dtype])
    image, ids = io["image"].to(device, torch_dtype), io["token_indices"].long().to(device)
    geometry = addp.geometry
    side, shape = geometry.image_size, (ids.shape[0], geometry.tokens)
    in_range = ids.numel() > 0 and 0 <= int(ids.min()) <= int(ids.max()) < geometry.codebook_size
    if ids.shape != shape or image.shape[1:] != (3, side, side) or not in_range:
        raise WeightsError(
            f"{folder}: image or token_indices of io.safetensors are not of the sizes in meta.json"
        )
    _compare_tokenizer(ledger, frozen.tokenizer, image, io)
    _compare_step(ledger, frozen, addp, ids, io=io, meta=meta)
    if meta.generation:
        state = Generation(image, ids, torch.ones_like(ids, dtype=torch.bool), torch.empty(0))
        _compare_generation(ledger, frozen.tokenizer, addp, state, io=io, reference=meta.generation)
    return ledger.report(folder, device, dtype)


@torch.no_grad()
def _compare_tokenizer(ledger: Ledger, tokenizer: VQTokenizer, image: Tensor, io: Tensors) -> None:
    """Compare ids, their codes, and the reconstruction."""
    ids = tokenizer.encode(image)
    ledger.ids("token_indices", ids, io["token_indices"])
    z0 = tokenizer.embed(io["token_indices"].long().to(image.device))
    ledger.tensor("z0", "tensor", z0, io["z0"])
    ledger.tensor("vq_reconstruction", "tensor", tokenizer.decode(z0), io["vq_reconstruction"])


def _compare_step(
    ledger: Ledger, frozen: FrozenNetworks, addp: ADDP, ids: Tensor, *, io: Tensors, meta: Meta
) -> None:
    """Compare a training step: x_t, target, features, logits, loss and gradients."""
    mask_t, mask_next = (io[name].bool().to(ids.device) for name in ("mask_t", "mask_t_next"))
    noisy = frozen(ids, DenoisingMasks(mask_t, mask_next, int(mask_t[0].sum())))
    ledger.tensor(
        "predicted_soft_embedding", "tensor", noisy.soft_embedding, io["predicted_soft_embedding"]
    )
    ledger.tensor("x_t", "tensor", noisy.x_t, io["x_t"])
    ledger.tensor(
        "target_prob", "tensor", noisy.target, io["target_prob"].flatten(2).transpose(1, 2)
    )

    features = addp.encode(noisy.x_t)
    ledger.tensor("encoder_output", "tensor", features, io["encoder_output"])
    ledger.tensor("logits", "tensor", addp.decode(features, ids, mask_t), io["logits"])
    loss = addp(noisy.x_t, ids, mask_t, noisy.target, meta.config.smooth)
    ledger.add("loss", "loss", abs(loss.item() - meta.loss) / abs(meta.loss))

    scale = _LOSS_SCALE.get(dtype_name(noisy.x_t.dtype), 1.0)
    (loss * scale).backward()
    gradients = {
        name: p.grad.double() / scale for name, p in addp.named_parameters() if p.grad is not None
    }
    missing = sorted(set(meta.grad_norms) - set(gradients))
    ledger.add("parameters_without_gradient", "ids", float(len(missing)))
    for name, norm in meta.grad_norms.items():
        if name in gradients:
            ours = float(gradients[name].norm())
            ledger.add(
                f"grad_norm.{name}", "gradient_norm", abs(ours - norm) / max(abs(norm), 1e-12)
            )
    for key in io:
        if key.startswith("grad.") and (name := key.removeprefix("grad.")) in gradients:
            ledger.tensor(key, "gradient", gradients[name], io[key])


@torch.no_grad()
def _compare_generation(
    ledger: Ledger,
    tokenizer: VQTokenizer,
    addp: ADDP,
    state: Generation,
    *,
    io: Tensors,
    reference: ReferenceGeneration,
) -> None:
    """Compare the generation from `state` on, step by step."""
    sampling = SamplingOptions(
        steps=reference.num_iter,
        schedule="cosine" if reference.schedule == "cosine" else "linear",
        choice_temperature=reference.choice_temperature,
        temperature="dynamic" if reference.temperature == "dynamic" else "constant",
    )
    device, length = state.ids.device, state.ids.shape[1]
    lengths = [mask_length(sampling, step, length) for step in range(sampling.steps)]
    ledger.add("gen.mask_lengths", "ids", float(lengths != reference.mask_lengths))
    for step in range(sampling.steps):
        name = f"gen.{step}."
        sampled = io[name + "sampled_ids"].long().to(device)
        gumbel = io[name + "gumbel"].to(device)
        state = advance(
            addp,
            tokenizer,
            state,
            u=gumbel,  # not used, as the ids are given
            gumbel=gumbel,
            sampling=sampling,
            step=step,
            sampled=sampled,
        )
        reference_mask = io[name + "mask_next"].bool()
        ledger.tensor(
            name + "logits", "tensor", state.logits[:, ::37, ::41], io[name + "logits_sample"]
        )
        ledger.ids(name + "mask_next", state.mask, reference_mask)
        # Decode and go on from the reference's mask: a tie broken by rounding counts once, as a
        # mask.
        mask = reference_mask.to(device)
        state = state._replace(
            mask=mask, image=next_image(tokenizer, state.logits, state.ids, mask)
        )
        ledger.tensor(
            name + "image", "image", state.image[:, :, ::8, ::8], io[name + "image_sample"]
        )


def _show_attention(device: str, as_json: bool) -> int:
    report = attention_report(device)
    print(
        json.dumps(report, indent=1) if as_json else "\n".join(attention_lines(report)), flush=True
    )
    computes = (any(row["works"] for row in rows.values()) for rows in report["dtypes"].values())
    return 0 if all(computes) else 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=os.environ.get("ADDP_PROGRAM", "python -m model.parity"),
        description=__doc__.split("\n\n")[0],
    )
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        help="folder with weights.safetensors, io.safetensors and meta.json",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default cpu)")
    parser.add_argument(
        "--dtype", default="float32", choices=list(TOLERANCES), help="default float32"
    )
    parser.add_argument(
        "--attention", action="store_true", help="a table of the attention backends, and no more"
    )
    parser.add_argument("--json", action="store_true", help="with --attention: as JSON")
    options = parser.parse_args(arguments)
    if options.attention:
        return _show_attention(options.device, options.json)
    if options.folder is None:
        parser.error("give a FOLDER, or --attention")
    report = compare(options.folder, options.device, options.dtype)
    print(json.dumps(report, indent=1), flush=True)
    print(verdict(report), file=sys.stderr)
    return 0 if report["holds"] else 1


if __name__ == "__main__":
    run_entry(main)
