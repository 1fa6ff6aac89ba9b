"""The picture of a run in a terminal: made of one snapshot, and of nothing else.

Texts of the run are never read as markup, and hold no control characters (`fields.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.status import words
from cluster.status.snapshot import ENDED, Checkpoint, Metrics, Rank, Recovery, Snapshot, Start

_COLORS = {
    "running": "green",
    "done": "bold green",
    "starting": "cyan",
    "restarting": "yellow",
    "stopping": "yellow",
    "stopped": "yellow",
    "hung": "bold red",
    "dead": "bold red",
    "failed": "bold red",
    "gave up": "bold red",
    "incomplete": "red",
}
_IN_WORDS = {"hung": "hung?", "dead": "dead: no sign of life", "new": "nothing here yet"}
_WIDEST = 110  # columns
_MOST_GROUPS = 10  # rows of the table of ranks
_MOST_INCIDENTS = 5
_MOST_PARTS = 4  # of a start, the longest ones
_GOOD_ETTR, _FAIR_ETTR = 0.95, 0.90
_NOTICED_WAIT = 0.1  # a share of waiting for data that is shown in yellow


def picture(snapshot: Snapshot) -> RenderableType:
    """Return the whole picture."""
    title = Text.assemble(
        (f" {snapshot.run} ", "bold"),
        (f" {state_in_words(snapshot)} ", f"{_COLORS.get(snapshot.state, 'dim')} reverse"),
        " ",
    )
    ranks = len(snapshot.ranks) or snapshot.expected_ranks
    where = f"{ranks:,} rank{'s' * (ranks != 1)}" if ranks else "no ranks"
    if snapshot.hosts:
        where += f" on {words.names(snapshot.hosts)}"
    subtitle = Text(f" {where} · {words.clock(snapshot.time)} ", "dim")
    return Panel(
        Group(*_parts(snapshot)),
        title=title,
        title_align="left",
        subtitle=subtitle,
        subtitle_align="right",
        box=box.ROUNDED,
        border_style=_COLORS.get(snapshot.state, "dim").removeprefix("bold "),
        padding=(1, 2),
    )


def state_in_words(snapshot: Snapshot) -> str:
    """Return the state as people are told it."""
    return _IN_WORDS.get(snapshot.state, snapshot.state)


def show(snapshot: Snapshot, console: Console) -> None:
    """Print the picture."""
    console.print(picture(snapshot), width=min(console.width, _WIDEST))


def frame(snapshot: Snapshot, console: Console) -> RenderableType:
    """Return the picture for a screen of its own, which it may not fill."""
    hint = Text("Ctrl-C leaves; the run goes on", "dim")
    return Group(Constrain(picture(snapshot), min(console.width, _WIDEST)), hint)


def _parts(snapshot: Snapshot) -> Iterator[RenderableType]:
    if snapshot.state != "running":
        since = f" ({words.duration(snapshot.time - snapshot.since)} ago)" if snapshot.since else ""
        code = f"exit code {snapshot.code}: " if snapshot.code else ""
        color = _COLORS.get(snapshot.state, "").removeprefix("bold ")
        yield Text(f"{code}{snapshot.reason}{since}", color)
        yield Text()
    if snapshot.step is not None:
        yield _progress(snapshot)
        yield Text()
    yield _numbers(snapshot)
    if snapshot.ranks and snapshot.state not in ("done", "stopped"):
        yield Text()
        yield _ranks(snapshot)
    if snapshot.incidents:
        yield Text()
        yield _incidents(snapshot)
    for problem in snapshot.problems:
        yield Text(f"! {problem}", "yellow")


# How far it has come.


def _progress(snapshot: Snapshot) -> RenderableType:
    step, total = snapshot.step or 0, snapshot.total
    if not total:
        return Text(f"step {step:,}", "bold")
    grid = Table.grid(expand=True, padding=(0, 2))
    grid.add_column(ratio=1)
    grid.add_column(justify="right")
    bar = ProgressBar(
        total=total, completed=min(step, total), complete_style="green", finished_style="green"
    )
    grid.add_row(bar, Text(f"{words.percent(step / total)}   step {step:,} of {total:,}", "bold"))
    return Group(grid, _forecast(snapshot))


def _forecast(snapshot: Snapshot) -> Text:
    metrics, parts = snapshot.metrics, []
    if snapshot.state == "done":
        return Text("complete", "green")
    if snapshot.eta is not None:
        left = words.duration(snapshot.eta)
        if snapshot.state in ENDED:
            parts.append(f"{left} of training left")
        else:
            parts.append(f"ETA {left}, at {words.clock(snapshot.time + snapshot.eta)}")
    if metrics and metrics.seconds_per_step:
        parts.append(f"{words.duration(metrics.seconds_per_step)} a step")
    if metrics and metrics.images_per_second:
        parts.append(f"{words.number(metrics.images_per_second)} images/s")
    if metrics and metrics.mfu is not None:
        parts.append(f"MFU {metrics.mfu:.1%}")
    return Text("   ".join(parts))


# What it measures.


def _numbers(snapshot: Snapshot) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    if snapshot.metrics:
        for name, value in _measured(snapshot.metrics, snapshot):
            grid.add_row(name, value)
    grid.add_row("checkpoint", _checkpoints(snapshot))
    if snapshot.ettr:
        grid.add_row("ETTR", _ettr(snapshot))
    elif snapshot.starts:
        grid.add_row("starts", Text(str(snapshot.starts)))
    if snapshot.started:
        grid.add_row("started in", _start(snapshot.started))
    if snapshot.recovery:
        grid.add_row("last fault", _recovery(snapshot.recovery, snapshot.time))
    return grid


def _measured(metrics: Metrics, snapshot: Snapshot) -> Iterator[tuple[str, Text]]:
    loss = Text("nan", "bold red") if metrics.loss_is_finite is False else Text("?", "dim")
    if metrics.loss is not None:
        loss = Text(f"{words.number(metrics.loss):8}", "bold")
    line = words.sparkline(metrics.losses, 48) if len(metrics.losses) > 1 else ""
    yield "loss", Text.assemble(loss, " ", (line, "cyan"))
    parts = []
    if metrics.learning_rate is not None:
        parts.append(f"{metrics.learning_rate:.3g}")
    if metrics.grad_norm is not None:
        parts.append(f"gradient {words.number(metrics.grad_norm)}")
    if metrics.skipped_steps:
        parts.append(f"{metrics.skipped_steps:,} steps skipped")
    if parts:
        yield "lr", Text("   ".join(parts))
    if metrics.data_wait is not None:
        color = "yellow" if metrics.data_wait > _NOTICED_WAIT else ""
        yield "data wait", Text(f"{metrics.data_wait:.1%} of the time", color)
    if metrics.straggler is not None:
        yield "slow", Text(_straggler(metrics, snapshot), "yellow")
    elif metrics.rank_seconds_max is not None and (snapshot.expected_ranks or 2) > 1:
        slowest = words.duration(metrics.rank_seconds_max)
        yield "ranks", Text(f"the slowest takes {slowest} of its own a step; none holds others up")
    if memory := _memory(metrics):
        yield "memory", Text(memory)


def _straggler(metrics: Metrics, snapshot: Snapshot) -> str:
    host = next((r.host for r in snapshot.ranks if r.rank == metrics.straggler and r.host), None)
    where = f" on {host}" if host else ""
    text = f"rank {metrics.straggler}{where} holds the others up"
    if metrics.rank_seconds_max is not None and metrics.rank_seconds_p50 is not None:
        text += (
            f": {words.duration(metrics.rank_seconds_max)} of its own a step, where the median "
            f"rank takes {words.duration(metrics.rank_seconds_p50)}"
        )
    return text


def _memory(metrics: Metrics) -> str:
    parts = []
    if metrics.device_memory_gib:
        parts.append(f"{words.number(metrics.device_memory_gib)} GiB on the device")
    if metrics.memory_gib:
        parts.append(f"{words.number(metrics.memory_gib)} GiB on the host")
    return "   ".join(parts)


def _checkpoints(snapshot: Snapshot) -> Text:
    parts = []
    if snapshot.source == "folder":
        parts.append(_checkpoint(snapshot.checkpoint) or "none yet")
    if snapshot.copied:
        parts.append(f"on the store: {_checkpoint(snapshot.copied)}")
    elif snapshot.upload:
        parts.append("on the store: none yet")
    return Text("   ".join(parts))


def _checkpoint(checkpoint: Checkpoint | None) -> str:
    return f"step {checkpoint.step:,}, {words.duration(checkpoint.age)} ago" if checkpoint else ""


def _ettr(snapshot: Snapshot) -> Text:
    assert snapshot.ettr is not None
    ratio, lost = snapshot.ettr.ratio, snapshot.ettr.lost_seconds
    color = "green" if ratio >= _GOOD_ETTR else "yellow" if ratio >= _FAIR_ETTR else "red"
    text = Text.assemble((words.percent(ratio), f"bold {color}"))
    if lost >= 0.05:
        whole = words.duration(lost + snapshot.ettr.train_seconds)
        text.append(f"   {words.duration(lost)} of {whole} lost")
    if snapshot.restarts:
        text.append(f"   {snapshot.restarts:,} restart{'s' * (snapshot.restarts > 1)}")
    if snapshot.failures_without_progress:
        failures = snapshot.failures_without_progress
        text.append(f"   {failures} without progress", "bold red")
    return text


def _start(start: Start) -> Text:
    parts = sorted(start.parts.items(), key=lambda part: -part[1])
    longest = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts[:_MOST_PARTS])
    return Text(f"{words.duration(start.seconds)}: {longest}")


def _recovery(recovery: Recovery, now: float) -> Text:
    ago = words.duration(max(0.0, now - recovery.time))
    text = f"{recovery.kind} {ago} ago, {words.duration(recovery.noticed)} after a sign of life"
    if recovery.stepped is None:
        return Text(f"{text}; no new step since", "yellow")
    return Text(f"{text}; next step {words.duration(recovery.stepped)} later")


# Its ranks.


def _ranks(snapshot: Snapshot) -> RenderableType:
    """A row for each group of ranks that do the same, those that are in trouble first: a thousand
    ranks in step are one row."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("ranks", "on", "section", "step", "last beat"):
        table.add_column(
            name, justify="right" if name == "step" else "left", no_wrap=name != "ranks"
        )
    groups = rank_groups(snapshot.ranks)
    for group in groups[:_MOST_GROUPS]:
        table.add_row(*_row(group))
    rest = groups[_MOST_GROUPS:]
    if not rest:
        return table
    left = sum(len(group) for group in rest)
    return Group(table, Text(f"... {left:,} more ranks in {len(rest):,} groups", "dim"))


