"""`addp data`: bench, preview, order, read-with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cluster.commands.other_readers import reading_lines
from data_pipeline.images.sources import split_of
from data_pipeline.storage import LocalStore, open_store
from data_pipeline.streaming.loader import LoaderOptions, TokenLoader
from tests.cluster.calling import addp
from tests.token_sets import samples_of, tokens_of, write_tokens


def test_bench(tokens: Path) -> None:
    done = addp("data", "bench", tokens, "--global-batch", "16", "--seconds", "0.5", "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (
        found["samples_per_second"] > 1000 and found["first_batch_ms"] > 0 and found["epochs"] > 1
    )


def test_order_names_the_images_of_a_step(tokens: Path, images: Path) -> None:
    done = addp(
        "data",
        "order",
        tokens,
        "--step",
        "9",
        "--global-batch",
        "16",
        "--count",
        "5",
        "--seed",
        "3",
        "--json",
    )
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    reader = TokenLoader(tokens, global_batch=16, seed=3, options=LoaderOptions())
    assert [entry["label"] for entry in found] == reader.batch(9, 0, 5).labels.tolist()
    labels = {p.id: p.label for p in split_of(images).images}
    assert all(labels[entry["image"]] == entry["label"] for entry in found)
    assert found[0]["epoch"] == 9 // reader.schedule.steps_per_epoch
    reader.close()
    refused = addp("data", "order", tokens, "--step", "0", "--global-batch", "4", "--count", "5")
    assert refused.code == 78 and "beyond the global batch" in refused.stderr


def test_preview(tokens: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "out" / "preview.png"
    arguments = (
        "data",
        "preview",
        tokens,
        "--global-batch",
        "16",
        "--count",
        "9",
        "--zoom",
        "2",
        "--page",
    )
    done = addp(*arguments, page, "--tokenizer", tokenizer_file)
    assert done.code == 0, done.stderr
    assert Image.open(page).size == (3 * 34 + 2, 3 * 34 + 2)
    missing = addp("data", "bench", tmp_path)
    assert missing.code == 1 and "is no finished token data set" in missing.stderr
    unknown = addp(*arguments, tmp_path / "x" / "preview.xyz", "--tokenizer", tokenizer_file)
    assert (
        unknown.code == 78
        and "must end in .png" in unknown.stderr
        and not (tmp_path / "x").exists()
    )


def make_run(place: Path | str, **sections: object) -> str:
    """What a run leaves of its configuration, in a folder or on a store."""
    store = open_store(place)
    store.create("config.resolved.yaml", yaml.safe_dump(sections).encode())
    return str(place)


MAGE = {"objective": "mage", "seed": 5, "batch": {"global_batch": 8, "micro": 2}}


@pytest.mark.parametrize("on_store", [False, True])
def test_a_run_says_what_is_read(
    on_store: bool,
    tokens: Path,
    tokenizer_file: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Data set, batch, seed and window; rewinds too, and options that are given win."""
    place = request.getfixturevalue("bucket") + "/run" if on_store else tmp_path / "run"
    data = {"tokens": str(tokens), "window": 2, "tail": "pad"}
    run = make_run(place, **MAGE, data=data, tokenizer={"weights": str(tokenizer_file)})
    open_store(place).create(
        "rewinds.json", b'[{"step": 4, "length": 3}, {"step": 20, "length": 1}]'
    )

    reader = TokenLoader(
        tokens, global_batch=8, seed=5, options=LoaderOptions(window=2, tail="pad")
    )
    for step, read in ((3, 3), (4, 7), (19, 22), (20, 24)):
        found = json.loads(
            addp("data", "order", "--run", run, "--step", step, "--count", 8, "--json").stdout
        )
        assert [entry.get("label", 0) for entry in found] == reader.batch(
            read, 0, 8
        ).labels.tolist()
        assert found[0].get("data_step", step) == read
    reader.close()

    other = json.loads(
        addp("data", "order", tokens, "--step", 7, "--global-batch", 8, "--json").stdout
    )
    given = json.loads(
        addp(
            "data", "order", "--run", run, "--step", 4, "--seed", 0, "--window", 16, "--json"
        ).stdout
    )
    assert given[0]["row"] == other[0]["row"] and given[0]["shard"] == other[0]["shard"]

    page = tmp_path / "page.png"
    done = addp("data", "preview", "--run", run, "--page", page)
    assert done.code == 0 and Image.open(page).size[0] < 100, done.stderr  # 8 samples, not 32
    speed = json.loads(addp("data", "bench", "--run", run, "--seconds", 0.1, "--json").stdout)
    assert speed["global_batch"] == 8


