"""Prove a machine, dtype or backend: reproduce a folder of the reference's inputs, weights and
outputs.

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
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.addp import ADDP
from model.attention import Probe, in_use, table
from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.denoising import FrozenNetworks
from model.device import usable_device
from model.documents import MIB, Count, Record, first_problem, parse_record, read_file
from model.entry import run_entry
from model.errors import WeightsError
from model.masking import DenoisingMasks
from model.precision import dtype_name, keep_float32, warn_of_bf16
from model.predictor import TokenPredictor
from model.sampler import Generation, advance, mask_length, next_image
from model.sampling_options import SamplingOptions
from model.vq import VQTokenizer
from model.weights import Sizes, from_official, read_state

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


class _Sizes(Record):
    """`config` of `meta.json`, in the reference's short names: p.. of the predictor, d.. of a
    decoder."""

    model_config = ConfigDict(extra="ignore")

    dim: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    ddepth: PositiveInt
    dheads: PositiveInt
    pdim: PositiveInt
    pdepth: PositiveInt
    pheads: PositiveInt
    pddepth: PositiveInt
    pdheads: PositiveInt | None = None
    ch: PositiveInt
    mult: tuple[PositiveInt, ...]
    res_blocks: PositiveInt = 2
    zc: PositiveInt
    smooth: float = Field(0.1, ge=0, lt=1)


class _Generation(Record):
    num_iter: int = Field(gt=0, le=1000)
    schedule: str
    choice_temperature: float
    temperature: str | float
    mask_lengths: list[Count]


class _Meta(Record):
    """`meta.json`."""

    model_config = ConfigDict(extra="ignore")

    image_size: int = Field(gt=0, le=4096)
    loss: float
    grad_norms: dict[str, float]
    config: _Sizes
    generation: _Generation | None = None


class _Tensors(dict[str, Tensor]):
    """Of io.safetensors."""

    def __missing__(self, key: str) -> Tensor:
        raise WeightsError(f"io.safetensors of the parity folder has no {key}")


class Ledger:
    """Deviations found so far; a quantity seen several times keeps its largest."""

    def __init__(self, tolerances: dict[str, float]) -> None:
        self.tolerances = tolerances
        self.rows: dict[str, dict[str, Any]] = {}

    def add(self, name: str, group: str, deviation: float) -> None:
        tolerance, seen = self.tolerances[group], self.rows.get(name)
        if seen is None or not (math.isnan(seen["deviation"]) or deviation <= seen["deviation"]):
            self.rows[name] = {
                "deviation": deviation,
                "tolerance": tolerance,
                "holds": deviation <= tolerance,
            }

    def tensor(self, name: str, group: str, ours: Tensor, reference: Tensor) -> None:
        """Largest absolute difference over the reference's largest absolute value."""
        ours, reference = ours.detach().double().cpu()[: reference.shape[0]], reference.double()
        if ours.shape != reference.shape:
            raise WeightsError(
                f"{name} has the shape {tuple(ours.shape)}, but the parity folder's has "
                f"{tuple(reference.shape)}"
            )
        self.add(
            name,
            group,
            float((ours - reference).abs().max() / reference.abs().max().clamp_min(1e-12)),
        )

    def ids(self, name: str, ours: Tensor, reference: Tensor) -> None:
        """Share of ids that differ."""
        self.add(name, "ids", float((ours.cpu().long() != reference.long()).double().mean()))

    def report(self, folder: Path, device: str, dtype: str, **more: Any) -> dict[str, Any]:
        """What a parity command prints, and `verdict` sums up."""
        return {
            "folder": folder.name,
            "device": device,
            "dtype": dtype,
            "torch": torch.__version__,
            "attention": ", ".join(in_use(torch.device(device).type)),
            **more,
            "holds": all(row["holds"] for row in self.rows.values()),
            "quantities": self.rows,
        }


