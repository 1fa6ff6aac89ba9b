from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.images.openmoji import render
from data_pipeline.images.sources import split_of
from data_pipeline.scenes.emoji import cast_of, layers_of
from data_pipeline.scenes.settings import GROUPS, chosen_classes
from model.errors import ConfigError


def test_no_emoji_is_of_both_splits() -> None:
    training, validation = cast_of("training", GROUPS), cast_of("validation", GROUPS)
    assert min(map(len, validation)) >= 5 and min(map(len, training)) >= 50
    codes = [{e.code for group in cast for e in group} for cast in (training, validation)]
    assert not codes[0] & codes[1] and len(codes[0] | codes[1]) > 1800


def test_the_split_is_that_of_the_demo(tmp_path: Path) -> None:
    render(tmp_path, size=8, limit=100)
    held_out = {image.id for image in split_of(tmp_path, "val").images}
    ours = {f"{e.group}/{e.code}.png" for group in cast_of("validation", GROUPS) for e in group}
    rendered = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert held_out and held_out == ours & rendered


def test_every_emoji_has_layers_that_are_known() -> None:
    for split in ("training", "validation"):
        for group in cast_of(split, GROUPS):
            for emoji in group:
                assert layers_of(emoji.file)


def test_classes_are_named() -> None:
    assert chosen_classes(None) == GROUPS == tuple(sorted(GROUPS))
    assert chosen_classes("symbols, flags,flags") == ("flags", "symbols")
    for text, words in (("flags,hats", "'hats' is no group"), (" ,", "no group is named")):
        with pytest.raises(ConfigError, match=words):
            chosen_classes(text)
