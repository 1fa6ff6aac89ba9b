"""Which checkpoint a run may go on from, by what its manifest says; who opens which of its files,
and what becomes of ranks that see other files than rank 0. That it does go on is
test_resume.py's."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.storage import open_store
from model.errors import ConfigError
from tests.trainer.comparing import cut_back, same_end, same_weights
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.sabotage import EVERY, Sabotage
from tests.trainer.worlds import Ranks, run_world
from trainer.checkpointing.catalog import LocalCatalog, RemoteCatalog
from trainer.checkpointing.expected import Expected, last_config
from trainer.checkpointing.format import FileEntry, Manifest
from trainer.checkpointing.restore import Restored, shares
from trainer.checkpointing.saved_state import Piece, files_of
from trainer.config.reading import load_config
from trainer.engine.state_keys import Range
from trainer.pretrain import run_and_leave
from trainer.run_folder import RunFolder
from trainer.startup import take_up

IDENTITY: dict[str, Any] = {
    "network": {"dim": 32, "dropout": 0.1, "positions": "normal"},
    "data": "abc",
    "seed": 0,
}


def manifest(
    config: dict[str, Any], run_identity: dict[str, Any] = IDENTITY, run: str = "mine"
) -> Manifest:
    return Manifest(
        step=8,
        world_size=1,
        zero_stage=1,
        run_identity=run_identity,
        parameters={},
        export_prefix="",
        state_keys=[],
        applied=8,
        scaler={},
        skipped=[],
        trainer_state={"seen": 1.0},
        run=run,
        config=config,
    )


def config(*overrides: str) -> dict[str, Any]:
    return load_config(None, overrides).model_dump(mode="json")


def changed(saved: Manifest, *overrides: str, before: dict[str, Any] | None = None) -> list[str]:
    expected = Expected(IDENTITY, "mine", load_config(None, overrides), before or {})
    return [change.key for change in expected.check(saved, "step-00000008")]


def test_keys_that_changed() -> None:
    assert changed(manifest(config())) == []
    assert changed(manifest(config()), "log_every=5") == ["log_every"]
    with pytest.raises(
        ConfigError, match=r"0\.0001 -> 0\.2; .*add 'resume\.allow=\[log_every,optimizer\.base"
    ):
        changed(
            manifest(config()),
            "optimizer.base_lr=0.2",
            "schedule.total=900",
            "resume.allow=[log_every]",
        )
    assert changed(manifest(config()), "optimizer.base_lr=0.2", "resume.allow=[optimizer]") == [
        "optimizer.base_lr"
    ]


def test_micro_batches_matter_where_something_is_drawn_or_averaged_over_one() -> None:
    """Elsewhere another division of the same batch is other rounding, and as free as another number
    of ranks."""
    plain = ("objective=mage", "predictor.sizes.dropout=0")
    assert changed(manifest(config(*plain)), *plain, "batch.micro=32") == ["batch.micro"]
    for overrides in (
        ("objective=mage",),
        ("objective=addp",),
        ("objective=tokenizer",),
        ("objective=classify",),
        (*plain, "data.tail=pad"),
        (*plain, "data.on_bad_shard=quarantine"),
    ):
        with pytest.raises(
            ConfigError, match=r"batch\.micro: 64 -> 32\. .*add 'resume\.allow=\[batch\.micro\]'"
        ):
            changed(manifest(config(*overrides)), *overrides, "batch.micro=32")
        assert changed(
            manifest(config(*overrides)), *overrides, "batch.micro=32", "resume.allow=[batch.micro]"
        )


def test_what_was_allowed_once_stays_so_where_an_older_checkpoint_has_to_do() -> None:
    """The folder's last start had it already."""
    assert changed(manifest(config()), "seed=3", before=config("seed=3")) == ["seed"]
    with pytest.raises(ConfigError, match="seed: 0 -> 4"):
        changed(manifest(config()), "seed=4", before=config("seed=3"))


def test_manifests_of_earlier_versions_have_neither_run_nor_configuration() -> None:
    # Nor did a tokenizer's say which images it was trained on.
    old = manifest({}, {**IDENTITY, "data": ""}, run="")
    assert changed(old, "seed=3") == []
    with pytest.raises(ConfigError, match="seed: 0 -> 3"):
        changed(old, "seed=3", before=config())


