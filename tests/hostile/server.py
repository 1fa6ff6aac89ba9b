"""A process that has imported the project once, and runs each command in a fork of itself: a case
takes a tenth of a second instead of four, and still runs the real entry point in a process of its
own."""

from __future__ import annotations

import importlib
import json
import os
import resource
import runpy
import sys
import warnings
from pathlib import Path

MEMORY = 1 << 30  # bytes that a command may take beyond what the imports have
SECONDS = 10


def main() -> None:
    importlib.import_module("tests.preloaded")
    warnings.filterwarnings(
        "ignore", category=RuntimeWarning, module="runpy"
    )  # a module runs that was imported
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(case: dict[str, object]) -> dict[str, int]:
    """Returns the exit code (negative: a signal) and the peak of memory in bytes beyond this
    process's."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = os.fork()
    if child == 0:
        _become(case)
    _, status, usage = os.wait4(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "memory": max(0, usage.ru_maxrss - before) * 1024,
    }


def _run_here(_: str, command: list[str]) -> None:
    """`addp NAME` becomes another module's process, whose imports would take seconds again."""
    module, *arguments = command[2:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _become(case: dict[str, object]) -> None:
    """The command itself; never returns."""
    code = 70  # a fault of this file
    try:
        os.setpgid(0, 0)
        os.chdir(str(case["folder"]))
        for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            path = "/dev/null" if number == 0 else str(case[name])
            opened = os.open(
                path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            )
            os.dup2(opened, number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.environ.update(case["environment"])  # type: ignore[arg-type]
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 2 * MEMORY, in_use + 2 * MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        code = 0
        os.execv = _run_here  # type: ignore[assignment]
        _run_here("", ["", "-m", str(case["module"]), *case["command"]])  # type: ignore[misc]
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - what an interpreter prints of it
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
