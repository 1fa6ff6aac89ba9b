from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.annotations import json_stream
from data_pipeline.annotations.json_stream import array_elements
from model.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def pieces(content: bytes, size: int) -> list[bytes]:
    return [content[i : i + size] for i in range(0, len(content), size)]


@settings(max_examples=50)
@given(
    document=st.dictionaries(st.text(max_size=4), VALUES | st.lists(VALUES), max_size=4),
    size=st.integers(1, 40),
    indent=st.sampled_from([None, 2]),
)
def test_elements_are_those_of_the_whole_document(
    document: dict[str, Any], size: int, indent: int | None
) -> None:
    """However it is cut into chunks, also within a number or a character."""
    content = json.dumps(document, ensure_ascii=False, indent=indent).encode()
    lists = {key: value for key, value in document.items() if isinstance(value, list)}
    expected = [(key, element) for key, value in lists.items() for element in value]
    assert list(array_elements(pieces(content, size), "x")) == expected


CONTENT = b'{"a": [1, {"b": "\xc3\xa9"}, []], "c": {"d": 2.5}, "e": [12]}'


@pytest.mark.parametrize("end", range(len(CONTENT)))
def test_a_cut_document_is_refused(end: int) -> None:
    with pytest.raises(DataError, match="x is no readable JSON"):
        list(array_elements(pieces(CONTENT[:end], 7), "x"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", r"\{ should follow, not '\['"),
        (b'{"a": [1] "b": 2}', r"\} should follow"),
        (b'{"a": [1, 2,]}', "Expecting value"),
        (b'{"a": [1], "a": [2]}', "stands twice"),
        (b'{"a": [1]} {}', "more behind its end"),
        (b'{"a": ["\xff"]}', "UTF-8"),
        (b'{"a": ' + b"[" * 10**5, "recursion|Expecting value|too deep"),
        (b'{"a": [' + b"9" * 10**4 + b"]}", "digits"),
    ],
)
def test_what_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(array_elements([content], "x"))


def test_no_more_is_held_than_an_element_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MOST_CHARACTERS", 1000)
    given_out = 0

    def endless() -> Any:
        nonlocal given_out
        yield b'{"a": ["'
        while True:
            given_out += 100
            yield b"x" * 100

    with pytest.raises(DataError, match="Unterminated string"):
        list(array_elements(endless(), "x"))
    assert given_out <= 1200
