"""A Python that has the project imported: `warm_python()` is the path of an executable that takes
the place of `sys.executable` in a command line.

    Popen([warm_python(), "-m", "cluster.cli", ...])
        |
    client (this executable: arguments, environment, standard streams)
        |  socket
    server (one a test process, forked from tests.trainer.worlds' forkserver)
        |  fork
    supervisor (returns the exit code, passes on signals)
        |  fork
    the command: `python -m cluster.cli ...`, with `sys.executable` the client

A client that is signalled passes it on, and one that is killed takes the command with it. What
depends on process groups or on the command's own process id needs a real start.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import multiprocessing
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
import warnings
from multiprocessing import connection, process
from pathlib import Path
from typing import Any, NoReturn

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded", "tests.trainer.worlds"])

_PACKAGES = ("cluster", "data_pipeline", "deepspeed", "model", "trainer")
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

# Runs without site-packages, in a hundredth of a second. Any other use of Python is the real one.
_CLIENT = """\
#!{python} -IS
import json, os, signal, socket, struct, sys
words = sys.argv[1:]
if words[:1] == ["-u"]:
    del words[0]
if words[:1] != ["-m"] or words[1].partition(".")[0] not in {packages!r}:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
umask = os.umask(0)
os.umask(umask)
request = {{"words": words[1:], "environment": dict(os.environ), "folder": os.getcwd(),
            "umask": umask}}
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
for number in {signals!r}:
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, _: server.send(bytes([number])))
socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
answer = server.recv(4)
if len(answer) < 4:
    os._exit(70)
(code,) = struct.unpack("i", answer)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def warm_python() -> str:
    """Return the path of the client. The first call of a process starts its server."""
    folder = tempfile.mkdtemp(prefix="warm-")  # short: a socket's path has 107 bytes at most
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address, client = f"{folder}/socket", Path(folder, "python")
    client.write_text(
        _CLIENT.format(
            python=sys.executable,
            packages=_PACKAGES,
            address=address,
            signals=[int(number) for number in _PASSED_ON],
        )
    )
    client.chmod(0o755)
    ready, started = CONTEXT.Pipe(duplex=False)
    CONTEXT.Process(target=_serve, args=(address, str(client), started), daemon=True).start()
    assert ready.poll(300), "the server of commands did not start"
    return str(client)


def _serve(address: str, client: str, started: connection.Connection) -> None:
    """The server: fork a supervisor for each client that connects, until the parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        started.send(True)
        while True:
            ready, _, _ = select.select([listener, parent.sentinel], [], [])
            if parent.sentinel in ready:
                return
            client_socket, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _supervise(client_socket, client)
            client_socket.close()


def _supervise(client_socket: socket.socket, client: str) -> NoReturn:
    """The supervisor: fork the command, pass signals on, and send its exit code to the client."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, streams, _, _ = socket.recv_fds(client_socket, 1 << 20, 3)
    while not data.endswith(b"\n"):
        data += client_socket.recv(1 << 20)
    child = os.fork()
    if child == 0:
        client_socket.close()
        try:
            _become(json.loads(data), streams, client)
        finally:  # a fault of this file, whose trace nobody would see
            traceback.print_exc(file=open(2, "w", closefd=False))  # noqa: SIM115
            os._exit(70)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    while True:
        ready, _, _ = select.select([ended, client_socket], [], [])
        if ended in ready:
            break
        number = client_socket.recv(1)
        if not number:  # the client was killed
            os.kill(child, signal.SIGKILL)
            break
        os.kill(child, number[0])
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        client_socket.send(code.to_bytes(4, sys.byteorder, signed=True))
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int], client: str) -> NoReturn:
    """The command: do what a process of its own would do, and exit as it would."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    os.umask(request["umask"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    # The command may start processes of its own, and multiprocessing knows no parent of it.
    process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    process._parent_process = None  # type: ignore[attr-defined]
    sys.executable = client
    module, *arguments = request["words"]
    sys.argv = [module, *arguments]
    more = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [request["folder"], *filter(None, more)]
    # The module has been imported, which runpy warns of.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - an interpreter, too, prints any of them
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for output in (sys.stdout, sys.stderr):
        output.flush()
    os._exit(code)
