"""The demo's whole road at a thousandth of its length, on the user's own images, interrupted once,
and then dense transfer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.patience import PATIENCE, until
from tests.warm import warm_python
from trainer.run_folder import RunFolder

COMMAND = ["-m", "cluster.cli", "demo", "--scale", "0.006"]


def test_interrupted_demo_goes_on_to_its_report(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = [*COMMAND, "--images", str(images), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until(RunFolder(out / "tokenizer").metrics.exists, alive=lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)  # Ctrl-C
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0 and not (out / "report.html").exists()
    assert not ranks_of(out)  # nothing runs on behind the user's back

    command = [warm_python(), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (out / "report.html").read_text()
    assert str((out / "report.html").resolve()) in done.stdout
    assert (
        not re.search(r'(src|href)="(?!data:|#)', page)
        and page.count("data:image/png;base64,") == 6
    )
    for name in (
        "reconstruction PSNR",
        "codebook in use",
        "predictor, masked tokens",
        "original found (top 1), ahead of raw pixels",
        "linear probe, trained encoder",
    ):
        assert name in page and name in done.stdout
    # At its end it says what each stage took; the tokenizer may have been done before.
    taken = done.stderr.rpartition("promised")[2]
    assert "train the addp" in taken and "whole demo" in taken
    # A hundredth of the training cannot reach the targets, and says so.
    assert "MISSED" in done.stdout
    (grid,) = (out / "addp" / "evaluation").glob("step-*/samples.png")
    assert Image.open(grid).size == (8 * 98 + 2, 8 * 98 + 2)

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stderr.count("done before") == 8, again.stderr

    dense = subprocess.run([*command, "--dense"], capture_output=True, text=True, check=False)
    assert dense.returncode == 0, dense.stdout + dense.stderr
    assert dense.stderr.count("done before") == 8 and "mean IoU" in dense.stdout
    page = (out / "report.html").read_text()
    assert "what the network says" in page and "what the network finds" in page

    other = tmp_path / "other"
    shutil.copytree(images, other)
    refused = subprocess.run(
        [warm_python(), *COMMAND, "--images", str(other), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 78 and "holds a demo on" in refused.stderr


def ranks_of(out: Path) -> list[str]:
    """The command lines of processes that name the demo's folder."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(out) in line:
                lines.append(line)
    return lines
