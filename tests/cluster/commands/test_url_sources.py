"""Tars at urls, from `plan` to the loader: by range, as whole tars, and from a command."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.commands.tokenize import app
from data_pipeline.storage import SourceChanged, StorageError, open_store
from model.errors import ConfigError
from model.vq import VQTokenizer
from tests.cluster.commands.test_source_kinds import command, expected, loaded, shards
from tests.cluster.sharding_jobs import contents, run_with_kills
from tests.web_server import WebServer

PLAN = ("--center", "--rows", "4")
SECRET = "hunter2"


def serve(web: WebServer, folder: Path) -> tuple[int, ...]:
    """Put twelve shards into a folder and on the server, and return their images' labels."""
    labels = shards(open_store(folder))
    web.files = contents(open_store(folder))
    return labels


@pytest.mark.parametrize("kind", ["range", "whole", "command"])
def test_from_plan_to_the_loader(
    kind: str, web: WebServer, tokenizer: VQTokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    labels, out = serve(web, tmp_path / "data"), str(tmp_path / "out")
    web.ranges = kind == "range"
    tars = "wds/shard-{000..011}.tar"
    source = f"{web.url}/{tars}"
    given: tuple[str, ...] = ()
    if kind == "command":
        source = f"pipe:: {SECRET}; cat {tmp_path}/data/{tars}"
        given = ("--source", source)
    weights = ("--tokenizer", str(tokenizer_file))
    planned = command("plan", source, out, *weights, *PLAN)
    assert (planned["images"], planned["by_range"]) == (12, kind == "range")
    told = CliRunner().invoke(app, ["plan", source, out, *weights, *PLAN]).stdout
    assert ("cannot be read by range" in told) == (kind != "range") and SECRET not in told
    web.asked.clear()
    made = command("run", out, *weights, "--finalize", "--threads", "1", *given)
    assert (made["images"], made["quarantined"]) == (12, 0)
    assert command("verify", out)["sound"]
    assert loaded(out) == expected(tokenizer, labels)
    for content in contents(open_store(out)).values():
        assert SECRET.encode() not in content
    if kind == "whole":  # each of three shards streams the tars that it needs once
        assert sum(part is None for _, part, _ in web.asked) == 12


def test_what_a_plan_cannot_make_a_job_do(
    web: WebServer, tokenizer_file: Path, tmp_path: Path
) -> None:
    """Run a command, or take other tars than were planned."""
    serve(web, tmp_path / "data")
    tars = f"{tmp_path}/data/wds/shard-{{000..011}}.tar"
    weights = ("--tokenizer", str(tokenizer_file))

    def refused(out: Path, kind: type[Exception], *words: str) -> str:
        done = CliRunner().invoke(app, ["run", str(out), *weights, *words])
        assert isinstance(done.exception, kind), done.exception
        assert not (out / "parts").exists()
        return str(done.exception)

    piped = tmp_path / "piped"
    command("plan", f"pipe:cat {tars}", str(piped), *weights, *PLAN)
    assert "give it again, as addp tokenize run --source 'pipe:...'" in refused(piped, ConfigError)
    plan = json.loads((piped / "plan.json").read_text())
    assert plan["source"] == "pipe:"
    (piped / "plan.json").write_text(json.dumps({**plan, "source": f"pipe:touch {tmp_path}/ran"}))
    assert "must be your own word" in refused(piped, ConfigError)
    assert not (tmp_path / "ran").exists()
    fails = refused(piped, StorageError, "--source", f"pipe:exit 4; {tars}")
    assert "the command ended with status 4" in fails

    web.ranges = True
    served = tmp_path / "served"
    command("plan", f"{web.url}/wds/shard-{{000..011}}.tar", str(served), *weights, *PLAN)
    web.files["wds/shard-007.tar"] = web.files["wds/shard-008.tar"]
    assert "shard-007.tar is another tar" in refused(served, SourceChanged)
    del web.files["wds/shard-007.tar"]
    assert "shard-007.tar: there is no such tar (404)" in refused(served, StorageError)


def test_a_killed_job_on_streams_ends_byte_for_byte(
    web: WebServer, tokenizer_file: Path, tmp_path: Path
) -> None:
    serve(web, tmp_path / "data")
    web.ranges = False
    weights = ("--tokenizer", str(tokenizer_file))
    source = f"{web.url}/wds/shard-{{000..011}}.tar"
    for out in ("whole", "killed"):
        command("plan", source, str(tmp_path / out), *weights, "--center", "--rows", "1")
    command("run", str(tmp_path / "whole"), *weights, "--finalize")
    whole = contents(open_store(tmp_path / "whole"))
    store = open_store(tmp_path / "killed")
    run = ["run", str(tmp_path / "killed"), *weights, "--finalize"]
    run_with_kills(run, store, whole, random.Random(0), 0.3, most_kills=2)
    command(*run)
    assert contents(store) == whole
