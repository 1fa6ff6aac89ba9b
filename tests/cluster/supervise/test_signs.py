"""Signs of life are seen while the run folder cannot be written or read, and those of earlier
attempts are none."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.supervise.signs import Sign, Signs
from tests.patience import PATIENCE, until
from trainer.run_folder import NEAR_HEARTBEATS, RunFolder

# Reading the run folder takes for ever, as on a mount that hangs.
HANGING = """
import sys, time
def hang(event, arguments):
    if event == "open" and "/run/heartbeats/" in str(arguments[0]):
        time.sleep(86_400)
sys.addaudithook(hang)
"""
# The first look comes late: nothing is opened there before the rank has written.
LATE = """
import sys, time
from pathlib import Path
def wait(event, arguments):
    if event == "open" and str(arguments[0]).endswith("/rank-00000.json"):
        while not Path(arguments[0]).exists():
            time.sleep(0.01)
sys.addaudithook(wait)
"""
# A node's loop around one rank, which ends at once with 75.
NODE = """
import asyncio, sys, time
from pathlib import Path
from cluster.supervise.output import Output
from cluster.supervise.ranks import Layout, Ranks
from trainer.run_folder import RunFolder

RANK = '''
import json, os, platform, sys, time
from pathlib import Path
word = {"time": time.time(), "section": "exit", "host": platform.node(), "reason": "bye"}
file = Path(sys.argv[1]) / "heartbeats" / "rank-00000.json"
file.parent.mkdir(parents=True, exist_ok=True)
file.write_text(json.dumps(word))
os._exit(75)
'''

async def node():
    layout = Layout(attempt=1, first=0, ranks=1, world=1, address="127.0.0.1", port=1)
    command = [sys.executable, "-c", RANK, sys.argv[1]]
    ranks = Ranks(command, layout, RunFolder(sys.argv[1]), Output(), name="n", lost=10)
    while ranks.running or not ranks.clear():
        ranks.beat()
        ranks.poll()
        await asyncio.sleep(0.05)
    print([report.code for report in ranks.reports()])

asyncio.run(node())
"""


def write(file: Path, section: str, step: int = 0, **more: object) -> None:
    record = {"time": time.time(), "section": section, "step": step, "host": platform.node()}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(record | more))
    partial.replace(file)


def seen(signs: Signs, wanted: Callable[[Sign], bool]) -> Sign:
    def look() -> Sign | None:
        signs.look_at_once()
        sign = signs.latest(0)
        return sign if sign is not None and wanted(sign) else None

    return until(look)


def looked(signs: Signs) -> None:
    """Wait for a look that began after this call."""
    now = time.monotonic()

    def look() -> bool:
        signs.look_at_once()
        return signs.looked(0) > now

    until(look)


def said(code: str, run: Path) -> str:
    """What a program prints that is given the run."""
    command = [sys.executable, "-c", code, str(run)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    return done.stdout


def test_the_newer_of_two_places_counts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write(folder.heartbeat(0), "exit", 90, code=1)  # of an earlier attempt
    signs = Signs(folder, "n", [0])
    near = Path(signs.environment[NEAR_HEARTBEATS])
    assert near.stat().st_mode & 0o777 == 0o700
    looked(signs)
    assert signs.latest(0) is None and signs.age(0, 3.5) == 3.5
    write(near / "rank-00000.json", "step", 4)
    assert seen(signs, lambda sign: sign.step == 4).section == "step"
    assert signs.age(0, 3.5) < 3.5
    write(folder.heartbeat(0), "step", 5)  # the memory is full, and the run folder is not
    seen(signs, lambda sign: sign.step == 5)
    write(near / "rank-00000.json", "data", 6)
    seen(signs, lambda sign: sign.step == 6)
    write(near / "rank-00000.json", "step", 99, host="elsewhere")
    (near / "rank-00001.json").write_text("{")
    looked(signs)
    assert signs.latest(0).step == 6  # type: ignore[union-attr]
    signs.close()
    assert not near.exists()


def test_what_a_killed_supervisor_left_is_taken_over(tmp_path: Path) -> None:
    """Each node has a folder of its own, also where several are on one machine; and a folder that
    somebody else made under its name is left alone."""
    folder = RunFolder(tmp_path / "run")
    left = Path(Signs(folder, "n0", [0]).environment[NEAR_HEARTBEATS])
    write(left / "rank-00000.json", "step", 77)
    other = Signs(folder, "n1", [1])
    again = Signs(folder, "n0", [0])
    assert Path(again.environment[NEAR_HEARTBEATS]) == left and not list(left.iterdir())
    assert other.environment != again.environment
    again.close()
    left.symlink_to(tmp_path)
    foreign = Signs(folder, "n0", [0])
    assert Path(foreign.environment[NEAR_HEARTBEATS]) != left and tmp_path.exists()
    for signs in (other, foreign):
        signs.close()
    left.unlink()


def test_a_run_folder_that_cannot_be_read_hides_no_sign(tmp_path: Path) -> None:
    code = f"""{HANGING}
from cluster.supervise.signs import Signs
from tests.cluster.supervise.test_signs import write
from trainer.run_folder import NEAR_HEARTBEATS, RunFolder
signs = Signs(RunFolder(sys.argv[1]), "n", range(8))
near = __import__("pathlib").Path(signs.environment[NEAR_HEARTBEATS])
for step in range(5):
    for rank in range(8):
        write(near / f"rank-{{rank:05d}}.json", "step", step)
    while any(getattr(signs.latest(rank), "step", -1) != step for rank in range(8)):
        signs.look_at_once()
        time.sleep(0.01)
print("seen", len(signs._places[1].latest))
signs.close()
"""
    assert said(code, tmp_path / "run") == "seen 0\n"


def test_the_only_word_of_a_rank_is_seen_at_a_late_first_look(tmp_path: Path) -> None:
    """In a folder that is made for the attempt, it is not of an earlier one."""
    code = f"""{LATE}
from cluster.supervise.signs import Signs
from tests.cluster.supervise.test_signs import seen, write
from trainer.run_folder import NEAR_HEARTBEATS, RunFolder
signs = Signs(RunFolder(sys.argv[1]), "n", [0])
write(Path(signs.environment[NEAR_HEARTBEATS]) / "rank-00000.json", "exit", 4)
print(seen(signs, lambda sign: True).section)
signs.close()
"""
    assert said(code, tmp_path / "run") == "exit\n"


def test_a_section_without_a_name_is_no_sign(tmp_path: Path) -> None:
    """A report that cannot be made of it would keep the node from saying anything."""
    folder = RunFolder(tmp_path)
    signs = Signs(folder, "n", [0])
    near = Path(signs.environment[NEAR_HEARTBEATS]) / "rank-00000.json"
    write(near, "step", 4)
    seen(signs, lambda sign: sign.step == 4)
    for section in ("", "x" * 300):
        write(near, section, 5)
        looked(signs)
        latest = signs.latest(0)
        assert latest is not None and latest.step == 4
    signs.close()


def test_an_end_is_told_although_its_words_cannot_be_read(tmp_path: Path) -> None:
    """A rank whose end were never told would be waited for until it counts as one that hangs."""
    assert said(HANGING + NODE, tmp_path / "run") == "[75]\n"
