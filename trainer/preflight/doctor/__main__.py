"""Find out whether a run would train on these nodes. One process on each of them; none trains.

    addp doctor CONFIG --hostfile hosts
    srun -N4 --ntasks-per-node=1 python -m trainer.preflight.doctor --config base

Every node is looked at by itself, then all of them together: do they meet, reach each other, have
the same time, versions and configuration, see the same run folder, and is the store fast enough.
Node 0 prints the answer. Nothing is left behind. Exits with 0, or with 78 where something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from pathlib import Path

from rich.console import Console

from model.errors import ConfigError
from trainer.config.arguments import configured
from trainer.distributed.world import take_world
from trainer.preflight.doctor.examination import Wanted, examine, meet_or_tell
from trainer.preflight.doctor.reporting import show, to_lines
from trainer.preflight.node.gpus import see_all
from trainer.resilience.leaving import leave
from trainer.run_folder import EXIT_CONFIG, EXIT_DONE


def _ports(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= 65_535:
        raise ConfigError(f"--ports {text!r} is no range such as 30000-32699")
    return int(match[1]), int(match[2])


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=os.environ.pop("ADDP_PROGRAM", "python -m trainer.preflight.doctor"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual, add = Wanted(), parser.add_argument
    add("--config", type=Path, help="run file (YAML) or recipe")
    add("--json", action="store_true", help="print JSON, for scripts")
    add("--lines", action="store_true", help=argparse.SUPPRESS)  # for `addp doctor`
    add("--no-device", action="store_true", help="compute nothing on the devices")
    add("--ports", default=f"{usual.low}-{usual.high}", help="range, of which one is tried")
    add("--meeting", type=float, default=usual.meeting, help="seconds for all to start")
    add("--sight", type=float, default=usual.sight, help="seconds to see a shared file")
    add("--grace", type=float, default=usual.grace, help="seconds for a stop to save")
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    add("arguments", nargs="*", metavar="FILE|key=value")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Examine this node together with the others. Returns the exit code."""
    options = _options(arguments)
    file, overrides = configured(options.config, options.arguments)
    wanted = Wanted(
        file,
        overrides,
        not options.no_device,
        *_ports(options.ports),
        meeting=options.meeting,
        sight=options.sight,
        grace=options.grace,
    )
    world = take_world()
    see_all()

    def say(line: str) -> None:
        if world.rank == 0 or line.startswith("FAILED"):
            print(f"doctor: {platform.node()}: {line}", file=sys.stderr, flush=True)

    exchange = meet_or_tell(wanted, world, say)
    answer = examine(wanted, exchange, say)
    if world.rank == 0:
        if options.lines:
            print("\n".join(to_lines(answer)), flush=True)
        elif options.json:
            print(json.dumps(answer, indent=1), flush=True)
        else:
            show(answer, Console(width=None if sys.stdout.isatty() else 160))
    exchange.end()
    return EXIT_DONE if answer["ready"] else EXIT_CONFIG


if __name__ == "__main__":
    leave(main)
