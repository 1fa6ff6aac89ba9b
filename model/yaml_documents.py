"""Documents of YAML from outside: plain values alone, with bounds on depth, count and the length of
numbers. Imports no torch."""

from __future__ import annotations

from typing import Any

import yaml

from model.documents import LONGEST_SHOWN, show
from model.errors import ADDPError

_DEEPEST = 64  # of mappings and lists in each other
_LONGEST_NUMBER = 40  # digits; Python takes a time that is quadratic in them
_MOST_NODES = 100_000  # of a document


def parse_yaml(content: bytes | str, where: str, error: type[ADDPError]) -> Any:
    """Parse one YAML document of plain values: no aliases, tags, duplicate keys, deep nesting or
    endless numbers.

    An alias can make a document of 300 bytes hold billions of values, and no configuration needs
    one. where: names the document. Raises `error` with the line.
    """
    try:
        text = content.decode() if isinstance(content, bytes) else content
        _check_events(text)
        return yaml.load(text, Loader=_PlainLoader)
    except UnicodeDecodeError as problem:
        byte = problem.object[problem.start]
        raise error(
            f"{where} is no text in UTF-8: byte {problem.start} is {byte:#04x}"
        ) from problem
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise error(
            f"{where}{line}: {problem.problem or problem.context or 'no readable YAML'}"
        ) from problem
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as problem:
        first = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise error(f"{where} is no readable YAML: {first[:LONGEST_SHOWN]}") from problem


def _check_events(text: str) -> None:
    """Check a document before anything is built of it. Raises yaml.MarkedYAMLError."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        problem = None
        tag = getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = "anchors and aliases (& and *) are not taken; write the value out"
        elif tag is not None and tag != "!":
            problem = f"the tag {show(tag)} is not taken; write a plain value"
        elif isinstance(event, yaml.ScalarEvent) and _is_long_number(event):
            problem = f"a number of {len(event.value)} digits is no number that can be meant"
        depth += isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        depth -= isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
        if depth > _DEEPEST:
            problem = f"nested deeper than {_DEEPEST} levels"
        if number > _MOST_NODES:
            problem = f"more than {_MOST_NODES} values"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]


def _is_long_number(event: Any) -> bool:
    plain = not event.style and len(event.value) > _LONGEST_NUMBER
    return plain and all(c in "0123456789abcdefABCDEFxXoO_:.+-" for c in event.value)


class _PlainLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or not isinstance(
                self.construct_object(key_node), str | int | float | bool
            ):
                raise yaml.MarkedYAMLError(
                    problem="this is no key", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{show(key)} stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
