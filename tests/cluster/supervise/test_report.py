"""The report of a run that was given up says what to do, and shows nothing that a rank could use to
play with a terminal."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.supervise.history import End, Event, Fault, NodeName, Stacks, Start
from cluster.supervise.report import clean, failure_report
from trainer.run_folder import LOST_RANK, RunFolder

NOW = time.time()
NODES = (NodeName(node="node-0", host="alpha"), NodeName(node="node-1", host="beta"))


def attempt(number: int, fault: Fault | None, *, reached: int | None = None) -> list[Event]:
    begun = NOW - 1000 + 100 * number
    events: list[Event] = [
        Start(time=begun, attempt=number, nodes=NODES, ranks=4, checkpoint=reached)
    ]
    if fault is not None:
        events.append(fault)
        reason, code = f"attempt {number} failed", 1
        events.append(
            End(
                time=begun + 75,
                attempt=number,
                code=code,
                step=12,
                checkpoint=reached,
                reason=reason,
                failed=True,
            )
        )
    return events


def fault(number: int, kind: str, node: int, reason: str = "it is broken") -> Fault:
    return Fault.model_validate(
        {
            "time": NOW - 950 + 100 * number,
            "attempt": number,
            "kind": kind,
            "reason": reason,
            "rank": 3,
            "node": NODES[node].node,
            "host": NODES[node].host,
        }
    )


def beat(folder: RunFolder, rank: int, **word: object) -> None:
    folder.heartbeats.mkdir(parents=True, exist_ok=True)
    said = {"time": NOW - 650, "section": "step", "step": 12, "host": "alpha", "pid": 70 + rank}
    folder.heartbeat(rank).write_text(json.dumps({**said, **word}))


def write_log(folder: RunFolder, host: str, rank: int, content: bytes) -> None:
    log = folder.logs / host / f"rank-{rank:05d}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(content)


def test_a_run_that_was_given_up(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    lost = f"{LOST_RANK} at step 12"
    beat(folder, 0, section="exit", code=1, reason=lost)
    beat(folder, 1, section="exit", code=1, reason="unexpected ZeroDivisionError: no such luck")
    beat(folder, 2)
    beat(folder, 3, time=NOW - 5000)  # of an earlier attempt
    trace = folder.trace(1)
    trace.parent.mkdir(parents=True)
    trace.write_text("Traceback\n" + "\n".join(f"frame {n}" for n in range(40)) + "\nZeroDivision")
    write_log(folder, "alpha", 1, b"x" * 100_000 + b"\nepoch 1\rstep 11\r\x1b[31mstep 12\x1b[0m\n")
    write_log(folder, "gamma", 3, b"of a host that is not named\n")
    events = [
        *attempt(1, fault(1, "hang", 1, "rank 3 is silent"), reached=8),
        Stacks(time=NOW, attempt=1, file="stacks/attempt-1.txt", summary="rank 3 in decode_image"),
        *attempt(2, fault(2, "crash", 1), reached=8),
        *attempt(3, None, reached=8),
    ]
    text = failure_report(folder, events, reason="3 failures in a row", code=80, now=NOW)
    head, advice, table, stacks, ranks, *blocks = text.rstrip("\n").split("\n\n")
    assert head.endswith(": 3 failures in a row (exit code 80)")
    assert "2 of the last 2 faults were on node-1 (beta)" in advice
    assert f"remove {folder.failure} and start the run again" in advice
    assert "checkpoint of step 8" in advice and "--limit-" in advice
    assert table.splitlines()[0] == "Attempts" and "1 min 15 s" in table
    assert table.endswith("its supervisors were killed") and "hang: rank 3 is silent" in table
    assert stacks.endswith("attempt 1: rank 3 in decode_image (stacks/attempt-1.txt)")
    assert ranks == "Last words of the ranks in attempt 3"
    first, second, third, fourth = blocks
    assert first.startswith(
        "rank 1 on alpha (process 71): ended with 1 at step 12: unexpected Zero"
    )
    assert first.count("    frame ") == 14 and "    ZeroDivision\n" in first
    assert first.endswith("    epoch 1\n    step 11\n    step 12")
    assert second.startswith("rank 2 on alpha (process 72): no last word; it was in step at step")
    assert third.startswith("rank 3: gave no sign of life") and "not named" in third
    assert fourth.startswith("rank 0 ") and lost in fourth


def test_without_anything_to_say(tmp_path: Path) -> None:
    text = failure_report(RunFolder(tmp_path), [], reason="no luck", code=80, now=NOW)
    assert "No attempt was made." in text and "begins at step 0" in text


def test_the_last_attempt_of_very_many_with_very_many_ranks(tmp_path: Path) -> None:
    events = [event for n in range(1, 200) for event in attempt(n, fault(n % 9 + 1, "death", 0))]
    events[-3] = events[-3].model_copy(update={"ranks": 5000})
    text = failure_report(RunFolder(tmp_path), events, reason="x", code=80, now=NOW)
    assert "Attempts (the latest of 199)" in text and "there were 5000" in text
    assert len(text) < 20_000


ugly = st.text(max_size=200) | st.sampled_from(
    [
        "\x1b]0;title\x07",
        "\x1b[2J\x1b[H",
        "a\x00b",
        "\u202eevil",
        "\x9b31m",
        "\ud800",
        "%s{}",
        "\r\n",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | ugly,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ugly, inner, max_size=3),
    max_leaves=6,
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)
@given(
    reason=ugly,
    said=ugly,
    log=st.binary(max_size=300),
    word=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("time", "section", "step", "host", "pid", "code", "reason"), values
        ),
    ),
)
def test_whatever_ranks_say_it_is_text(
    tmp_path: Path, reason: str, said: str, log: bytes, word: dict[str, object]
) -> None:
    folder = RunFolder(tmp_path)
    beat(folder, 0, **word)
    beat(folder, 1, section="exit", code=1, reason=said)
    folder.heartbeat(2).write_bytes(log)
    write_log(folder, "alpha", 1, log)
    reason = reason.encode(errors="replace").decode()  # no event holds a lone surrogate
    events = attempt(1, fault(1, "death", 0, reason))
    text = failure_report(folder, events, reason=reason, code=80, now=NOW)
    assert text.replace("\n", "").isprintable() and len(text) < 60_000
    assert all(len(line) < 5000 for line in text.splitlines())
    text.encode()


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for file in (folder.heartbeat(0), folder.trace(0), folder.logs / "alpha" / "rank-00000.log"):
        file.parent.mkdir(parents=True)
        os.mkfifo(file)
    beat(folder, 1, host="../../../etc", code=1, reason="x")
    text = failure_report(folder, attempt(1, None), reason="x", code=80, now=NOW)
    assert "rank 0: gave no sign of life" in text and "etc/rank" not in text


def test_colours_are_no_text() -> None:
    assert clean("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07") == "red link"
    assert clean("ab" * 400, 10) == "abababa..."