def build_networks(folder: Path, meta: dict[str, Any]) -> tuple[FrozenNetworks, ADDP]:
    """The three networks of the sizes in `meta.json` (codebook size from the weights), loaded from
    the folder."""
    c, weights = meta["config"], folder / "weights.safetensors"
    state, _ = read_state(weights)
    codebook = state.get("vqgan.quantize.embedding.weight")
    if codebook is None or codebook.ndim != 2:
        raise WeightsError(f"{weights} has no codebook (vqgan.quantize.embedding.weight)")
    vq = TokenizerConfig(
        image_size=meta["image_size"],
        channels=c["ch"],
        channel_multipliers=tuple(c["mult"]),
        residual_blocks=c["res_blocks"],
        code_dim=c["zc"],
        codebook_size=codebook.shape[0],
    )
    geometry = Geometry.of(vq)
    of_predictor = TransformerConfig(
        dim=c["pdim"],
        depth=c["pdepth"],
        heads=c["pheads"],
        decoder_depth=c["pddepth"],
        decoder_heads=c["pdheads"] or c["pheads"],
    )
    of_addp = TransformerConfig(
        dim=c["dim"],
        depth=c["depth"],
        heads=c["heads"],
        decoder_depth=c["ddepth"],
        decoder_heads=c["dheads"],
    )
    tokenizer = from_official("tokenizer", Sizes(vq, None), state, weights)
    predictor = from_official("predictor", Sizes(of_predictor, geometry), state, weights)
    addp = from_official("addp", Sizes(of_addp, geometry), state, weights)
    assert (
        isinstance(tokenizer, VQTokenizer)
        and isinstance(predictor, TokenPredictor)
        and isinstance(addp, ADDP)
    )
    return FrozenNetworks(tokenizer, predictor), addp.eval()


