"""What a driver may say of GPUs, and what that means. No test here needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.preflight.finding_states import state, text
from trainer.preflight.node.gpus import (
    GPU,
    NoDriver,
    Usage,
    check_gpus,
    check_kernel_log,
    check_use,
    driver_version,
    faults_in,
    judge_gpus,
    kernel_log,
    read_gpus,
    see_all,
    visible,
)

GOOD = GPU(
    0,
    "NVIDIA H100",
    "GPU-aa",
    volatile=0,
    aggregate=0,
    ecc=True,
    pending=False,
    remap_failed=False,
    slow=1,
    clock=1980,
    fastest=1980,
    temperature=40,
    slows_at=90,
    persistent=True,
    prohibited=False,
    width=16,
    widest=16,
    links=18,
    memory=80 * 2**30,
    used=2**20,
)


def test_a_gpu_that_is_well() -> None:
    (found,) = judge_gpus([GOOD])
    assert found.state == "ok" and found.found == "1 x NVIDIA H100, up to 40 °C"


def test_a_gpu_of_which_nothing_is_known() -> None:
    assert [one.state for one in judge_gpus([GPU(0)])] == ["ok"]


@pytest.mark.parametrize(
    ("change", "name", "expected", "words"),
    [
        ({"problem": "GPU is lost"}, "GPU health", "FAILED", "GPU 0: GPU is lost"),
        ({"volatile": 2}, "GPU health", "FAILED", "2 uncorrected memory errors"),
        ({"aggregate": 5}, "GPU health", "warning", "in its life"),
        ({"remap_failed": True}, "GPU health", "FAILED", "no spare left"),
        ({"pending": True}, "GPU health", "warning", "only after a reset"),
        ({"ecc": False}, "GPU health", "warning", "ECC is off"),
        ({"prohibited": True}, "GPU health", "FAILED", "PROHIBITED"),
        ({"slow": 0x40 | 0x80}, "GPU speed", "warning", "too hot (hardware), power brake"),
        ({"clock": 900}, "GPU speed", "warning", "set to 900 MHz; 1980"),
        ({"temperature": 88}, "GPU speed", "warning", "88 °C; it slows down at 90"),
        ({"persistent": False}, "GPU speed", "warning", "persistence mode is off"),
        ({"width": 8}, "GPU speed", "warning", "8 of 16 PCIe lanes"),
    ],
)
def test_what_may_be_wrong(change: dict[str, Any], name: str, expected: str, words: str) -> None:
    found = list(judge_gpus([GOOD._replace(**change)]))
    assert state(found, name) == expected
    assert words in text(found, expected)  # type: ignore[arg-type]
    assert all(one.todo for one in found if one.state != "ok")


def test_links_that_only_one_gpu_has_lost() -> None:
    one, other = GOOD, GOOD._replace(number=1, links=17)
    assert "GPU 1: 17 NVLinks are up, 18 on another one" in text(judge_gpus([one, other]), "FAILED")
    other_kind = other._replace(name="NVIDIA T4", links=None)
    assert "FAILED" not in {f.state for f in judge_gpus([one, other_kind])}


def test_which_gpus_a_process_may_use() -> None:
    gpus = [GOOD._replace(number=n, uuid=f"GPU-{n}{n}") for n in range(3)]

    def numbers(devices: str | None) -> list[int]:
        return [gpu.number for gpu in visible(gpus, devices)]

    assert numbers(None) == [0, 1, 2] and numbers("2,0") == [2, 0] and numbers("GPU-11") == [1]
    assert numbers("") == [] and numbers("1,7,0") == [1] and numbers("-1") == []
    assert [gpu.name for gpu in visible(gpus, "MIG-x")] == ["MIG-x"]
    assert "it computes on the CPU" in text(judge_gpus([]), "ok")


def test_the_only_process_of_a_launcher_sees_all_gpus_of_its_node() -> None:
    """As the doctor and the supervisors are, which look at a node for all of its ranks."""
    launched = {"CROSS_SIZE": "2", "LOCAL_SIZE": "1", "CUDA_VISIBLE_DEVICES": "0"}
    see_all(launched)
    assert "CUDA_VISIBLE_DEVICES" not in launched
    for others in ({"LOCAL_SIZE": "1"}, {"CROSS_SIZE": "2", "LOCAL_SIZE": "4"}, {}):
        chosen = {**others, "CUDA_VISIBLE_DEVICES": "0"}  # by a user or a scheduler
        see_all(chosen)
        assert chosen["CUDA_VISIBLE_DEVICES"] == "0"


def test_without_a_driver(tmp_path: Path) -> None:
    """A machine without GPUs needs none; one that has them does."""

    def read() -> list[GPU]:
        raise NoDriver("NVML Shared Library Not Found")

    gpus, (found,) = check_gpus(read, tmp_path, {})
    assert gpus == [] and found.state == "ok" and "compute on the CPU" in found.found
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    _, (found,) = check_gpus(read, tmp_path, {})
    assert found.state == "FAILED" and "NVML Shared Library Not Found" in found.found
    for unwanted in ({"DS_ACCELERATOR": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}):
        assert check_gpus(read, tmp_path, unwanted)[1][0].state == "ok"


def test_the_real_library() -> None:
    """With a driver it lists GPUs, without one it says why not; it never raises anything else."""
    has_driver = bool(driver_version())
    if has_driver:
        assert all(gpu.uuid or gpu.problem for gpu in read_gpus({}))
    else:
        with pytest.raises(NoDriver, match=r"\w"):
            read_gpus({})


def test_kernel_logs(tmp_path: Path) -> None:
    log = (
        "4,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n"
        "4,2,2,-;NVRM: Xid (PCI:0000:3b:00): 13, pid=9, Graphics exception\n"
        "4,3,3,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=2, GPU has fallen off the bus.\n"
    )
    assert faults_in(log) == {"79": 2}
    found = list(check_kernel_log([GOOD], log))
    assert "XID 79 (fallen off the bus), 2 times" in text(found, "warning")
    assert state(check_kernel_log([GOOD], "quiet"), "kernel log") == "ok"
    assert "may not be read" in text(check_kernel_log([GOOD], None), "ok")
    assert list(check_kernel_log([], log)) == []
    (tmp_path / "log").write_text(log)
    assert kernel_log(tmp_path / "log") == log and kernel_log(tmp_path / "none") is None


def test_gpus_that_somebody_uses() -> None:
    used = GOOD._replace(used=40 * 2**30, processes=(Usage(77, None), Usage(78, 2**30)))
    found = list(check_use([GOOD, used]))
    assert len(found) == 1 and "process 77, 78" in found[0].text and found[0].state == "warning"