@pytest.mark.parametrize(
    ("run_identity", "run", "words"),
    [
        ({"network": {"dim": 64, "dropout": 0.1}}, "mine", "network: "),
        ({"data": "other"}, "mine", "data: "),
        ({}, "other", "run: checkpoint other, now mine"),
    ],
)
def test_another_run_s(run_identity: dict[str, Any], run: str, words: str) -> None:
    with pytest.raises(
        ConfigError, match=f"belongs to another run than the configured one.*{words}"
    ):
        changed(manifest(config(), {**IDENTITY, **run_identity}, run))
    other_dropout = {**IDENTITY, "network": {"dim": 32, "dropout": 0.0, "positions": "sincos"}}
    assert changed(manifest(config(), other_dropout)) == []  # a matter of resume.allow


def test_a_run_is_not_made_shorter_than_it_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    restored = Restored(manifest({}), [], [])
    with pytest.raises(
        ConfigError, match=r"has come to step 8, and schedule\.total gives it 4 steps"
    ):
        take_up(folder, restored, run="mine", total=4, world_size=1, say=print)
    assert folder.read_identity() is None


def test_a_configuration_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    assert last_config(RunFolder(tmp_path)) == {}
    (tmp_path / "config.resolved.yaml").write_text("a: [")
    assert last_config(RunFolder(tmp_path)) == {}


def test_each_file_is_one_rank_s_to_verify_and_opened_by_those_that_need_it() -> None:
    """Three ranks wrote a parameter of 90 elements; two and four read it."""
    index = {("weights", "w"): [Piece(30 * r, (30,), "F32", f"rank-{r}", 0) for r in range(3)]}
    files = {f"rank-{r}": FileEntry(bytes=10 + r, sha256="0" * 64) for r in range(3)}
    saved = manifest({}).model_copy(update={"files": files})
    two = [files_of(index, [Range("weights", "w", 45 * r, 45)]) for r in range(2)]
    assert two == [{"rank-0", "rank-1"}, {"rank-1", "rank-2"}]
    assert shares(saved, two) == [["rank-0"], ["rank-1", "rank-2"]]
    four = [
        files_of(index, [Range("weights", "w", 22 * r, 22), Range("ema", "w", 0, 90)])
        for r in range(4)
    ]
    assert four == [{"rank-0"}, {"rank-0", "rank-1"}, {"rank-1", "rank-2"}, {"rank-2"}]
    assert shares(saved, four) == [["rank-0"], ["rank-1"], ["rank-2"], []]
    # What nobody reads is verified as well.
    assert shares(saved, [set(), set()]) == [["rank-0", "rank-2"], ["rank-1"]]


def opened(output: str) -> dict[int, list[int]]:
    """Which files of the checkpoint each rank opened, by the ranks that wrote them."""
    files: dict[int, list[int]] = {}
    for rank, file in re.findall(r"rank (\d): open \S+/step-00000008/rank-0000(\d)", output):
        files.setdefault(int(rank), []).append(int(file))
    return files


