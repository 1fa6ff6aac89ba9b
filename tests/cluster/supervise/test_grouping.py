"""Who is somewhere else than all others is named, whatever stands around the telling frame."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from cluster.supervise.grouping import apart, group, report, summary
from cluster.supervise.stacks import Frame, RankStack, Thread, of_faulthandler

WAIT = [("wait", "lib/python3.11/threading.py", 327)]
RUN = [
    ("run", "lib/python3.11/threading.py", 982),
    ("_bootstrap", "lib/python3.11/threading.py", 9),
]
LOOP = [("_train_step", "trainer/loop.py", 190), ("<module>", "trainer/pretrain.py", 188)]
REDUCE = [
    ("all_reduce", "torch/distributed/distributed_c10d.py", 3004),
    ("wrapper", "torch/distributed/c10d_logger.py", 81),
    ("agree", "trainer/distributed/collectives.py", 85),
    *LOOP,
]
DECODE = [
    ("load", "PIL/ImageFile.py", 300),
    ("decode_image", "data_pipeline/images/decoding.py", 41),
    ("_fetch", "trainer/prefetch.py", 45),
]

Lines = list[tuple[str, str, int]]


def thread(frames: Lines, *, name: str | None = "MainThread", main: bool = True) -> Thread:
    made = tuple(Frame(function=f, file=file, line=line) for f, file, line in frames)
    return Thread(name=name, main=main, frames=made)


def stack(rank: int, frames: Lines, *others: Thread, state: str = "S") -> RankStack:
    threads = (thread(frames), *others)
    return RankStack(rank=rank, pid=100 + rank, source="py-spy", state=state, threads=threads)


def test_the_rank_that_is_elsewhere_is_named() -> None:
    stacks = [stack(rank, DECODE if rank == 3 else REDUCE) for rank in range(8)]
    assert summary(stacks) == (
        "7 of 8 ranks in all_reduce (torch/distributed/distributed_c10d.py:3004) from agree "
        "(trainer/distributed/collectives.py:85), rank 3 in decode_image "
        "(data_pipeline/images/decoding.py:41)"
    )
    text = report(stacks)
    assert "== ranks 0-2, 4-7: in all_reduce" in text and "== rank 3: in decode_image" in text
    assert "    load (PIL/ImageFile.py:300)\n" in text and text.count("main thread") == 2


def test_who_is_apart_is_known_where_most_are_at_one_place() -> None:
    waiting = [stack(rank, REDUCE) for rank in range(5)]
    assert apart([*waiting, stack(6, DECODE), stack(5, LOOP)]) == (5, 6)
    assert apart(waiting) == () and apart([]) == ()
    assert apart([stack(0, REDUCE), stack(1, DECODE)]) == ()
    unknown = [RankStack(rank=rank, pid=1, source="none", note="no answer") for rank in range(3)]
    assert apart([*unknown, stack(3, REDUCE)]) == ()


def test_a_rank_in_another_exchange_is_elsewhere() -> None:
    """All wait in all_reduce, but not in the same one: they will never meet."""
    other = [*REDUCE[:2], ("reduce_gradients", "trainer/engine/engine.py", 7), *LOOP]
    first, second = group([stack(0, REDUCE), stack(1, other), stack(2, REDUCE)])
    assert (first.ranks, second.ranks) == ((0, 2), (1,)) and "reduce_gradients" in second.place


def test_the_exchange_that_was_called_counts_and_not_the_one_in_it() -> None:
    frames = [REDUCE[0], REDUCE[1], ("all_gather_object", REDUCE[0][1], 3300), *REDUCE[1:]]
    assert "in all_gather_object (" in summary([stack(0, frames)])


def test_a_main_thread_that_waits_is_where_the_other_thread_is() -> None:
    waits = [*WAIT, ("wait", "lib/python3.11/concurrent/futures/_base.py", 305), *LOOP]
    idle = thread([*WAIT, *RUN], name="watchdog", main=False)
    beats = thread(
        [
            ("write_atomically", "model/files.py", 30),
            ("_write", "trainer/resilience/heartbeat.py", 9),
        ],
        name="heartbeat",
        main=False,
    )
    works = thread([*DECODE, *RUN], name="prefetch_0", main=False)
    assert "rank 0 in decode_image" in summary([stack(0, waits, idle, beats, works)])
    assert "rank 0 in _train_step" in summary([stack(0, waits, idle, beats)])


def test_a_stopped_process_is_told_from_those_that_wait() -> None:
    stacks = [stack(0, REDUCE), stack(1, REDUCE, state="T")]
    assert summary(stacks).endswith("collectives.py:85), stopped by a signal")
    assert len(group(stacks)) == 2


def test_a_rank_without_a_stack_says_why() -> None:
    none = RankStack(rank=2, pid=7, source="none", state="D", note="no answer in time")
    assert summary([none]) == (
        "rank 2 without a stack (waiting for its storage; no answer in time)"
    )
    assert summary([]) == "there are no ranks"


def test_many_places_stay_one_line() -> None:
    stacks = [stack(rank, [(f"f{rank}", "model/x.py", 1)]) for rank in range(70)]
    assert summary(stacks).endswith(", 65 other ranks in 65 other places")
    assert report(stacks).endswith("\n20 more groups are not shown\n")


names = st.text(string.ascii_lowercase + "_<>", min_size=1, max_size=8)
files = st.sampled_from(
    [
        *("lib/python3.11/threading.py", "trainer/loop.py", "model/vit.py", "PIL/Image.py", "?"),
        *("<frozen runpy>", "deepspeed/runtime/engine.py", "torch/distributed/distributed_c10d.py"),
    ]
)
frames = st.lists(st.tuples(names, files, st.integers(0, 9999)), max_size=6)
stacks_of_ranks = st.lists(
    st.tuples(frames, st.sampled_from(["S", "R", "T", "D", ""]), frames), max_size=30
)


@given(stacks_of_ranks)
def test_each_rank_is_in_one_group(made: list[tuple[Lines, str, Lines]]) -> None:
    stacks = [
        stack(rank, main, thread(other, name="x", main=False), state=state)
        for rank, (main, state, other) in enumerate(made)
    ]
    groups = group(reversed(stacks))
    assert sorted(rank for found in groups for rank in found.ranks) == list(range(len(made)))
    sizes = [len(found.ranks) for found in groups]
    assert sizes == sorted(sizes, reverse=True) and group(stacks) == groups
    assert "\n" not in summary(stacks)
    for one in stacks:
        assert one == RankStack.model_validate_json(one.model_dump_json())


@given(st.text(max_size=300), st.integers(1, 6))
def test_any_text_may_stand_where_faulthandler_writes(text: str, times: int) -> None:
    head = "Thread 0x00007f01 (most recent call first):\n"
    for thread in of_faulthandler((head + text) * times):
        assert all(frame.function.isprintable() for frame in thread.frames)
