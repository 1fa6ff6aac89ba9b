"""Ranks by where they are: "7 of 8 ranks in all_reduce (torch/...), rank 3 in decode_image (...)".

Most ranks of a run that hangs wait for the few that hang. Who is somewhere else than all others is
where to look. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cluster.supervise.stacks import Frame, RankStack, Thread

_OURS = ("model/", "data_pipeline/", "trainer/", "cluster/")
_EXCHANGES = "torch/distributed/"
# These wrap whatever is called, or wait for whatever is waited for.
_UNTELLING = (
    *("lib/python3", "<", "torch/distributed/c10d_logger.py"),
    *("torch/utils/_contextlib.py", "torch/nn/modules/module.py", "deepspeed/utils/nvtx.py"),
)
_BEATS = "trainer/resilience/heartbeat.py"  # its thread is beside the run, whatever it does
_STATES = {"T": "stopped by a signal", "t": "held by a debugger", "D": "waiting for its storage"}
_MOST_NAMED = 5  # groups in a summary
_MOST_SHOWN = 50  # groups in a report


class Group(NamedTuple):
    """Ranks that are at the same place. stack: of the first of them."""

    place: str
    ranks: tuple[int, ...]
    stack: RankStack


def group(stacks: Iterable[RankStack]) -> list[Group]:
    """Return the ranks by their places, the largest group first.

    Ranks are at the same place where their functions are the same; lines may differ.
    """
    members: dict[tuple[str, ...], list[RankStack]] = {}
    for stack in sorted(stacks, key=lambda stack: stack.rank):
        members.setdefault(_key(stack), []).append(stack)
    groups = [
        Group(_words(there[0]), tuple(stack.rank for stack in there), there[0])
        for there in members.values()
    ]
    return sorted(groups, key=lambda group: (-len(group.ranks), group.ranks))


def apart(stacks: Sequence[RankStack]) -> tuple[int, ...]:
    """Return the ranks that are somewhere else than most; none where most are not at one place, or
    it is not known at which."""
    groups = group(stacks)
    if not groups or 2 * len(groups[0].ranks) <= len(stacks) or not groups[0].stack.threads:
        return ()
    return tuple(sorted(rank for found in groups[1:] for rank in found.ranks))


def summary(stacks: Sequence[RankStack]) -> str:
    """Return in one line where the ranks are."""
    groups = group(stacks)
    parts = [_some(found, len(stacks)) for found in groups[:_MOST_NAMED]]
    if len(groups) > _MOST_NAMED:
        others = sum(len(found.ranks) for found in groups[_MOST_NAMED:])
        parts.append(f"{others} other ranks in {len(groups) - _MOST_NAMED} other places")
    return ", ".join(parts) or "there are no ranks"


def report(stacks: Sequence[RankStack]) -> str:
    """Return the summary, and all threads of one rank of each group, as text."""
    groups = group(stacks)
    lines = [summary(stacks)]
    for found in groups[:_MOST_SHOWN]:
        lines += ["", f"== {_ranks(found.ranks)}: {found.place}"]
        who = f"rank {found.stack.rank} (process {found.stack.pid}), by {found.stack.source}"
        lines += [who] if found.stack.threads else []
        for thread in found.stack.threads:
            lines += _text(thread)
    if len(groups) > _MOST_SHOWN:
        lines += ["", f"{len(groups) - _MOST_SHOWN} more groups are not shown"]
    return "\n".join(lines) + "\n"


def _some(found: Group, total: int) -> str:
    if len(found.ranks) == 1:
        return f"rank {found.ranks[0]} {found.place}"
    return f"{len(found.ranks)} of {total} ranks {found.place}"


def _ranks(ranks: Sequence[int]) -> str:
    """Return ranks in words: ranks 0-2, 5."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    words = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {words}"


def _text(thread: Thread) -> list[str]:
    title = "main thread" if thread.main else f"thread {thread.name or 'without a name'}"
    return [f"  {title}", *(f"    {_at(frame)}" for frame in thread.frames)]


def _at(frame: Frame) -> str:
    return f"{frame.function} ({frame.file}:{frame.line})"


# The telling place of a rank.


def _key(stack: RankStack) -> tuple[str, ...]:
    frames = [f"{frame.function} {frame.file}" for frame in _telling(stack)]
    return (*frames, stack.state if stack.state in _STATES else "", "" if frames else stack.note)


def _words(stack: RankStack) -> str:
    frames = _telling(stack)
    state = _STATES.get(stack.state)
    if not frames:
        why = stack.note or "it has no Python frame"
        return f"without a stack ({f'{state}; ' if state else ''}{why})"
    words = "in " + " from ".join(_at(frame) for frame in frames)
    return f"{words}, {state}" if state else words


def _telling(stack: RankStack) -> tuple[Frame, ...]:
    """Return the frames that say where a rank is: an exchange and who called it, or one frame.

    A main thread that waits for another thread is where that one is.
    """
    main = next((thread.frames for thread in stack.threads if thread.main), ())
    if main and _waits(main):
        for thread in stack.threads:
            if not thread.main and not _waits(thread.frames) and not _is_beside(thread):
                frames = _place(thread.frames)
                if frames and _is_ours(frames[-1]):
                    return frames
    return _place(main)


def _place(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    telling = [frame for frame in frames if not frame.file.startswith(_UNTELLING)]
    own = next((frame for frame in telling if _is_ours(frame)), None)
    if telling and telling[0].file.startswith(_EXCHANGES):
        # What was called is the outermost: all_gather_object, and not the all_gather in it.
        exchange = telling[0]
        for frame in telling:
            if not frame.file.startswith(_EXCHANGES):
                break
            exchange = frame
        return (exchange, own) if own else (exchange,)
    first = own or (telling[0] if telling else frames[0] if frames else None)
    return (first,) if first else ()


def _waits(frames: Sequence[Frame]) -> bool:
    """Whether a thread waits for another one: Python itself is the innermost."""
    return bool(frames) and frames[0].file.startswith("lib/python3")


def _is_ours(frame: Frame) -> bool:
    return frame.file.startswith(_OURS)


def _is_beside(thread: Thread) -> bool:
    own = [frame for frame in thread.frames if _is_ours(frame)]
    return bool(own) and own[-1].file == _BEATS
