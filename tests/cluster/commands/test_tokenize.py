"""`addp tokenize` in processes of its own, on a folder and on a real S3 server."""

from __future__ import annotations

import json
import os
import random
import re
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from typer.testing import CliRunner

from cluster.commands.tokenize import app
from data_pipeline.shards.manifest import read_manifest
from data_pipeline.storage import open_store
from tests.cluster.sharding_jobs import (
    command,
    contents,
    run_with_kills,
    succeed,
    tokenize,
    undisturbed,
    visible_shards_are_whole,
)
from tests.patience import PATIENCE
from tests.s3_server import KEY, SECRET, FaultProxy, client, environment

ROWS = 6  # 120 images in 20 shards


@pytest.fixture(scope="module")
def whole(
    images: Path, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What an undisturbed run on a folder gives."""
    return undisturbed(images, str(tmp_path_factory.mktemp("whole") / "out"), tokenizer_file, ROWS)


def plan(images: Path, out: str, weights: Path) -> None:
    succeed(
        "plan", str(images), out, "--tokenizer", str(weights), "--views", "2", "--rows", str(ROWS)
    )


def test_the_whole_road_on_s3(
    images: Path,
    tokenizer_file: Path,
    whole: dict[str, bytes],
    bucket: str,
    s3_port: int,
    tmp_path: Path,
) -> None:
    source = open_store(f"{bucket}/images")
    for image in images.rglob("*.png"):
        source.create(image.relative_to(images).as_posix(), image.read_bytes())
    out, weights = f"{bucket}/tokens", ("--tokenizer", str(tokenizer_file))
    planned = succeed(
        "plan", f"{bucket}/images", out, *weights, "--views", "2", "--rows", str(ROWS)
    )
    assert planned["images"] == 120 and planned["shards"] == 20 and planned["classes"] == 3
    assert succeed("run", out, *weights, "--shards", "1/3")["made"] == 7
    status = succeed("status", out)
    assert (status["done"], status["missing"], status["first_missing"][0]) == (7, 13, 0)
    incomplete = tokenize("finalize", out)
    assert (
        incomplete.returncode != 0 and "13 of 20 shards are missing (0, 2, 3" in incomplete.stderr
    )
    assert (
        succeed("run", out, *weights)["made"] == 13 and succeed("run", out, *weights)["made"] == 0
    )
    finalized = succeed("finalize", out)
    assert finalized["rows"] == 120 and succeed("status", out)["finalized"]
    assert succeed("verify", out)["sound"]
    for name, content in contents(
        open_store(out)
    ).items():  # the same bytes as on a folder; plan.json names its source
        assert name == "plan.json" or content == whole[name]

    url = client(s3_port).generate_presigned_url(
        "get_object", {"Bucket": bucket.removeprefix("s3://"), "Key": "tokens/tokens-000003.tar"}
    )
    samples = list(webdataset.WebDataset(f"pipe:curl -s '{url}'", shardshuffle=False).decode())
    assert len(samples) == ROWS and samples[0]["tokens.npy"].shape == (2, 16)
    listed = subprocess.run(
        ["tar", "tv"], input=whole["tokens-000003.tar"], capture_output=True, check=True
    )
    assert listed.stdout.count(b".tokens.npy") == ROWS and not listed.stderr

    page = tmp_path / "page" / "inspect.png"
    seen = succeed("inspect", out, *weights, "--page", str(page), "--shards", "0")
    assert (
        seen["rows"] == 120
        and seen["read"]["smallest_class"] == 40
        and seen["read"]["codes_used"] > 1
    )
    assert Image.open(page).size[0] > 800
    shown = CliRunner().invoke(app, ["inspect", out, "--page", str(page), "--shards", "0"])
    lines = [line.rstrip() for line in shown.output.splitlines()]
    assert (
        "images       120  100.0 % of 120 planned" in lines and "quarantined    0  0.0 %" in lines
    ), lines
    assert "classes        3  40 to 40 images each" in lines and "  ellipse     40  33.3 %" in lines


def test_a_damaged_shard_is_found(whole: dict[str, bytes], tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for name, content in whole.items():
        store.create(name, content)
    flipped = bytearray(whole["tokens-000004.tar"])
    flipped[3000] ^= 1
    store.replace("tokens-000004.tar", bytes(flipped))
    done = tokenize("verify", str(tmp_path))
    assert done.returncode == 1 and "tokens-000004.tar does not match its sha256" in done.stdout


def test_overhead_in_bytes(whole: dict[str, bytes], tmp_path: Path) -> None:
    manifest = json.loads(whole["dataset.json"])
    assert (
        manifest["stride"] == 512 * 4
    )  # small tokens: the two members' headers and paddings are all there is
    from data_pipeline.shards.format import Layout

    assert Layout(10, 256).stride <= 1.4 * 10 * 512


def test_two_jobs_race_on_one_plan(
    images: Path, tokenizer_file: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    plan(images, out, tokenizer_file)
    run = command("run", out, "--tokenizer", str(tokenizer_file), "--json")
    racers = [
        subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [racer.communicate(timeout=PATIENCE) for racer in racers]
    assert [r.returncode for r in racers] == [0, 0], results
    made = [json.loads(text)["made"] for text, _ in results]
    assert sum(made) >= 20 and max(made) <= 20
    succeed("finalize", out)
    assert contents(open_store(out)) == whole


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_killed_at_random_moments(
    images: Path,
    tokenizer_file: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    proxy: FaultProxy,
    place: str,
    request: pytest.FixtureRequest,
) -> None:
    """The short form of test_tokenize_chaos.py."""
    out, env = str(tmp_path / "out"), {}
    if place == "s3":
        out = f"{request.getfixturevalue('bucket')}/out"
        proxy.latency, env = 0.02, environment(proxy.port)  # uploads take long enough to be hit
    plan(images, out, tokenizer_file)
    run = ["run", out, "--tokenizer", str(tokenizer_file)]
    run_with_kills(run, open_store(out), whole, random.Random(place), 0.8, env, most_kills=2)
    succeed(*run, "--finalize")
    assert contents(open_store(out)) == whole


def test_faults_on_the_wire(
    images: Path, tokenizer_file: Path, whole: dict[str, bytes], bucket: str, proxy: FaultProxy
) -> None:
    """The job ends right, or with one line that names the fault; what is visible is always
    whole."""
    out = f"{bucket}/out"
    plan(images, out, tokenizer_file)
    run = ("run", out, "--tokenizer", str(tokenizer_file), "--json")
    env = environment(proxy.port, ADDP_STORAGE_TIMEOUT="2", AWS_MAX_ATTEMPTS="2")
    store = open_store(out)

    def fails(words: str) -> None:
        done = tokenize(*run, env=env)
        assert (
            done.returncode == 74 and done.stderr.count("error:") == 1 and words in done.stderr
        ), done.stderr
        assert (
            "Traceback" not in done.stderr and SECRET not in done.stderr and KEY not in done.stderr
        )
        visible_shards_are_whole(store, whole)

    proxy.refuse = True
    fails("no answer after 2 tries")
    proxy.heal()
    proxy.busy_probability = 1.0
    fails("slow down")
    proxy.heal()
    proxy.black_hole = True
    fails("no answer after 2 tries")
    proxy.heal()
    env = environment(proxy.port)
    proxy.busy_probability, proxy.cut_after, proxy.cut_probability = 0.1, 1500, 0.3
    for _ in range(
        8
    ):  # a storm that retries get through; now and then they do not, and the job is run again
        done = tokenize(*run, env=env)
        assert done.returncode in (0, 74), done.stderr
        visible_shards_are_whole(store, whole)
        if done.returncode == 0:
            break
    assert done.returncode == 0 and proxy.faults > 10
    proxy.heal()
    succeed("finalize", out, env=env)
    assert contents(store) == whole


def test_wrong_keys(images: Path, tokenizer_file: Path, bucket: str, s3_port: int) -> None:
    env = environment(s3_port, AWS_SECRET_ACCESS_KEY="wrong-secret")
    done = tokenize(
        "plan", str(images), f"{bucket}/out", "--tokenizer", str(tokenizer_file), env=env
    )
    assert (
        done.returncode == 74
        and "access denied (SignatureDoesNotMatch); check the credentials" in done.stderr
    )
    assert (
        len(done.stderr.strip().splitlines()) == 1
        and "wrong-secret" not in done.stderr
        and KEY not in done.stderr
    )
    assert not list(open_store(bucket).list())


def png_bomb(side: int) -> bytes:
    """A black square of one bit a pixel. A MiB of it is packed once, and stands there many times,
    which only the checksum of all of it would tell."""
    packer = zlib.compressobj(9)
    first = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    rows = first + side * (side // 8 + 1) // (1 << 20) * block + b"\x03\x00" + bytes(4)
    size = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def test_bad_images(images: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "images" / "odd"
    copy.mkdir(parents=True)
    whole = next(images.rglob("*.png")).read_bytes()
    for i in range(30):
        (copy / f"{i:02d}.png").write_bytes(whole)
    (copy / "text.png").write_bytes(b"no image")
    (copy / "cut.png").write_bytes(whole[:60])
    (copy / "link.png").symlink_to(tmp_path / "nowhere")
    Image.new("CMYK", (9, 9)).save(copy / "png.png", "JPEG")
    (copy / "bomb.png").write_bytes(png_bomb(70_000))  # 0.6 MB that would be 14.7 GB as RGB
    Image.fromarray(np.zeros((1, 50), np.uint8)).save(copy / "thin.png")
    out, weights = str(tmp_path / "out"), ("--tokenizer", str(tokenizer_file))
    succeed("plan", str(copy.parent), out, *weights, "--views", "2", "--rows", "8")
    unmounted = tokenize(
        "run", out, *weights, "--source", str(tmp_path / "none"), "--shards", "1/3"
    )
    assert (
        unmounted.returncode == 74
        and "none: none of the 16 planned images that were looked" in unmounted.stderr
    )
    strict = tokenize("run", out, *weights, "--on-bad-image", "fail")
    assert strict.returncode == 1 and strict.stderr.startswith(
        "error: cannot read the image odd/"
    ), strict.stderr
    stopped = tokenize("run", out, *weights)
    assert (
        stopped.returncode == 1
        and "of 36 images cannot be read, more than the limit 1.0%" in stopped.stderr
    )
    done = tokenize(
        "run", out, *weights, "--bad-limit", "0.2", "--json", env={"ADDP_PROGRESS_SECONDS": "0.01"}
    )
    assert done.returncode == 0 and re.search(
        r"^tokenizing: \d+ of \d+ images", done.stderr, re.MULTILINE
    )
    made = json.loads(done.stdout)
    assert (made["missing"], made["planned"], made["stored"], made["quarantined"]) == (0, 36, 32, 4)
    status = succeed("status", out)
    assert (status["images"], status["stored"], status["quarantined"]) == (36, 32, 4)
    refused = tokenize("finalize", out)
    assert (
        refused.returncode == 1
        and "4 of 36 images cannot be read, more than the limit" in refused.stderr
    )
    assert (
        "36 images planned, 32 stored, 4 quarantined"
        in tokenize("finalize", out, "--bad-limit", "0.2").stdout
    )
    assert tokenize("verify", out).stdout.startswith(
        f"{out}: 36 images planned, 32 stored, 4 quarantined; 5 shards"
    )
    reasons = {q.id: q.reason for q in read_manifest(out).quarantined}
    assert sorted(reasons) == ["odd/bomb.png", "odd/cut.png", "odd/link.png", "odd/text.png"]
    assert "bomb" in reasons["odd/bomb.png"] and "gone" in reasons["odd/link.png"]


def test_a_watcher_sees_a_running_job(images: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    plan(images, out, tokenizer_file)
    watcher = subprocess.Popen(
        command("status", out, "--watch", "--every", "0.1", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "ADDP_PROGRESS_SECONDS": "0.01"},
    )
    assert watcher.stdout is not None and json.loads(watcher.stdout.readline())["missing"] == 20
    succeed("run", out, "--tokenizer", str(tokenizer_file), "--finalize")
    output, progress = watcher.communicate(timeout=PATIENCE)
    assert watcher.returncode == 0 and json.loads(output.splitlines()[-1])["missing"] == 0
    assert progress.splitlines()[-1].startswith("tokenizing: 20 of 20 shards (100%) in")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "none", "--tokenizer", "W"), "holds no plan; make one with `addp tokenize plan`"),
        (("status", "none"), "holds no plan"),
        (("verify", "none"), "is no finished token data set"),
        (("plan", "none", "out", "--tokenizer", "W"), "there is no folder none"),
        (
            ("plan", "P", "out", "--tokenizer", "gone.safetensors"),
            "there is no weights file gone.safetensors",
        ),
        (("plan", "P", "out", "--tokenizer", "W", "--class-names", "W2"), "cannot read"),
        (("plan", "P", "gs://x", "--tokenizer", "W"), "this scheme is not known"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...],
    words: str,
    images: Path,
    tokenizer_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.chdir(tmp_path)
    done = tokenize(*({"W": str(tokenizer_file), "P": str(images)}.get(a, a) for a in arguments))
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )
    assert not list(tmp_path.iterdir())


def test_a_share_that_is_none(images: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    plan(images, str(tmp_path), tokenizer_file)
    for share in ("3/3", "x", "1"):
        done = tokenize("run", str(tmp_path), "--tokenizer", str(tokenizer_file), "--shards", share)
        assert done.returncode == 78 and f"--shards {share}: write i/N" in done.stderr
