"""Reads a JSON document of any size, one element of its arrays at a time.

An annotation file of COCO has hundreds of MiB, and ten times as much once it is parsed. Here a
window of text slides over the document, and Python's C scanner parses one element from its front:

    {"images": [{...}, {...}, ...], "annotations": [{...}, {...}, {...}, ...], "categories": ...}
                                                      |------ window ------|
                                                      ^ next element

An element that the window cuts is parsed again with more text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from model.documents import show
from model.errors import DataError

MOST_CHARACTERS = 64 * 2**20  # of an element
# Of `1.5e+10` the window may end behind `e+`, and 1.5 would be taken for the number.
_CUT_EXPONENT = len("e+")
_SPACE = re.compile(r"[ \t\r\n]*")


def array_elements(chunks: Iterable[bytes], where: str) -> Iterator[tuple[str, Any]]:
    """Yield (key, element) of each array in a document whose top is a mapping, in its order.

    Values of other keys are passed over. where: names the document. Raises DataError for what is no
    JSON of that form, is cut, has a key twice at its top, or an element of more than
    `MOST_CHARACTERS`.
    """
    window = _Window(chunks, where)
    window.expect("{")
    seen: set[str] = set()
    more = window.peek() != "}"
    while more:
        key = window.value()
        if not isinstance(key, str) or key in seen:
            raise window.error(f"{show(key)} is no key, or stands twice")
        seen.add(key)
        window.expect(":")
        if window.peek() == "[":
            for element in _elements(window):
                yield key, element
        else:
            window.value()
        more = window.follows()
    window.expect("}")
    if window.peek():
        raise window.error("there is more behind its end")


def _elements(window: _Window) -> Iterator[Any]:
    window.expect("[")
    more = window.peek() != "]"
    while more:
        yield window.value()
        more = window.follows()
    window.expect("]")


class _Window:
    """The text that was read and not yet parsed. passed: characters before it."""

    def __init__(self, chunks: Iterable[bytes], where: str) -> None:
        self._chunks, self._where = iter(chunks), where
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._passed, self._ended = "", 0, 0, False

    def error(self, problem: str) -> DataError:
        place = self._passed + self._at
        return DataError(f"{self._where} is no readable JSON: {problem} (character {place:,})")

    def _more(self) -> bool:
        """Read on. Returns False at the document's end."""
        if self._ended:
            return False
        chunk = next(self._chunks, None)
        self._ended = chunk is None
        try:
            text = self._decoder.decode(chunk or b"", final=self._ended)
        except UnicodeDecodeError as error:
            raise self.error(f"no text in UTF-8: {error.reason}") from error
        self._text, self._passed = self._text[self._at :] + text, self._passed + self._at
        self._at = 0
        return not self._ended

    def peek(self) -> str:
        """Return the next character that is no space, "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        """Pass over a character. Raises DataError if another one follows."""
        found = self.peek()
        if found != character:
            raise self.error(
                f"{character} should follow, not {show(found) if found else 'its end'}"
            )
        self._at += 1

    def follows(self) -> bool:
        """Pass over a comma; return False if none is next."""
        if self.peek() != ",":
            return False
        self._at += 1
        return True

    def value(self) -> Any:
        """Parse the next value. Raises DataError if there is none."""
        self.peek()
        while True:
            problem = "its end comes too early"
            try:
                value, end = self._scan(self._text, self._at)
                if end + _CUT_EXPONENT < len(self._text) or self._ended:
                    self._at = end
                    return value
            except (ValueError, RecursionError) as error:
                problem = str(error) or type(error).__name__
            if len(self._text) - self._at > MOST_CHARACTERS or self._ended:
                raise self.error(problem.partition(": line")[0])
            self._more()
