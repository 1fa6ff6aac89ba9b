"""Whole runs that stream their data: from S3 through a cache, and with a damaged shard."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from data_pipeline.storage import open_store
from tests.trainer.comparing import incidents
from tests.trainer.launching import MAGE
from tests.trainer.worlds import finish, run_world
from trainer.run_folder import RunFolder


def test_s3_and_a_folder_give_the_same_weights(tokens: Path, bucket: str, tmp_path: Path) -> None:
    for path in tokens.iterdir():
        if path.is_file():
            open_store(f"{bucket}/tokens").create(path.name, path.read_bytes())
    weights = []
    for name, options in (
        ("folder", (f"data.tokens={tokens}",)),
        ("s3", (f"data.tokens={bucket}/tokens", CACHE)),
    ):
        finish(tmp_path / name, *MAGE, *(o.format(tmp_path) for o in options))
        weights.append(load_file(RunFolder(tmp_path / name).network))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert (
        list((tmp_path / "cache").glob("??/*.tar"))
        and not RunFolder(tmp_path / "s3").incidents.exists()
    )


CACHE = "data.cache={}/cache"


def test_a_damaged_shard_stops_the_run_or_counts_for_nothing(tokens: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tokens"
    shutil.copytree(tokens, copy)
    shard = copy / "tokens-000001.tar"
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(bytes(content))
    codes, output = run_world(tmp_path / "stop", *MAGE, f"data.tokens={copy}", processes=1)
    assert (
        codes[0] not in (0, 75)
        and "tokens-000001.tar is damaged" in output
        and "Traceback" not in output
    ), output
    finish(
        tmp_path / "go-on",
        *MAGE,
        f"data.tokens={copy}",
        "data.on_bad_shard=quarantine",
        processes=1,
    )
    assert incidents(tmp_path / "go-on", "shard quarantined")[0]["shard"] == shard.name
    assert all(row["loss"] > 0 for row in RunFolder(tmp_path / "go-on").read_metrics())