def test_a_run_on_a_mixture(tmp_path: Path) -> None:
    few, many = str(tmp_path / "few"), str(tmp_path / "many")
    write_tokens(LocalStore(Path(few)), [40])
    write_tokens(LocalStore(Path(many)), [30, 30], first=40)
    run = make_run(tmp_path / "run", **MAGE, data={"mixture": {few: 1, many: 3}})
    done = addp("data", "order", "--run", run, "--step", 2, "--count", 8, "--json")
    found = json.loads(done.stdout)
    reader = TokenLoader([(few, 1.0), (many, 3.0)], global_batch=8, seed=5)
    read = samples_of(reader.batch(2, 0, 8).ids)
    reader.close()
    assert [entry["label"] for entry in found] == read
    assert [entry["class"] for entry in found] == [f"class {n}" for n in read]
    assert [entry["dataset"] for entry in found] == [few if n < 40 else many for n in read]
    assert len({entry["dataset"] for entry in found}) == 2


def test_what_says_not_what_is_read(tokens: Path, tmp_path: Path) -> None:
    assert addp("data", "bench").code == 2
    none = addp("data", "order", "--run", tmp_path, "--step", 0)
    assert none.code == 78 and "has no config.resolved.yaml" in none.stderr
    images = addp("data", "bench", "--run", make_run(tmp_path / "run", objective="tokenizer"))
    assert images.code == 78 and "reads no token data set" in images.stderr
    unnamed = addp(
        "data",
        "preview",
        "--run",
        make_run(tmp_path / "mage", **MAGE, data={"tokens": str(tokens)}),
    )
    assert unnamed.code == 78 and "give --tokenizer FILE" in unnamed.stderr


# A process of its own runs the lines. Before them Ray is told to start small; after them comes a
# look at the result.
_BEGINNINGS = {
    "ray": "import ray\nray.init(include_dashboard=False, num_cpus=2, log_to_driver=False)\n"
}
_LOOKS = {
    "webdataset": "found = [(tokens.tolist(), label) for tokens, label in samples]",
    "torch": "found = [row for b in batches for row in zip(b[0].tolist(), b[1].tolist())]",
    "ray": "found = [(r['tokens.npy'].tolist(), r['cls']) for r in samples.iter_rows()]",
}


def read_by(library: str, tokens: Path) -> list[tuple[list[list[int]], int]]:
    """(tokens, label) of each sample, sorted by label."""
    done = addp("data", "read-with", tokens, "--json")
    assert done.code == 0, done.stderr
    lines = json.loads(done.stdout)[library]
    assert len(lines.splitlines()) == 3
    assert lines in addp("data", "read-with", tokens).stdout
    look = f"{_LOOKS[library]}\nimport json\nprint(json.dumps(found))"
    script = f"{_BEGINNINGS.get(library, '')}{lines}\n{look}"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    return sorted(((ids, label) for ids, label in found), key=lambda sample: sample[1])


# Ray Data starts a cluster of its own, which takes half a minute on a busy machine.
@pytest.mark.parametrize(
    "library", ["webdataset", "torch", pytest.param("ray", marks=pytest.mark.long)]
)
def test_other_libraries_read_the_shards(library: str, tmp_path: Path) -> None:
    write_tokens(open_store(tmp_path / "set"), [5, 4, 3])
    expected = [([tokens_of(n, view).tolist() for view in range(2)], n) for n in range(12)]
    assert read_by(library, tmp_path / "set") == expected


def test_the_names_of_shards_in_braces() -> None:
    for names, braces in (
        (("tokens-000000.tar",), "tokens-000000.tar"),
        (("tokens-000008.tar", "tokens-000009.tar", "tokens-000010.tar"), "{000008..000010}.tar"),
        (("tokens-000000.tar", "tokens-000002.tar"), "/{tokens-000000.tar,tokens-000002.tar}"),
        (("a.tar", "b.tar"), "/{a.tar,b.tar}"),
    ):
        lines = reading_lines("s3://b/set", names)
        assert braces in lines["webdataset"] and "'s3://b/set'" in lines["ray"]
        assert 'WebDataset("pipe:aws s3 cp ' in lines["torch"] or len(names) == 1
