from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError
from model.yaml_documents import parse_yaml
from tests.model.any_document import DOCUMENTS, outcome


@given(st.dictionaries(st.text(max_size=8), DOCUMENTS, max_size=4))
def test_plain_yaml_is_read_as_a_safe_loader_reads_it(document: Any) -> None:
    text = yaml.safe_dump(document)
    value, message = outcome(lambda: parse_yaml(text, "it", ConfigError))
    assert not message or "&" in text or "number of" in message or "!!" in text
    assert message or repr(value) == repr(yaml.safe_load(text))


@given(st.text())
def test_any_text_is_yaml_or_an_error_in_one_line(text: str) -> None:
    assert len(outcome(lambda: parse_yaml(text, "it", ConfigError))[1].splitlines()) <= 1


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
