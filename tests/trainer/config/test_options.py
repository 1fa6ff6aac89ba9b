"""The command line of an options model: a field is an option, with its default and its bounds."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field, model_validator
from typer.testing import CliRunner

from model.documents import Settings
from trainer.config.options import from_models


class Cooking(Settings):
    minutes: int = Field(5, ge=1, le=60, description="how long")
    heat: Literal["low", "high"] = Field("low", description="how hot")
    salt_grams: float | None = Field(None, ge=0, description="how salty")
    stir: bool = Field(False, description="now and then")
    dish: Literal["any", "rice"] = Field("any", description="what it is like")

    @model_validator(mode="before")
    @classmethod
    def _rice_takes_longer(cls, given: dict[str, object]) -> dict[str, object]:
        return {"minutes": 15} | given if given.get("dish") == "rice" else given


@from_models
def cook(
    name: Annotated[str, typer.Argument(help="what")], *, cooking: Cooking, cold: bool = False
) -> str:
    """Cook a dish."""
    text = f"{name} {cooking.model_dump()} {cold}"
    print(text)
    return text


def invoke(*arguments: str) -> tuple[int, str]:
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
    app.command()(cook)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_defaults_are_the_models() -> None:
    code, output = invoke("soup")
    assert code == 0 and f"soup {Cooking().model_dump()} False" in output
    assert cook("soup") == output.strip()


def test_values_come_into_the_model() -> None:
    expected = Cooking(minutes=7, heat="high", salt_grams=0.5, stir=True)
    given = ("--minutes", "7", "--heat", "high", "--salt-grams", "0.5", "--stir", "--cold")
    code, output = invoke("soup", *given)
    assert code == 0 and f"soup {expected.model_dump()} True" in output
    fields = {name: getattr(expected, name) for name in Cooking.model_fields}
    assert cook("soup", **fields, cold=True) == output.strip()


@pytest.mark.parametrize(("given", "minutes"), [((), 15), (("--minutes", "5"), 5)])
def test_a_field_may_set_what_is_not_given(given: tuple[str, ...], minutes: int) -> None:
    """What is given counts even where it is the default."""
    code, output = invoke("pilaf", "--dish", "rice", *given)
    assert code == 0 and f"'minutes': {minutes}," in output
    fields = {"minutes": minutes} if given else {}
    assert cook("pilaf", dish="rice", **fields) == output.strip()


def test_help_says_what_the_fields_say() -> None:
    _, text = invoke("--help")
    assert "1<=x<=60" in text and "default: 5" in text and "how long" in text
    assert "low|high" in text and "--no-stir" not in text


@pytest.mark.parametrize(
    "wrong", [("--minutes", "61"), ("--heat", "medium"), ("--salt-grams", "nan"), ("--salt", "1")]
)
def test_what_is_out_of_bounds_is_refused(wrong: tuple[str, str]) -> None:
    code, output = invoke("soup", *wrong)
    assert code == 2 and wrong[0] in output
