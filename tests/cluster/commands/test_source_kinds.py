"""Every kind of source that docs/tokenize.md names, from `plan` to `verify` and the loader, in a
folder and on S3.

Images and labels that arrive are compared with those that were put in, by encoding them anew.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.io import savemat
from typer.testing import CliRunner

from cluster.commands.tokenize import app
from data_pipeline.images.images import decode_image
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view
from data_pipeline.storage import StorageError, Store, open_store
from data_pipeline.streaming.loader import TokenLoader
from model.errors import DataError
from model.vq import VQTokenizer
from tests.cluster.sharding_jobs import succeed
from tests.tars import jpeg, link, tar_of

WORDNET = ("n01440764", "n01443537", "n02084071")  # sorted, as their labels are


class Case(NamedTuple):
    """source: behind the place. options: of `plan`. labels: of images jpeg(0), jpeg(1) ..."""

    source: str
    options: tuple[str, ...]
    labels: tuple[int, ...]


def folders(store: Store, _: Path) -> Case:
    for i, folder in enumerate(("cat", "ant/deep", "bee")):
        store.create(f"images/{folder}/{i}.jpg", jpeg(i))
    return Case("images", (), (2, 0, 1))


def imagenet_train(store: Store, _: Path) -> Case:
    inner = {
        f"{w}.tar": tar_of({f"{w}_{i}.JPEG": jpeg(2 * k + i) for i in range(2)})
        for k, w in enumerate(WORDNET)
    }
    store.create("ILSVRC2012_img_train.tar", tar_of(dict(reversed(inner.items()))))
    return Case("ILSVRC2012_img_train.tar", (), (0, 0, 1, 1, 2, 2))


VAL = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(i) for i in range(4)}


def imagenet_val(store: Store, scratch: Path) -> Case:
    store.create("in/ILSVRC2012_img_val.tar", tar_of(dict(reversed(VAL.items()))))
    (scratch / "labels.txt").write_text("n02084071\nn01440764\nn01443537\nn01440764\n")
    return Case(
        "in/ILSVRC2012_img_val.tar", ("--labels", str(scratch / "labels.txt")), (2, 0, 1, 0)
    )


def imagenet_val_with_devkit(store: Store, scratch: Path) -> Case:
    store.create("ILSVRC2012_img_val.tar", tar_of(VAL))
    fields = [("ILSVRC2012_ID", int), ("WNID", object), ("words", object)]
    rows = [(1, WORDNET[2], "dog"), (2, WORDNET[0], "tench"), (3, WORDNET[1], "goldfish")]
    data = scratch / "devkit" / "data"
    data.mkdir(parents=True)
    savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=fields)})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n1\n")
    with tarfile.open(scratch / "devkit.tar.gz", "w:gz") as tar:
        tar.add(data.parent, "ILSVRC2012_devkit_t12")
    return Case(
        "ILSVRC2012_img_val.tar", ("--devkit", str(scratch / "devkit.tar.gz")), (1, 2, 0, 2)
    )


def shards(store: Store, count: int = 12) -> tuple[int, ...]:
    """One image a shard; in one of them it is a link."""
    for i in range(count):
        files: dict[str, Any] = {"x.jpg": jpeg(i), "x.cls": b"%d" % (i % 3)}
        if i == 5:
            files = {
                "real.bin": files["x.jpg"],
                "x.jpg": link(tarfile.LNKTYPE, "real.bin"),
                "x.cls": files["x.cls"],
            }
        store.create(f"wds/shard-{i:03d}.tar", tar_of(files))
    return tuple(i % 3 for i in range(count))


def one_shard(store: Store, _: Path) -> Case:
    return Case("wds/shard-000.tar", (), shards(store, 3)[:1])


def folder_of_shards(store: Store, _: Path) -> Case:
    return Case("wds", (), shards(store))


def brace_list(store: Store, _: Path) -> Case:
    return Case("wds/shard-{000..010}.tar", (), shards(store)[:11])


def command(*arguments: str) -> dict[str, Any]:
    """A command in this process, with --json."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def expected(tokenizer: VQTokenizer, labels: tuple[int, ...]) -> list[tuple[int, bytes]]:
    """(label, tokens) of jpeg(0), jpeg(1) ..., sorted."""
    views = [
        make_view(decode_image(jpeg(i)), "", 0, ViewRecipe.center(16)) for i in range(len(labels))
    ]
    with torch.no_grad():
        tokens = tokenizer.encode(
            torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255
        ).numpy()
    assert len({row.tobytes() for row in tokens}) == len(labels)  # else a mix-up could not be seen
    return sorted(
        (label, row.astype(np.uint16).tobytes()) for label, row in zip(labels, tokens, strict=True)
    )