@pytest.mark.parametrize("ranks", [2, 4])
def test_no_rank_opens_a_file_that_it_does_not_need(
    ranks: int, undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    """Rank 0 reads the header of each. Of two ranks in ZeRO 1, each then opens its own file, to
    verify it and to read of it. Of four, the first half reads one file and the second half the
    other, but for the end of the second rank's share, by padding; ranks 0 and 1 verify one each."""
    run = cut_back(undisturbed, tmp_path / "run", 8)
    sabotage = Sabotage("open", ("/step-00000008/rank-",), "note", 0, rank=EVERY)
    options = (*MAGE, f"data.tokens={tokens}", "ema_decay=0.9")
    codes, output = run_world(run, *options, processes=ranks, sabotage=sabotage)
    assert codes == [0] * ranks and "resumed at step 8 of 12" in output, output
    of_two, of_four = {0: [0, 1, 0, 0], 1: [1, 1]}, {0: [0, 1, 0, 0], 1: [1, 0, 1], 2: [1], 3: [1]}
    assert opened(output) == (of_two if ranks == 2 else of_four)
    assert ranks == 4 or same_end(run, undisturbed)


def test_ranks_that_see_old_listings_end_like_the_others(
    undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    """Rank 1 sees no checkpoint in any list, and the name of this start and the files of the newest
    checkpoint late: rank 0 decides, and rank 1 looks again."""
    run = cut_back(undisturbed, tmp_path / "run", 8)
    unseen = ("/step-00000008/rank-0", "/run/rewinds", "/run/run.", "/run/attempt")
    sabotage = Sabotage(rank=1, unlisted=("step-",), unseen=unseen, times=4)
    codes, output = run_world(
        run, *MAGE, f"data.tokens={tokens}", "ema_decay=0.9", sabotage=sabotage
    )
    assert codes == [0, 0] and "resumed at step 8 of 12" in output and "refused" not in output, (
        output
    )
    assert same_end(run, undisturbed)


def test_a_rank_that_never_sees_the_files_ends_all_ranks(
    undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    """No older checkpoint is taken: work is not done twice for a mount that is wrong."""
    run = cut_back(undisturbed, tmp_path / "run", 8)
    sabotage = Sabotage(rank=1, unseen=("/step-00000008/rank-0",), sight=0.0)
    codes, output = run_world(
        run, *MAGE, f"data.tokens={tokens}", "ema_decay=0.9", sabotage=sabotage
    )
    assert (
        codes == [74, 74]
        and "ranks [1] do not see the files of" in output
        and "refused" not in output
    ), output


def elsewhere(arguments: list[str]) -> None:
    """Rank 1's host has the shared storage mounted at another place, and a cache of its own."""
    if os.environ["RANK"] == "1":
        arguments = [a.replace("/here/", "/there/") for a in arguments]
    run_and_leave(arguments)


def image_options(images: Path) -> tuple[str, ...]:
    sizes = ("tokenizer.sizes.size=tiny", "data.views.size=16")
    return ("objective=tokenizer", f"data.images={images}", "precision=fp32", *sizes)


def test_rank_0_lists_the_images_for_all(images: Path, tmp_path: Path) -> None:
    """Rank 1, whose host shows it no name, reads what rank 0 has listed."""
    names = tuple(file.name for file in images.glob("*/*"))
    sabotage = Sabotage(rank=1, unlisted=names)
    codes, output = run_world(tmp_path / "run", *image_options(images), sabotage=sabotage)
    assert codes == [0, 0], output


def test_a_rank_without_the_images_is_refused(images: Path, tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "images").symlink_to(images)
    arguments = [f"run={tmp_path / 'run'}", *SMALL, *image_options(tmp_path / "here" / "images")]
    done = Ranks(elsewhere, arguments, 2, tmp_path / "log").wait()
    assert done.codes == [78, 78], done.output
    assert (
        "rank 1 cannot read the data that rank 0 has listed: cannot read the image" in done.output
    )


def test_hosts_may_have_the_storage_at_different_places(
    undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    """Places in the configuration are not compared, but what lies there. The checkpoint is fetched
    from a store."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").symlink_to("here")
    shutil.copytree(tokens, tmp_path / "here" / "tokens")
    store = tmp_path / "here" / "store"
    RemoteCatalog(open_store(store)).add(LocalCatalog(RunFolder(undisturbed)), 8)
    here = tmp_path / "here"
    options = (
        f"data.tokens={here}/tokens",
        f"data.cache={here}/cache",
        f"checkpoint.upload={store}",
    )
    codes, output = Ranks(
        elsewhere,
        [f"run={here}/run", *SMALL, *MAGE, "ema_decay=0.9", *options],
        2,
        tmp_path / "log",
    ).wait()
    assert codes == [0, 0] and "resumed at step 8 of 12" in output, output
    assert same_weights(RunFolder(here / "run").network, RunFolder(undisturbed).network)


def misread(arguments: list[str]) -> None:
    run_and_leave([*arguments, f"seed={os.environ['RANK']}"])


def test_ranks_with_another_configuration_are_told_which_key(tokens: Path, tmp_path: Path) -> None:
    arguments = [f"run={tmp_path}/run", *SMALL, *MAGE, f"data.tokens={tokens}"]
    codes, output = Ranks(misread, arguments, 2, tmp_path / "log").wait()
    assert (
        codes == [78, 78]
        and "rank 1 has another configuration than rank 0: seed differ; " in output
    ), output
