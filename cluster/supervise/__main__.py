"""Supervise the ranks of this node. Started by a backend of `addp launch`, once on each node:

    python -m cluster.supervise --run RUN --nodes N --ranks K --port P [options] -- TRAINER'S WORDS

RANK says which node this is, WORLD_SIZE how many there are, spares included, and MASTER_ADDR where
node 0 is; Slurm's and MPI's variables do as well. Alone, it is node 0. Exit codes: 0 done, 75
stopped and saved, 77, 78 and 79 as the ranks ended, 80 gave up after failures without progress, 81
nodes are missing: start it again.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from cluster.supervise.coordinator import Coordinator
from cluster.supervise.limits import Limits
from cluster.supervise.messages import KEY, await_key, make_key
from cluster.supervise.node import HEALTH, Node, NodeOptions, Timing
from cluster.supervise.output import Output
from cluster.supervise.policy import Rules
from model.documents import first_problem
from model.entry import EXIT_CRASH, run_entry
from model.errors import ADDPError, ConfigError
from trainer.distributed.world import take_world
from trainer.run_folder import EXIT_STORAGE, RunFolder

PORT = 29_650  # the coordinator's, where none is chosen
_GOODBYE = 15.0  # seconds for the coordinator to send all nodes home
_LEAST_LOST = 2.0  # seconds
_PORT_WAIT = 75.0  # seconds: longer than a coordinator that is stopped may live
_TRAINER = "trainer.pretrain"


class UnwritableRun(ADDPError):
    """The run folder cannot be written."""

    exit_code = EXIT_STORAGE


class Arguments(NamedTuple):
    """The command line and the environment, understood."""

    run: RunFolder
    rules: Rules
    limits: Limits
    node: NodeOptions


def parse(words: Sequence[str], environment: dict[str, str]) -> Arguments:
    """Understand how this supervisor was started. Raises ConfigError."""
    parser = argparse.ArgumentParser(
        prog="cluster.supervise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, help="the run folder, which all nodes share")
    add("--port", type=int, default=PORT, help=f"TCP port of the coordinator ({PORT})")
    add("--devices", default="", help="devices of this node for its ranks: 0,1 (all)")
    add("--grace", type=float, default=60.0, help="seconds for ranks to save when stopped (60)")
    add("--lost", type=float, default=10.0, help="seconds of silence of a node that is lost (10)")
    add("--name", default=platform.node(), help="what this node is called (its host's name)")
    add("--address", help="by which other nodes reach this one (as node 0 sees it)")
    add("--module", default=_TRAINER, help=argparse.SUPPRESS)  # for tests, as the next one
    add("--health", default=HEALTH, help=argparse.SUPPRESS)
    _add_options(parser, Rules)
    _add_options(parser, Limits)
    add("trainer", nargs="*", metavar="WORD", help="arguments of the trainer, after --")
    options = vars(parser.parse_args(words))
    world = take_world(environment)
    if world.local:
        raise ConfigError(
            "this is the second supervisor on this node; a launcher has to start one on each node"
        )
    if world.rank and not environment.get("MASTER_ADDR"):
        raise ConfigError("MASTER_ADDR is not set; it has to say where node 0 is")
    if not (options["lost"] >= _LEAST_LOST and options["grace"] >= 0):
        raise ConfigError(
            f"--lost {options['lost']:g} --grace {options['grace']:g}: a node beats once a second, "
            f"so that --lost has to be {_LEAST_LOST:g} at least; --grace cannot be negative"
        )
    rules, limits = _model(Rules, options), _model(Limits, options)
    address = environment.get("MASTER_ADDR", "127.0.0.1")
    return Arguments(
        RunFolder(options["run"]),
        rules,
        limits,
        NodeOptions(
            index=world.rank,
            name=options["name"] or "node",
            address=address if world.rank else "127.0.0.1",
            port=options["port"],
            command=(sys.executable, "-u", "-m", options["module"], *options["trainer"]),
            own_address=options["address"] or (None if world.rank else address),
            tell_ranks=options["module"] == _TRAINER,
            health=options["health"],
            devices=tuple(filter(None, options["devices"].split(","))),
            rejoin=rules.rejoin,
            timing=Timing(
                lost=options["lost"],
                reconnect=min(3.0, options["lost"] / 2),
                grace=options["grace"],
            ),
        ),
    )


def _add_options(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        text = (field.description or "").replace("%", "%%")
        default = "" if field.default in (None, ()) else f" ({field.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", help=text + default)


def _model(model: type[Any], options: dict[str, Any]) -> Any:
    """Make a model of the options that were given. Raises ConfigError."""
    given = {name: options[name] for name in model.model_fields if options.get(name) is not None}
    if "worlds" in given:
        given["worlds"] = [word for word in given["worlds"].split(",") if word]
    try:
        return model.model_validate(given)
    except ValidationError as problem:
        raise ConfigError(f"--{first_problem(problem).replace('_', '-')}") from problem


async def supervise(arguments: Arguments, output: Output) -> int:
    """Run the node's supervisor and, on node 0, the coordinator. Returns the exit code."""
    run, options = arguments.run, arguments.node
    try:
        if options.index:
            key = await asyncio.to_thread(await_key, run.path / KEY, options.rejoin)
        else:
            key = await asyncio.to_thread(make_key, run.path / KEY)
    except OSError as error:
        raise UnwritableRun(
            f"{run.path / KEY} cannot be made or read: {error.strerror or error}"
        ) from error
    if options.index:
        return await Node(options, run, key, output).run()
    coordinator = Coordinator(
        arguments.rules,
        run,
        key,
        output,
        limits=arguments.limits,
        timing=options.timing,
        own_address=options.own_address or "127.0.0.1",
    )
    await _open(coordinator, options.port, output)
    node = Node(options, run, key, output)
    serving = asyncio.create_task(node.run())
    deciding = asyncio.create_task(coordinator.run())
    try:
        await asyncio.wait((serving, deciding), return_when=asyncio.FIRST_COMPLETED)
        if deciding.done():
            verdict = deciding.result()  # raises what has gone wrong
            await asyncio.wait((serving,), timeout=_GOODBYE)  # it was told as all nodes were
            return serving.result() if serving.done() else verdict.code
        code = serving.result()
        await asyncio.wait((deciding,), timeout=_GOODBYE)  # it still tells the others
        return code
    finally:
        node.end_now()


async def _open(coordinator: Coordinator, port: int, output: Output) -> None:
    """Listen for nodes, as soon as an earlier coordinator that was stopped has been killed by its
    guardian. Raises ConfigError."""
    deadline, said = time.monotonic() + _PORT_WAIT, False
    while True:
        try:
            await coordinator.open(port)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise ConfigError(
                    f"port {port} cannot be opened ({error.strerror}); choose another with --port"
                ) from error
            if not said:
                output.say(f"supervisor: port {port} is taken; waiting until it is free")
                said = True
            await asyncio.sleep(1.0)


def main() -> int:
    """Supervise, and end this process whatever its threads wait for."""
    output = Output()
    try:
        arguments = parse(sys.argv[1:], dict(os.environ))
        return asyncio.run(supervise(arguments, output))
    finally:
        output.drain(2.0)


def _leave() -> None:
    """End the process at once: threads that wait for a lost mount would hold it up."""
    code: Any = EXIT_CRASH
    try:
        run_entry(main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_CRASH
    os._exit(code)


if __name__ == "__main__":
    _leave()