def rank_groups(ranks: list[Rank]) -> list[list[Rank]]:
    """Return the ranks by what they do: those in trouble first, each by itself, and then groups of
    the same section and step, the smallest first."""
    groups: dict[tuple[object, ...], list[Rank]] = {}
    for rank in ranks:
        trouble = rank.silent or rank.code not in (None, 0)
        alone = rank.rank if trouble else -1
        groups.setdefault((not trouble, alone, rank.section, rank.step), []).append(rank)
    return sorted(groups.values(), key=lambda group: (not _troubled(group[0]), *_size(group)))


def _troubled(rank: Rank) -> bool:
    return rank.silent or rank.code not in (None, 0)


def _size(group: list[Rank]) -> tuple[int, float, int]:
    return len(group), -group[0].age, group[0].rank


def _row(group: list[Rank]) -> list[Text]:
    first, oldest = group[0], max(rank.age for rank in group)
    color = "red" if _troubled(first) else "yellow" if not first.lives else ""
    hosts = sorted({rank.host for rank in group if rank.host})
    beat = f"{words.duration(oldest)} ago"
    if first.silent:
        beat += " (gone)" if first.gone else f" (limit {words.duration(first.limit)})"
    if not first.lives:
        beat += f": exit code {first.code}" if first.code is not None else ""
    texts = (
        words.ranges(rank.rank for rank in group),
        words.names(hosts, 2),
        first.section,
        f"{first.step:,}",
        beat,
    )
    return [Text(text, color) for text in texts]


def _incidents(snapshot: Snapshot) -> RenderableType:
    shown = snapshot.incidents[-_MOST_INCIDENTS:]
    count = sum(snapshot.incident_counts.values())
    more = f", the latest {len(shown)}" if count > len(shown) else ""
    table = Table(
        title=Text(f"incidents of the last hour: {count:,}{more}", "dim"),
        title_justify="left",
        box=None,
        show_header=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        expand=True,
    )
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="yellow")
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for incident in shown:
        table.add_row(
            words.clock(incident.time),
            Text("" if incident.rank is None else f"rank {incident.rank}"),
            Text(incident.event),
            Text(incident.details),
        )
    return table
