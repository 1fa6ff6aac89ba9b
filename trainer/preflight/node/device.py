"""Prove the devices of a node by a process of their own, which may hang or die. Imports no torch.

The process is `python -m trainer.preflight.node.computing`; it says a line of JSON before and after
each device.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from trainer.preflight.finding import Finding

_SECONDS = 180.0  # for all devices together: the first use of a GPU may compile for a minute
_GONE_SECONDS = 5.0  # a process that hangs in a driver may not even be killed
_COMMAND = (sys.executable, "-m", "trainer.preflight.node.computing")
_TODO = "do not train on it: run this again, and replace it if it computes wrongly once more"


def check_devices(
    rates: dict[str, float] | None = None,
    *,
    command: Sequence[str] = _COMMAND,
    seconds: float = _SECONDS,
) -> Iterator[Finding]:
    """Compute on each device that PyTorch sees, or on the CPU where there is none.

    rates: takes how many products of bfloat16 each GPU makes, in TFLOP/s. command: what computes,
    and says so. seconds: after which it is ended.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GONE_SECONDS)
        output.seek(0)
        errors.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
        last = (errors.read().decode(errors="replace").strip().splitlines() or [""])[-1]
    yield from judge_lines(lines, code, seconds, last)
    if rates is not None:
        rates.update(rates_in(lines))


def judge_lines(
    lines: Sequence[str], code: int | None, seconds: float, error: str
) -> Iterator[Finding]:
    """Yield what the lines of the process say.

    code: its exit code; None where it was ended after `seconds`. error: the last line of its
    standard error.
    """
    begun, found_wrong = "", False
    for record in _records(lines):
        begun = str(record["device"])
        if "proofs" in record:
            yield from judge_device(record)
            found_wrong |= not all(proof["holds"] for proof in record["proofs"])
            begun = ""
    where = begun or "PyTorch"
    if code is None:
        found = f"{where} has not answered after {seconds:g} s"
        yield Finding("device", "FAILED", found, "see `nvidia-smi` and `dmesg`; reset it or reboot")
    elif code < 0:
        yield Finding("device", "FAILED", f"{where} was ended by signal {-code}", "see `dmesg`")
    elif begun or (code != 0 and not found_wrong):
        found = f"{where} cannot compute: {error[:300] or f'exit code {code}'}"
        yield Finding("device", "FAILED", found, "see whether driver and PyTorch fit: docs/gpu.md")


def _records(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what the process says, without a library's own words."""
    for line in lines:
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "device" in record:
                yield record


def rates_in(lines: Sequence[str]) -> dict[str, float]:
    """Return the rate of each GPU, by its name."""
    found = {}
    for record in _records(lines):
        rates = [proof["tflops"] for proof in record.get("proofs", ()) if "tflops" in proof]
        if record.get("name") and rates:  # a CPU has no name, and other work
            found[str(record["device"])] = float(rates[-1])
    return found


def judge_device(record: dict[str, Any]) -> Iterator[Finding]:
    """Yield what was found on one device. record: a line of `trainer.preflight.node.computing`."""
    device = str(record["device"])
    wrong = [proof for proof in record["proofs"] if not proof["holds"]]
    for proof in wrong:
        yield Finding("device", "FAILED", f"{device}: {proof['words']}", _TODO)
    if not wrong:
        words = "; ".join(proof["words"] for proof in record["proofs"])
        name = f"{device} ({record['name']})" if record.get("name") else device
        yield Finding("device", "ok", f"{name} computes right: {words}")
