"""Configurations and overrides: YAML that means harm, numbers that cannot be, keys that are none."""

from __future__ import annotations

from tests.hostile.case import Case, text_file

_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
)


def _file(name: str, content: str | bytes, *says: str) -> Case:
    return Case(name, ("config", "run.yaml"), says=says, code=78, make=text_file("run.yaml", content))


def _key(name: str, override: str, *says: str) -> Case:
    return Case(name, ("config", override), says=says or (override.partition("=")[0],), code=78)


CASES = [
    _file("an alias bomb in a run file", _BOMB, "line 1", "aliases"),
    _file("a run file in UTF-16", "seed: 1\n".encode("utf-16"), "run.yaml"),
    _file("a section that stands twice", "batch: {micro: 1}\nbatch: {micro: 2}\n", "batch", "twice"),
    _key("an infinite learning rate", "optimizer.base_lr=.inf"),
]
