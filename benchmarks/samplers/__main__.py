"""Which sampler makes the best pictures for a number of network passes: a study on the network of a
finished run.

    python -m benchmarks.samplers runs/demo/addp --images runs/demo/images --out runs/samplers
    python -m benchmarks.samplers RUN --images IMAGES --out OUT --samples 5000 --seeds 3 \\
        --inception-weights pt_inception-2015-12-05-6726825d.pth
    python -m benchmarks.samplers RUN --images IMAGES --out OUT --family "mine: top_p=0.8"

A family is a set of options. Quality is the Fréchet distance to all of --images on packaged
EfficientNet features (FID with Inception's weights), with precision and recall. Families use the
same seeds and the same number of samples, on which these distances depend; do not compare them with
those of other numbers.

The rows stand in OUT/results.jsonl, one for each family, number of passes and seed, so that the
same command goes on where it stopped, and another one adds to them. At the end: the table of means
and standard errors, the best family of each number of passes beside the published sampler, and the
plot OUT/samplers.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks.samplers.measuring import measured, real_features
from benchmarks.samplers.plot import draw
from benchmarks.samplers.settings import FAMILIES, Setting, setting
from benchmarks.samplers.summary import best_of_each, table
from benchmarks.step.rates import device_name
from model.errors import ConfigError
from model.sampling_options import SamplingOptions
from model.weights import fingerprint
from trainer.distributed.collectives import own_device
from trainer.evaluation.measures.fidelity import EfficientNet, Extractor, Inception
from trainer.evaluation.trained import load_addp

# The names by which rows have them.
_EFFICIENTNET, _INCEPTION = [EfficientNet.name], [Inception.name]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="folder of a finished ADDP run")
    parser.add_argument("--images", required=True, help="real images to compare with")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--passes", type=int, nargs="+", default=[8, 12, 20, 40])
    parser.add_argument(
        "--family",
        action="append",
        metavar="NAME[: OPTIONS]",
        help="measure these families, by name or with options, in place of all; may be repeated",
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--inception-weights", type=Path)
    return parser.parse_args()


def families(chosen: list[str] | None) -> dict[str, str]:
    """Return the options of each family that is to be measured. Raises ConfigError."""
    if chosen is None:
        return FAMILIES
    found = {}
    for text in chosen:
        name, colon, options = (part.strip() for part in text.partition(":"))
        if not colon and name not in FAMILIES:
            raise ConfigError(f"--family {name}: there are {', '.join(FAMILIES)}")
        found[name] = options if colon else FAMILIES[name]
    return found


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows that are there. A last one that was cut off is removed from the file.

    Rows of earlier versions do not say by which networks they were measured; their metrics do.
    """
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(file, len(whole))
    rows = [json.loads(line) for line in whole.splitlines()]
    for row in rows:
        row.setdefault("extractors", _EFFICIENTNET + _INCEPTION * ("fid" in row))
    return rows


def key_of(row: dict[str, Any]) -> str:
    """What a row is a function of. Options that came later have their defaults in it."""
    sampling = SamplingOptions().model_dump(mode="json") | row["sampling"]
    names = ("seed", "samples", "batch", "network", "images", "extractors")
    return json.dumps([sampling, *(row[name] for name in names)], sort_keys=True)


def main() -> None:
    options = arguments()
    device = own_device()
    trained = load_addp(options.run)
    trained.network.to(device)
    trained.tokenizer.to(device)
    extractors: list[Extractor] = [EfficientNet(device)]
    if options.inception_weights:
        extractors.append(Inception(options.inception_weights, device))
    options.out.mkdir(parents=True, exist_ok=True)
    size = trained.config.geometry.image_size
    references = {
        e: real_features(options.images, size, options.batch, e, options.out) for e in extractors
    }
    file = options.out / "results.jsonl"
    rows = read_rows(file)
    done = {key_of(row) for row in rows}
    settings: list[Setting] = [
        setting(name, words, passes)
        for name, words in families(options.family).items()
        for passes in options.passes
    ]
    # Seed by seed: where it is stopped, all families have the same seeds, or nearly.
    for seed in range(options.seeds):
        for chosen in settings:
            row = {
                "family": chosen.family,
                "passes": chosen.sampling.steps,
                "sampling": chosen.sampling.model_dump(mode="json"),
                "seed": seed,
                "samples": options.samples,
                "batch": options.batch,
                "network": fingerprint(trained.network),
                "images": len(references[extractors[0]].features),
                "extractors": [extractor.name for extractor in extractors],
                "torch": torch.__version__,
                "processor": device_name(device),
                "python": platform.python_version(),
                "load": round(os.getloadavg()[0], 1),
            }
            if key_of(row) in done:
                continue
            row |= measured(
                trained,
                chosen.sampling,
                references,
                seed=seed,
                samples=options.samples,
                batch=options.batch,
            )
            with file.open("a") as out:
                out.write(json.dumps(row) + "\n")
            rows.append(row)
            distance = row["efficientnet_frechet_distance"]
            print(
                f"{chosen.family}, {row['passes']} passes, seed {seed}: {distance:.2f}", flush=True
            )
    # A folder may have rows of another network, too, of other images, or with other metrics.
    alike = {name: row[name] for name in ("samples", "batch", "network", "images", "extractors")}
    mine = [other for other in rows if alike.items() <= other.items()]
    print(table(mine))
    print(best_of_each(mine))
    title = f"{options.samples} samples a seed, {options.run}, torch {torch.__version__}"
    draw(mine, title, options.out / "samplers.png")


if __name__ == "__main__":
    main()
