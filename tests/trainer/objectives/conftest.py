from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.scenes.making import make_scenes
from data_pipeline.scenes.settings import SceneSettings

CLASSES = ("flags", "people-body", "smileys-emotion")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight composed scenes of 64 pixels to train on, in ADE20k's and in COCO's layout."""
    out = tmp_path_factory.mktemp("scenes") / "set"
    settings = SceneSettings(training=8, validation=1, size=64, seed=1, classes=CLASSES)
    make_scenes(out, settings, processes=1)
    return out
