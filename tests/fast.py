"""Which tests are fast, found in their code: those that start no process and no server, and train
nothing. `make check` runs them; no list of them has to be kept."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

# Whoever uses one of their functions starts processes.
_STARTERS = (
    "tests.cluster.sharding_jobs",
    "tests.cluster.supervise.supervising",
    "tests.s3_server",
    "tests.test_hostile",
    "tests.trainer.evaluation.evaluating",
    "tests.trainer.launching",
    "tests.trainer.worlds",
    "tests.warm",
    "tests.web_server",
)
# Whole trainings in the test's own process, measurements, and processes that the program starts.
_LONG_IN_PROCESS = (
    "tests/cluster/launch/test_launch.py",
    "tests/cluster/launch/test_outer_loop.py",
    "tests/cluster/launch/test_toy_backend.py",
    "tests/data_pipeline/scenes/test_making.py",
    "tests/model/test_predictor.py",
    "tests/model/test_tokenizer_training.py",
    "tests/trainer/distributed/test_environment.py",
    "tests/trainer/evaluation/measures/test_fidelity.py",
)


def mark_fast_tests(items: list[pytest.Item]) -> None:
    """Give the marker `fast` to those of the collected tests that are."""
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and not item.nodeid.startswith(_LONG_IN_PROCESS)
            and not any(map(_starts_processes, _functions(item)))
        ):
            item.add_marker(pytest.mark.fast)


def _functions(item: pytest.Function) -> Iterator[Any]:
    """Yield the functions of a test and of all its fixtures."""
    yield item.function
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        yield from (definition.func for definition in definitions)


def _starts_processes(function: Any, seen: frozenset[Any] = frozenset()) -> bool:
    """Return whether a function starts processes, itself or by a function of the tests.

    seen: the functions that lead to this one, so that a circle of calls comes to an end.
    """
    if not isinstance(function, FunctionType) or function in seen:
        return False
    if function.__module__ in _STARTERS:
        return True
    names = set(_names(function.__code__))
    if "getfixturevalue" in names or names & set(_STARTERS):  # imported within the function
        return True
    values = [function.__globals__.get(name) for name in names]
    return any(value is subprocess for value in values) or any(
        getattr(value, "__module__", None) in _STARTERS
        or (
            getattr(value, "__module__", "").startswith("tests.")
            and _starts_processes(value, seen | {function})
        )
        for value in values
        if isinstance(value, FunctionType | type)
    )


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that the code uses, and those that the functions within it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