def compare(folder: Path, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Run every quantity of the folder and return the report that `main` prints."""
    try:
        content = read_file(folder / "meta.json", MIB, WeightsError)
        meta = parse_record(_Meta, content, f"{folder / 'meta.json'}", WeightsError).model_dump()
        io = _Tensors(load_file(folder / "io.safetensors"))
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{folder} is no parity folder (meta.json, io.safetensors, weights.safetensors): "
            f"{error}"
        ) from error
    usable_device(device)
    keep_float32()
    if dtype == "bfloat16":
        warn_of_bf16(
            torch.device(device).type, "Prove it on a GPU (--device cuda), or another --dtype here"
        )
    torch_dtype: torch.dtype = getattr(torch, dtype)
    try:
        frozen, addp = build_networks(folder, meta)
    except ValidationError as error:
        raise WeightsError(
            f"{folder / 'meta.json'} states sizes that cannot be: {first_problem(error)}"
        ) from error
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
    _compare_step(ledger, frozen, addp, ids, io, meta)
    if meta["generation"]:
        _compare_generation(ledger, frozen.tokenizer, addp, image, ids, io, meta)
    return ledger.report(folder, device, dtype)


@torch.no_grad()
def _compare_tokenizer(
    ledger: Ledger, tokenizer: VQTokenizer, image: Tensor, io: dict[str, Tensor]
) -> None:
    ids = tokenizer.encode(image)
    ledger.ids("token_indices", ids, io["token_indices"])
    z0 = tokenizer.embed(io["token_indices"].long().to(image.device))
    ledger.tensor("z0", "tensor", z0, io["z0"])
    ledger.tensor("vq_reconstruction", "tensor", tokenizer.decode(z0), io["vq_reconstruction"])


def _compare_step(
    ledger: Ledger,
    frozen: FrozenNetworks,
    addp: ADDP,
    ids: Tensor,
    io: dict[str, Tensor],
    meta: dict[str, Any],
) -> None:
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
    loss = addp(noisy.x_t, ids, mask_t, noisy.target, meta["config"]["smooth"])
    ledger.add("loss", "loss", abs(loss.item() - meta["loss"]) / abs(meta["loss"]))

    scale = _LOSS_SCALE.get(dtype_name(noisy.x_t.dtype), 1.0)
    (loss * scale).backward()
    gradients = {
        name: p.grad.double() / scale for name, p in addp.named_parameters() if p.grad is not None
    }
    missing = sorted(set(meta["grad_norms"]) - set(gradients))
    ledger.add("parameters_without_gradient", "ids", float(len(missing)))
    for name, norm in meta["grad_norms"].items():
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
    image: Tensor,
    ids: Tensor,
    io: dict[str, Tensor],
    meta: dict[str, Any],
) -> None:
    g = meta["generation"]
    sampling = SamplingOptions(
        steps=g["num_iter"],
        schedule=g["schedule"],
        choice_temperature=g["choice_temperature"],
        temperature=g["temperature"],
    )
    state = Generation(image, ids, torch.ones_like(ids, dtype=torch.bool), torch.empty(0))
    lengths = [mask_length(sampling, s, ids.shape[1]) for s in range(sampling.steps)]
    ledger.add("gen.mask_lengths", "ids", float(lengths != g["mask_lengths"]))
    for step in range(sampling.steps):
        name = f"gen.{step}."
        sampled = io[name + "sampled_ids"].long().to(ids.device)
        gumbel = io[name + "gumbel"].to(ids.device)
        state = advance(
            addp,
            tokenizer,
            state,
            u=gumbel,
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
        mask = reference_mask.to(ids.device)
        state = state._replace(
            mask=mask, image=next_image(tokenizer, state.logits, state.ids, mask)
        )
        ledger.tensor(
            name + "image", "image", state.image[:, :, ::8, ::8], io[name + "image_sample"]
        )


def verdict(report: dict[str, Any]) -> str:
    """Of a `Ledger.report`, in one line; it names what is furthest off for its bound."""
    where = f"({report['dtype']}, {report['device']})"
    rows: dict[str, dict[str, Any]] = report["quantities"]
    if report["holds"]:
        return f"parity holds: {len(rows)} quantities within their bounds {where}"
    failing = {name: row for name, row in rows.items() if not row["holds"]}

    def excess(name: str) -> float:
        deviation, tolerance = failing[name]["deviation"], failing[name]["tolerance"]
        return float("inf") if math.isnan(deviation) or not tolerance else deviation / tolerance

    worst = max(failing, key=excess)
    row = failing[worst]
    return (
        f"parity FAILS: {len(failing)} of {len(rows)} quantities are off their bounds {where}; the "
        f"worst, {worst}, is {row['deviation']:.2g} off, allowed {row['tolerance']:.2g}"
    )


def attention_report(device: str) -> dict[str, Any]:
    """What `--attention --json` prints: by dtype and backend whether it works, why not, and its
    deviations."""
    usable_device(device)
    keep_float32()

    def row(found: Probe) -> dict[str, Any]:
        return {
            "works": found.works,
            "reason": found.reason,
            "forward": found.forward,
            "backward": found.backward,
        }

    dtypes = {
        dtype: {p.backend: row(p) for p in probes}
        for dtype, probes in table(torch.device(device)).items()
    }
    return {
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dtypes": dtypes,
    }


def attention_lines(report: dict[str, Any]) -> Iterator[str]:
    """For people; the first backend of a dtype that works is the one that computes."""
    yield f"attention on {report['device']}, torch {report['torch']}: the first that works computes"
    yield f"{'dtype':10}{'backend':10}{'works':7}{'forward':>9}{'backward':>10}  reason"
    for dtype, rows in report["dtypes"].items():
        for backend, row in rows.items():
            forward, backward = (
                "-" if v is None else f"{v:.1e}" for v in (row["forward"], row["backward"])
            )
            works = "yes" if row["works"] else "no"
            line = f"{dtype:10}{backend:10}{works:7}{forward:>9}{backward:>10}  {row['reason']}"
            yield line.rstrip()


def _show_attention(device: str, as_json: bool) -> int:
    report = attention_report(device)
    print(
        json.dumps(report, indent=1) if as_json else "\n".join(attention_lines(report)), flush=True
    )
    return (
        0
        if all(any(row["works"] for row in rows.values()) for rows in report["dtypes"].values())
        else 1
    )


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
