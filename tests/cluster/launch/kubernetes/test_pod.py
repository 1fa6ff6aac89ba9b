"""How a pod tells Kubernetes of its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
def stop(number, frame):
    Path(sys.argv[1]).write_text(json.dumps(
        {"code": 75, "reason": "", "time": time.time(), "stop": sys.argv[2]}))
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
if sys.argv[3] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "done":
    sys.exit(0)
time.sleep(86_400)
"""


@pytest.mark.parametrize(
    ("why", "mode", "code"),
    [("signal", "waits", 75), ("file", "waits", 82), ("file", "killed", 137), ("file", "done", 0)],
)
def test_a_pod_says_whether_a_user_has_stopped_the_run(
    why: str, mode: str, code: int, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "exit.json"), why, mode]
    first = [sys.executable, "-m", "cluster.launch.kubernetes.pod", "--run", str(tmp_path)]
    command = [*first, "--", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        if mode == "waits":
            process.terminate()
        assert process.wait(PATIENCE) == code
