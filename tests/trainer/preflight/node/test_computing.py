"""A device that computes wrongly is found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.patience import PATIENCE
from tests.trainer.preflight.finding_states import text
from trainer.preflight.node import computing
from trainer.preflight.node.computing import (
    prove,
    prove_copy,
    prove_products,
    prove_step,
    quantities,
    small_step,
)
from trainer.preflight.node.device import check_devices, judge_device, judge_lines, rates_in

CPU = torch.device("cpu")


def test_this_cpu_computes_right() -> None:
    record = prove(CPU, small_step(), seconds=0.0)
    assert all(proof["holds"] for proof in record["proofs"]), record
    (found,) = judge_device(record)
    assert found.state == "ok" and found.found.startswith("cpu computes right")


def test_the_step_is_always_the_same() -> None:
    one, other = quantities(small_step()), quantities(small_step())
    for group, tensors in one.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other[group][name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_not_what_it_was(dtype: torch.dtype) -> None:
    step, reference = small_step(), quantities(small_step())
    with torch.no_grad():
        step.addp.decoder_embed.weight[0] += 1.0
    proof = prove_step(step, reference, CPU, dtype)
    assert not proof["holds"] and "parity FAILS" in proof["words"]
    record = {"device": "cuda:3", "name": "GPU", "proofs": [proof]}
    assert "cuda:3: a training step in" in text(judge_device(record), "FAILED")


def test_a_step_that_becomes_nan() -> None:
    step, reference = small_step(), quantities(small_step())
    with torch.no_grad():
        step.addp.decoder_embed.weight[0] = torch.nan
    assert not prove_step(step, reference, CPU, torch.float32)["holds"]


@pytest.mark.parametrize("spoiled", [1, 3])
def test_a_product_that_is_wrong_now_and_then(
    spoiled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is compared with the CPU's sums, later ones with the first."""
    count, multiply = 0, torch.Tensor.__matmul__

    def matmul(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        nonlocal count
        product = multiply(self, other)
        if self.dtype == torch.bfloat16:
            count += 1
            if count == spoiled:
                product[5, :7] += 8.0
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", matmul)
    proof = prove_products(CPU, torch.bfloat16, 0.0, 64)
    assert not proof["holds"]
    assert ("0 of 64 sums are wrong, and 1 of" in proof["words"]) == (spoiled == 3)


def test_the_command_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert computing.main(["cpu", "--seconds", "0"]) == 0
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"device": "cpu"} and last["proofs"]


def test_copies_between_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prove_copy(CPU, CPU, 1000)["holds"]
    move, count = torch.Tensor.to, 0

    def lossy(self: torch.Tensor, *where: Any, **more: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        moved = move(self, *where, **more).clone()
        if count == 2:
            moved[17] ^= 4
        return moved

    monkeypatch.setattr(torch.Tensor, "to", lossy)
    proof = prove_copy(CPU, CPU, 1000)
    assert not proof["holds"] and proof["words"] == "a copy to cpu: 1 bytes are wrong"


def test_what_a_gpu_computes_a_second() -> None:
    proofs = [{"holds": True, "words": "", "tflops": 3.5}, {"holds": True, "words": ""}]
    lines = [
        json.dumps({**RIGHT, "proofs": proofs}),
        json.dumps({"device": "cpu", "proofs": proofs}),
    ]
    assert rates_in([*lines, "words"]) == {"cuda:0": 3.5}


def _script(folder: Path, text: str) -> list[str]:
    (folder / "device.py").write_text("import json, os, signal, sys, time\n" + text)
    return [sys.executable, str(folder / "device.py")]


RIGHT: dict[str, Any] = {
    "device": "cuda:0",
    "name": "H100",
    "proofs": [{"holds": True, "words": "products"}],
}


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "PyTorch was ended by signal 11"),
        ("sys.exit('no CUDA driver')", "PyTorch cannot compute: no CUDA driver"),
        (
            "print(json.dumps({'device': 'cuda:2'}), flush=True); sys.exit('ECC error')",
            "cuda:2 cannot compute: ECC error",
        ),
    ],
)
def test_processes_that_come_to_no_answer(program: str, words: str, tmp_path: Path) -> None:
    command = _script(tmp_path, f"print({json.dumps(json.dumps(RIGHT))}, flush=True)\n{program}\n")
    found = list(check_devices(command=command, seconds=PATIENCE))
    assert words in text(found, "FAILED"), found
    assert "cuda:0 (H100) computes right: products" in text(found, "ok")


def test_a_process_that_hangs(tmp_path: Path) -> None:
    (found,) = check_devices(command=_script(tmp_path, "time.sleep(600)"), seconds=0.2)
    assert found.state == "FAILED" and found.found == "PyTorch has not answered after 0.2 s"
    lines = [json.dumps(RIGHT), json.dumps({"device": "cuda:1"}), "a library's own words"]
    found = list(judge_lines(lines, None, 9.0, ""))
    assert "cuda:1 has not answered after 9 s" in text(found, "FAILED")


def test_a_wrong_device_is_named_once() -> None:
    wrong = {**RIGHT, "proofs": [{"holds": False, "words": "products differ"}]}
    (found,) = judge_lines([json.dumps(wrong)], 1, 9.0, "")
    assert found.state == "FAILED" and found.found == "cuda:0: products differ"