def loaded(out: str) -> list[tuple[int, bytes]]:
    rows = command("status", out)["images"]
    reader = TokenLoader(out, global_batch=rows, seed=0)
    batch = reader.batch(0, 0, rows)
    reader.close()
    return sorted(
        (int(label), ids.astype(np.uint16).tobytes())
        for label, ids in zip(*batch[1::-1], strict=True)
    )


def test_processes_in_other_folders(
    tokenizer: VQTokenizer, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user has it: relative paths, planned in one folder, run in another."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.chdir(tmp_path)
    case = imagenet_train(open_store("data"), tmp_path)
    (tmp_path / "elsewhere").mkdir()
    weights = ("--tokenizer", str(tokenizer_file))
    succeed("plan", f"data/{case.source}", "out", *weights, "--center")
    monkeypatch.chdir("elsewhere")
    assert succeed("run", "../out", *weights, "--finalize")["quarantined"] == 0
    assert loaded("../out") == expected(tokenizer, case.labels)


def test_images_that_were_moved(
    tokenizer: VQTokenizer, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run --source` takes what `plan` takes, and refuses what was not planned."""
    labels = shards(open_store(tmp_path / "data"), 6)
    weights = ("--tokenizer", str(tokenizer_file))
    for out in ("a", "b"):
        command(
            "plan",
            f"{tmp_path}/data/wds/shard-{{000..005}}.tar",
            f"{tmp_path}/{out}",
            *weights,
            "--center",
        )
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", "a", *weights])
    assert isinstance(done.exception, StorageError) and "there is no folder" in str(done.exception)
    done = CliRunner().invoke(
        app, ["run", "a", *weights, "--source", "moved/wds/shard-{000..004}.tar"]
    )
    assert isinstance(
        done.exception, DataError
    ) and "the plan's images lie in shard-005.tar" in str(done.exception)
    assert not (tmp_path / "a" / "parts").exists()
    for out, source in (("a", "moved/wds/shard-{000..005}.tar"), ("b", "moved/wds")):
        command("run", out, *weights, "--source", source, "--finalize")
        assert loaded(out) == expected(tokenizer, labels)


KINDS: tuple[Callable[[Store, Path], Case], ...] = (
    folders,
    imagenet_train,
    imagenet_val,
    imagenet_val_with_devkit,
    one_shard,
    folder_of_shards,
    brace_list,
)


@pytest.mark.parametrize("where", ["folder", "s3"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_from_plan_to_the_loader(
    kind: Callable[[Store, Path], Case],
    where: str,
    tokenizer: VQTokenizer,
    tokenizer_file: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)  # on a folder, source and data set are given by relative paths
    place = "data/" if where == "folder" else f"{request.getfixturevalue('bucket')}/data/"
    case = kind(open_store(place), tmp_path)
    out, weights = f"{place}out", ("--tokenizer", str(tokenizer_file))
    planned = command(
        "plan", f"{place}{case.source}", out, *weights, "--center", "--rows", "4", *case.options
    )
    assert planned["images"] == len(case.labels)
    if where == "folder":
        monkeypatch.chdir(tmp_path / "elsewhere")
        out = f"../{out}"
    made = command("run", out, *weights, "--finalize", "--device", "cpu", "--threads", "1")
    assert (made["images"], made["quarantined"]) == (len(case.labels), 0)
    assert command("verify", out)["sound"]
    assert loaded(out) == expected(tokenizer, case.labels)
