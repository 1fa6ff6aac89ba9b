"""A shard is a tar to every other program, and an array to us."""

from __future__ import annotations

import hashlib
import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.shards.format import Layout, Sample, ShardReader, write_shard
from data_pipeline.shards.manifest import read_manifest
from model.errors import DataError


def samples(count: int, views: int, tokens: int, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [
        Sample(
            1000 + 7 * i,
            int(rng.integers(0, 1000)),
            rng.integers(0, 65536, (views, tokens), dtype=np.uint16),
        )
        for i in range(count)
    ]


def write(path: Path, content: list[Sample], layout: Layout) -> bytes:
    file = io.BytesIO()
    assert write_shard(file, content, layout) == len(content)
    path.write_bytes(file.getvalue())
    return file.getvalue()


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    views=st.integers(1, 12),
    tokens=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory, count: int, views: int, tokens: int, seed: int
) -> None:
    path, layout = tmp_path_factory.mktemp("shard") / "s.tar", Layout(views, tokens)
    content = samples(count, views, tokens, seed)
    write(path, content, layout)
    reader = ShardReader(path.open("rb"), count, layout)
    rows, view = np.arange(count)[::-1], np.arange(count) % views
    np.testing.assert_array_equal(
        reader.records["tokens"][rows, view],
        [content[r].tokens[v] for r, v in zip(rows, view, strict=True)],
    )
    assert [int(label) for label in reader.records["label"][rows]] == [
        content[r].label for r in rows
    ]
    assert [int(index) for index in reader.records["index"][rows]] == [
        content[r].image for r in rows
    ]
    in_memory = ShardReader(path.read_bytes(), count, layout)
    assert np.array_equal(in_memory.records, reader.records)


def test_plain_webdataset_reads_the_same(tokens: Path) -> None:
    manifest = read_manifest(tokens)
    for shard in manifest.shards:
        reader = ShardReader(
            (tokens / shard.name).open("rb"), shard.rows, manifest.layout, shard.xxh3
        )
        rows = list(webdataset.WebDataset(str(tokens / shard.name), shardshuffle=False).decode())
        assert len(rows) == shard.rows
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(row["tokens.npy"], reader.records["tokens"][i])
            assert row["tokens.npy"].dtype == np.uint16
            assert row["cls"] == int(reader.records["label"][i])
            assert int(row["__key__"]) == int(reader.records["index"][i])


def test_gnu_tar_and_numpy_read_it(tmp_path: Path) -> None:
    content = samples(3, 2, 16)
    write(tmp_path / "s.tar", content, Layout(2, 16))
    listed = subprocess.run(
        ["tar", "tvf", tmp_path / "s.tar"], capture_output=True, text=True, check=True
    )
    assert listed.stderr == "" and len(listed.stdout.splitlines()) == 6
    assert "000000001007.tokens.npy" in listed.stdout and "1970-01-01" in listed.stdout
    subprocess.run(["tar", "xf", tmp_path / "s.tar", "-C", tmp_path], check=True)
    np.testing.assert_array_equal(
        np.load(tmp_path / "000000001007.tokens.npy", allow_pickle=False), content[1].tokens
    )


def test_bytes_never_change(tmp_path: Path) -> None:
    """The format is a promise: the same samples give these bytes with any release of Python and
    NumPy."""
    data = write(tmp_path / "s.tar", samples(2, 3, 16), Layout(3, 16))
    assert hashlib.sha256(data).hexdigest() == GOLDEN


GOLDEN = "15da1686e179677b05e44c1a08a8d406ebf2f6645e8235f906e9045ce3c78b06"


def test_ten_views_of_256_tokens_take_the_documented_space() -> None:
    assert Layout(10, 256).stride == 7168  # 1.4 times the tokens themselves


def test_damage_is_seen(tmp_path: Path) -> None:
    path, layout = tmp_path / "s.tar", Layout(2, 16)
    data = write(path, samples(4, 2, 16), layout)
    checksum = xxhash.xxh3_128_hexdigest(data)
    ShardReader(path.open("rb"), 4, layout, checksum)
    for position in (0, layout.tokens_offset + 3, layout.stride + 130, len(data) - 1):
        damaged = bytearray(data)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            ShardReader(path.open("rb"), 4, layout, checksum)
    for cut in (0, 512, layout.stride, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match="bytes instead of"):
            ShardReader(path.open("rb"), 4, layout, checksum)
