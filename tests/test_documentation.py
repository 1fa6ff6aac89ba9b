"""The pages for users: their links lead somewhere, and the files, commands and options that they
name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.calling import commands

Words = tuple[str, ...]
ROOT = Path(__file__).parents[1]
# CHANGELOG.md also names what there was.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def by_name(page: Path) -> str:
    return page.name


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=by_name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_files_exist(page: Path) -> None:
    packages = r"(?:model|data_pipeline|trainer|cluster|benchmarks|tests|docs)/[\w./-]+"
    for name in re.findall(rf"`({packages})`", page.read_text()):
        assert (ROOT / name).exists() or "NAME" in name, name


@pytest.fixture(scope="module")
def known() -> dict[Words, set[str]]:
    """The options of each command."""
    return {
        words: {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        for words, command in commands().items()
    }


def typed(page: Path) -> Iterator[list[str]]:
    """The words after `addp` wherever a page names a command."""
    for line in page.read_text().replace("\\\n", " ").splitlines():
        for words in re.findall(r"(?<![\w-])addp ([a-z][a-z-]*[^`#|&\]]*)", line):
            yield [word.strip(",.;:()[]") for word in words.split()]


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_commands_and_their_options_exist(page: Path, known: dict[Words, set[str]]) -> None:
    for words in typed(page):
        command: Words = ()
        while words and (*command, words[0]) in known:
            command = (*command, words.pop(0))
        assert command, words
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known[command], (command, word)
