"""Options that several commands take: each has one name, one meaning and one range. Imports no
torch.

A command with many options keeps them in pydantic models, one for each concern. `from_models`
derives the options of the command line from the models' fields.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from trainer.config.bounds import MOST_RANKS
from trainer.formats import Weights

MOST_IMAGES = 100_000_000  # that one command makes
LARGEST_STEP = 10**12  # that a checkpoint may be named by
LARGEST_SEED = (1 << 63) - 1
LARGEST_INFERENCE_BATCH = 65_536  # images that are computed together, without a gradient
Result = TypeVar("Result")
_CONTEXT = "typer_context"


def step_option(meaning: str) -> Any:
    return typer.Option(min=0, max=LARGEST_STEP, help=meaning)


def gpus_option(meaning: str) -> Any:
    return typer.Option(min=1, max=MOST_RANKS, help=meaning)


def processes_option(meaning: str) -> Any:
    """The number of processes on one machine."""
    return typer.Option(min=1, max=1024, help=meaning)


# Which configuration: see trainer/config/arguments.py.
RunArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE|key=value",
        help="run file, or a recipe as base, and overrides as batch.micro=32, in any order",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="run file or recipe, if it is not given as an argument"),
]

AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]
TrainedWeights = Annotated[
    Weights, typer.Option(help="the trained weights, or their exponential moving average")
]
LocalTokenizer = Annotated[
    Path | None, typer.Option(help="the run's tokenizer, where it lies elsewhere on this machine")
]
Zoom = Annotated[int, typer.Option(min=1, max=64, help="grid: enlarge each image by this factor")]
LocalRank = Annotated[int | None, typer.Option("--local_rank", hidden=True)]  # launchers append it


def from_models(command: Callable[..., Result]) -> Callable[..., Result]:
    """Turn each parameter that is an options model into one option for each field of the model.

    A field's name, type, default, bounds (`ge`, `le`) and description become those of its option;
    a field that is true or false becomes a flag. Whoever calls the command, typer or Python, gives
    the fields by name, and the command receives the models, which are made of what was given alone:
    a model may have other defaults where one of its fields says so. Raises typer.BadParameter for a
    value that a model refuses.
    """
    hints = get_type_hints(command, include_extras=True)
    models = {
        name: hint
        for name, hint in hints.items()
        if isinstance(hint, type) and issubclass(hint, BaseModel)
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in models:
            parameters += [_option(*field) for field in models[name].model_fields.items()]
        else:
            parameters.append(parameter.replace(annotation=hints[name]))
    signature = inspect.Signature(parameters)
    # typer passes its context to the parameter that is annotated with its class.
    context_parameter = inspect.Parameter(
        _CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context
    )
    typed = [*parameters, context_parameter]

    @functools.wraps(command)
    def flat(*arguments: Any, **options: Any) -> Result:
        context = options.pop(_CONTEXT, None)
        given = signature.bind(*arguments, **options)
        chosen = given.arguments.keys() - _not_typed(context)
        given.apply_defaults()
        values = given.arguments
        for name, model in models.items():
            fields = {field: values.pop(field) for field in model.model_fields}
            fields = {field: value for field, value in fields.items() if field in chosen}
            try:
                values[name] = model(**fields)
            except ValidationError as error:
                fault = error.errors()[0]
                hint = f"--{fault['loc'][0]}".replace("_", "-") if fault["loc"] else None
                raise typer.BadParameter(fault["msg"], param_hint=hint) from error
        return command(**values)

    flat.__signature__ = inspect.Signature(typed)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in typed} | {"return": hints["return"]}
    return flat


def _not_typed(context: typer.Context | None) -> set[str]:
    """The options of a command line that have their defaults because nobody gave them."""
    if context is None:  # Python calls
        return set()
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "DEFAULT"}


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option of a model's field, as a parameter that typer reads."""
    bounds = {
        limit: getattr(m, limit)
        for m in field.metadata
        for limit in ("ge", "le")
        if hasattr(m, limit)
    }
    flag = (f"--{name.replace('_', '-')}",) if field.annotation is bool else ()
    option = typer.Option(*flag, min=bounds.get("ge"), max=bounds.get("le"), help=field.description)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=Annotated[field.annotation, option],
    )
