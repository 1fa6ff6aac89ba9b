from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from model.documents import (
    Count,
    Record,
    RelativeName,
    parse_json,
    parse_record,
    parse_yaml,
    read_file,
    show,
)
from model.errors import ADDPError, ConfigError, DataError


class _Sample(Record):
    name: RelativeName
    rows: Count
    share: float = 0.5


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_DOCUMENTS = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"name": "../x", "rows": 1}, "name"),
        ({"name": "/etc/passwd", "rows": 1}, "name"),
        ({"name": "a\0b", "rows": 1}, "control"),
        ({"name": "s3://other/x", "rows": 1}, "name"),
        ({"name": "a", "rows": -1}, "rows"),
        ({"name": "a", "rows": True}, "rows"),
        ({"name": "a", "rows": 1.0}, "rows"),
        ({"name": "a", "rows": 10**30}, "rows"),
        ({"name": "a"}, "rows: Field required"),
        ({"name": "a", "rows": 1, "more": 1}, "more"),
        ({"name": "a", "rows": 1, "share": float("nan")}, "share"),
        ([1], "object"),
    ],
)
def test_a_record_names_its_document_and_key(document: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        parse_record(_Sample, json.dumps(document), "here/it.json", DataError)
    assert str(caught.value).startswith("here/it.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "1" * 100_000, '{"a": ' * 5_000, "\x00", '"' + "x" * 99, "{}x"]
)
def test_what_is_no_json_is_refused(content: str) -> None:
    with pytest.raises(DataError, match=r"it\.json"):
        parse_json(content, "it.json", DataError)


@pytest.mark.parametrize(
    "content", ["[" + "[]," * 10**6 + "1]", "[" + "1," * (8 * 10**6 + 1) + "1]"]
)
def test_json_of_too_many_values_is_refused_before_it_is_made(content: str) -> None:
    for parse in (
        lambda: parse_json(content, "it", DataError, list),
        lambda: parse_record(_Sample, content, "it", DataError),
    ):
        with pytest.raises(DataError, match="it holds more than"):
            parse()
    assert parse_record(_Sample, {"name": "a", "rows": 1}, "it", DataError).rows == 1


def _outcome(parse: Callable[[], Any]) -> tuple[Any, str]:
    """Return (what was parsed, ""), or (None, the error's message)."""
    try:
        return parse(), ""
    except ADDPError as error:
        return None, str(error)


@given(_DOCUMENTS)
def test_any_json_is_a_mapping_or_an_error_in_one_line(document: Any) -> None:
    text = json.dumps(document)
    value, message = _outcome(lambda: parse_json(text, "it", DataError))
    assert len(message.splitlines()) == (not isinstance(document, dict))
    assert message or json.dumps(value) == json.dumps(json.loads(text))


@given(st.dictionaries(st.text(max_size=8), _DOCUMENTS, max_size=4))
def test_plain_yaml_is_read_as_a_safe_loader_reads_it(document: Any) -> None:
    text = yaml.safe_dump(document)
    value, message = _outcome(lambda: parse_yaml(text, "it", ConfigError))
    assert not message or "&" in text or "number of" in message or "!!" in text
    assert message or repr(value) == repr(yaml.safe_load(text))


@given(st.text())
def test_any_text_is_yaml_or_an_error_in_one_line(text: str) -> None:
    assert len(_outcome(lambda: parse_yaml(text, "it", ConfigError))[1].splitlines()) <= 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: &x 1\nb: *x\n", "line 1: anchors"),
        ("a: !!python/object:os.system x\n", "tag"),
        ("a: !!int x\n", "tag"),
        ("a: 1\na: 2\n", "line 2: 'a' stands twice"),
        ("a: " + "[" * 200 + "]" * 200, "deeper"),
        ("a: " + "[" * 100_000, "deeper"),
        ("a: [" + "1," * 200_000 + "]", "more than"),
        ("a: " + "9" * 5_000, "digits"),
        ("? [1]\n: 2\n", "no key"),
        ("seed: 1".encode("utf-16"), "UTF-8"),
        ("a: [1\n", "line"),
        ("a: \x01", "YAML"),
    ],
)
def test_yaml_that_means_harm_is_refused_by_its_line(content: str | bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=r"^run\.yaml") as caught:
        parse_yaml(content, "run.yaml", ConfigError)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"x" * 11)
    for path, says in [
        (tmp_path / "fifo", "regular"),
        (tmp_path, "regular"),
        (Path("/dev/zero"), "regular"),
        (tmp_path / "large", "larger"),
        (Path("a\0b"), "cannot be read"),
    ]:
        with pytest.raises(DataError, match=says):
            read_file(path, 10, DataError)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none", 10, DataError)
    assert read_file(tmp_path / "large", 11, DataError) == b"x" * 11


def test_a_value_in_a_message_is_one_short_line() -> None:
    assert show("a\n\x1b[31m") == r"'a\n\x1b[31m'"
    assert len(show("x" * 1000)) == 80
    assert show(10**5000) == "a int too long to print"
