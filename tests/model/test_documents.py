from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from model.documents import Count, Record, RelativeName, parse_json, parse_record, read_file, show
from model.errors import DataError
from tests.model.any_document import DOCUMENTS, outcome


class _Sample(Record):
    name: RelativeName
    rows: Count
    share: float = 0.5


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


@given(DOCUMENTS)
def test_any_json_is_a_mapping_or_an_error_in_one_line(document: Any) -> None:
    text = json.dumps(document)
    value, message = outcome(lambda: parse_json(text, "it", DataError))
    assert len(message.splitlines()) == (not isinstance(document, dict))
    assert message or json.dumps(value) == json.dumps(json.loads(text))


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
