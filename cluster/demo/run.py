"""`addp demo`: the whole road, once, from images to a report.

    images -> tokenizer -> token shards -> predictor -> ADDP -> samples and probes -> report
                                                         `-> segmenter, detector

Each stage leaves its results in the demo's folder, so that an interrupted demo goes on where it
stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cluster.demo.dense import DENSE_TRAININGS, check_packages, dense_stages
from cluster.demo.images import take_images
from cluster.demo.promise import Promise, Spent
from cluster.demo.stages import TRAININGS, Demo, Stage, stages
from cluster.demo.targets import show_targets
from cluster.launch.launch import RunFailed
from model.errors import ConfigError
from model.shipped import shipped_folder
from trainer.evaluation.reporting.page import write_report
from trainer.run_folder import EXIT_PREEMPTED, RunFolder

_QUICK = 0.3  # of the length of the trainings
_WORTH = 0.05  # of it: a shorter demo is over before its timing has paid

_console = Console(stderr=True)


def run_demo(
    images: Path | None,
    out: Path,
    processes: int,
    scale: float,
    quick: bool = False,
    dense: bool = False,
) -> None:
    """Go through all stages that are not done yet, after saying how long they will take here.

    images: class folders; None renders the OpenMoji set.
    out: the demo's folder, with a run folder for each training.
    processes: ranks of each training.
    scale: the length of the trainings, over that in the README.
    quick: whether the trainings are shorter still, and samples are all that is made of them. On
        emoji, the tokenizer and the predictor are then those that ship, and ADDP starts from them.
    dense: whether a segmenter and a detector follow. A demo that is done goes on to them.

    Raises ADDPError with what to do where a stage fails.
    """
    if quick and dense:
        raise ConfigError("--dense measures networks, and --quick measures none; give one of them")
    if dense:
        check_packages()
    # Before PyTorch is loaded. Its idle threads would spin between the short pieces of work of such
    # small networks: CPU time for nothing, and on a busy machine time that others need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    start = shipped_folder() if quick and images is None else None
    if start is not None:
        _console.print("The quick demo starts from the network that ships; it makes pictures only.")
    elif quick:
        _console.print(f"The quick demo: {_QUICK:.0%} of the training; it makes pictures only.")
    length = f"--scale {scale:g}{' --quick' if quick else ''}"
    folder = take_images(images, out, length)
    shorter = _QUICK if quick and start is None else 1.0
    demo = Demo(folder, out, processes, scale * shorter, quick, start)
    trainings = (*demo.trainings, *(DENSE_TRAININGS if dense else ()))
    road = [*stages(demo), *(dense_stages(demo) if dense else ())]
    promise = _promise(demo, trainings, [stage for stage in road if not stage.is_done()])
    began = Spent.now()
    for stage in road:
        _go(stage, promise)
    show_targets(out, _unmeasured(demo))
    runs = [str(out / name) for name in (*DENSE_TRAININGS, *reversed(TRAININGS))]
    print(write_report([run for run in runs if RunFolder(Path(run)).is_done], out / "report.html"))
    promise.settle(Spent.now().since(began))


def _unmeasured(demo: Demo) -> str | None:
    """Return why there are no targets; None where there are."""
    if not demo.quick:
        return None
    if demo.start is not None:
        return "started from the network that ships: pictures only"
    return "trained too shortly to be measured: pictures only"


def _promise(demo: Demo, names: Sequence[str], ahead: list[Stage]) -> Promise:
    """Time this machine, and say how long the stages ahead will take on it, where that is long."""
    if not ahead or demo.scale < _WORTH:
        return Promise({})
    from cluster.demo.speed import measure_speed
    from cluster.demo.timed_ranks import CannotTime

    configs = {name: demo.config(name) for name in names}
    trainings = {name: c for name, c in configs.items() if not RunFolder(demo.run(name)).is_done}
    try:
        _console.print("timing a few steps of each training")
        speed = measure_speed(demo.images, trainings, configs["addp"], demo.processes)
    except CannotTime as error:
        _console.print(f"How long this will take is not known: {error}")
        return Promise({})
    promise = Promise({stage.title: stage.cost(speed) for stage in ahead})
    promise.give()
    return promise


def _go(stage: Stage, promise: Promise) -> None:
    """Do the work of a stage that is not done yet. Raises RunFailed where it was asked to stop
    meanwhile: nothing may follow then."""
    if stage.is_done():
        _console.print(f"[dim]{stage.title}: done before")
        return
    _console.rule(stage.title)
    began = Spent.now()
    asked_to_stop = stage.work()
    promise.note(stage.title, Spent.now().since(began))
    if asked_to_stop:
        error = RunFailed("the demo was asked to stop; the same command goes on from here")
        error.exit_code = EXIT_PREEMPTED
        raise error
