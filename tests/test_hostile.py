"""Input that means harm, or is merely odd: each command ends with an exit code of ours and one
paragraph that says what is wrong, in bounded time and memory, and writes nothing outside of its
folder.

Generated ones beside this table: mutated run files in `tests/trainer/config/test_schema.py`,
mutated JSON documents in `tests/data_pipeline/test_mutated_documents.py` and
`tests/trainer/evaluation/reporting/test_records.py`.

Not defended: a tokenizer file made to harm makes bad tokens, and a user of the same account can do
what the run can.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.hostile import checks, commands, configurations, data_sets, records, sources, weights
from tests.hostile.case import OWN_CODES, Case
from tests.hostile.server import MEMORY, SECONDS

CASES: list[Case] = [
    *configurations.CASES,
    *commands.CASES,
    *data_sets.CASES,
    *sources.CASES,
    *weights.CASES,
    *records.CASES,
    *checks.CASES,
]
ROOT = Path(__file__).parent.parent
# SECONDS bound the processor time. Wall time may be so many times as long, since the machine may
# have other work.
_BUSY = 6
_NOT_READY = re.compile(r"FAILED .+\nnot ready: \d+ failed\n\Z", re.DOTALL)  # of `addp check`


class Ended(NamedTuple):
    """How a command ended. memory: the most that it took, in bytes."""

    code: int
    memory: int
    out: str
    error: str


class Server:
    """Runs commands that it forks, one after the other: `tests/hostile/server.py`."""

    def __init__(self, errors: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.server"],
            cwd=ROOT,
            text=True,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("w"),
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
            },
        )
        assert self._answer(300) == "ready", errors.read_text()

    def run(self, case: Case, folder: Path) -> Ended:
        asked = {
            "module": case.module,
            "command": case.command,
            "folder": str(folder / "work"),
            "stdout": str(folder / "stdout"),
            "stderr": str(folder / "stderr"),
            "environment": {
                "HOME": str(folder / "home"),
                "TMPDIR": str(folder / "temporary"),
                "COLUMNS": "200",
            },
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._answer(SECONDS * _BUSY))
        read = [(folder / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        return Ended(answer["code"], answer["memory"], *read)

    def _answer(self, seconds: float) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            self._end_children()
            ready, _, _ = select.select([self._process.stdout], [], [], 5)
        return self._process.stdout.readline().strip() if ready else ""

    def _end_children(self) -> None:
        pid = self._process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.killpg(int(child), signal.SIGKILL)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "errors")
    yield server
    server.close()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder for a case, which `rm` removes at its end: some cases nest folders so deeply that
    Python cannot remove them."""
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path], check=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_ends_in_one_paragraph(case: Case, server: Server, room: Path) -> None:
    for name in ("work", "home", "temporary", "outside"):
        (room / name).mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.make(room / "work")
    before = _listing(room)
    ended = server.run(case, room)
    shown = f"code {ended.code}\n{ended.out}\n{ended.error}"
    assert ended.code in case.codes and (ended.code == 0 or ended.code in OWN_CODES), shown
    assert ended.memory < MEMORY, f"{ended.memory / MEMORY:.1f} GiB"
    said = ended.out + ended.error
    assert "Traceback" not in said and "error: unexpected" not in said, shown
    answers_by_table = case.command[0] == "check" and _NOT_READY.search(ended.out)
    # 2 is wrong usage, which the command-line library puts into words.
    if ended.code not in (0, 2) and not answers_by_table:
        _, mark, paragraph = ended.error.strip().partition("error: ")
        assert mark and "\n\n" not in paragraph and len(paragraph) < 2000, shown
    for words in case.says:
        assert words.lower() in said.lower(), f"{words!r} is not in: {shown}"
    assert _listing(room) == before, "something was written outside of the folder"


def _listing(root: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the time of every file outside of the command's own folder.

    Traces of errors would lie among the temporary files; what libraries cache there does not count.
    """
    listing = {}
    for name in ("home", "temporary", "outside"):
        for path in (root / name).rglob("*"):
            if not {"matplotlib", ".cache"} & set(path.parts) and not path.name.startswith(
                (".", "torchinductor")
            ):
                listing[str(path)] = (path.lstat().st_size, path.lstat().st_mtime_ns)
    return listing


def test_no_two_cases_have_one_name_and_there_are_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 450
