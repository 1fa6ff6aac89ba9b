"""The GPUs of a node, as NVIDIA's driver describes them. Nothing is changed on them, and nothing
computed. Imports no torch.

`read_gpus` asks the driver, `judge_gpus` says what the answers mean. What a driver or a GPU does
not know is None, and is no fault.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from trainer.preflight.finding import Finding, size

T = TypeVar("T")
_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # vendor, and how the classes of display controllers begin
_LINKS = 36  # that a GPU may have
_HOT = 5  # degrees below the temperature at which a GPU slows down
_RESET = "reset it (`nvidia-smi --gpu-reset -i {number}`) or reboot; if it comes back, replace it"
# Bits of nvmlDeviceGetCurrentClocksEventReasons that say something is wrong.
_SLOW = {
    0x08: "hardware slowdown",
    0x20: "too hot (software)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}


class Usage(NamedTuple):
    """A process on a GPU. memory: bytes; None where the driver does not say."""

    pid: int
    memory: int | None


class GPU(NamedTuple):
    """The state of one GPU.

    problem: why it cannot be used at all; empty where it can. volatile, aggregate: uncorrected
    memory errors since the driver was loaded, and ever. pending: memory rows or pages that wait for
    a reset to be replaced. remap_failed: whether a row could not be replaced. slow: bits of reasons
    for lower clocks. width, widest: lanes of PCIe. links: NVLinks that are up.
    """

    number: int
    name: str = "GPU"
    uuid: str = ""
    problem: str = ""
    volatile: int | None = None
    aggregate: int | None = None
    ecc: bool | None = None
    pending: bool | None = None
    remap_failed: bool | None = None
    slow: int | None = None
    clock: int | None = None
    fastest: int | None = None
    temperature: int | None = None
    slows_at: int | None = None
    persistent: bool | None = None
    prohibited: bool | None = None
    width: int | None = None
    widest: int | None = None
    links: int | None = None
    memory: int | None = None
    used: int | None = None
    processes: tuple[Usage, ...] = ()


class NoDriver(Exception):
    """The driver cannot be asked."""


def read_gpus(environment: Mapping[str, str] = os.environ) -> list[GPU]:
    """Return the GPUs that a process with this environment may use. Raises NoDriver.

    CUDA_VISIBLE_DEVICES leaves the others out.
    """
    try:
        import pynvml
    except ImportError as error:
        raise NoDriver("nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoDriver(str(error)) from error
    try:
        gpus = [_read(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise NoDriver(str(error)) from error
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return visible(gpus, environment.get("CUDA_VISIBLE_DEVICES"))


def see_all(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have this process see all GPUs of its node where DeepSpeed's launcher has started it alone
    there: the launcher shows the processes of a node as many GPUs as it starts processes."""
    if "CROSS_SIZE" in environment and environment.get("LOCAL_SIZE") == "1":
        environment.pop("CUDA_VISIBLE_DEVICES", None)


def driver_version() -> str:
    """Return the version of the driver; empty where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # noqa: BLE001 - NVML's own errors, or a library that is no driver's
        return ""


def visible(gpus: list[GPU], devices: str | None) -> list[GPU]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names, by number or by UUID. As for CUDA, the first
    word that names none ends the list. devices: its value; None where it is not set."""
    if devices is None:
        return gpus
    chosen: list[GPU] = []
    for word in devices.split(","):
        word = word.strip()
        own = [
            gpu
            for gpu in gpus
            if (gpu.number == int(word) if word.isdigit() else word and gpu.uuid.startswith(word))
        ]
        if word.startswith("MIG-"):  # a part of a GPU, which says no more of itself
            own = [GPU(len(chosen), word, word)]
        if not own:
            break
        chosen += own[:1]
    return chosen


def _read(nvml: Any, index: int) -> GPU:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError as error:  # as one that is lost, or that needs a reset
        return GPU(index, problem=str(error))

    def ask(function: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return function(handle, *arguments)
        except (nvml.NVMLError, AttributeError):  # not supported, or of a newer library
            return None

    uncorrected = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    remapped = ask(nvml.nvmlDeviceGetRemappedRows)
    retired = ask(nvml.nvmlDeviceGetRetiredPagesPendingStatus)
    waits = [bool(value) for value in (remapped and remapped[2], retired) if value is not None]
    ecc = ask(nvml.nvmlDeviceGetEccMode)
    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    mode = ask(nvml.nvmlDeviceGetComputeMode)
    persistence = ask(nvml.nvmlDeviceGetPersistenceMode)
    return GPU(
        number=index,
        name=name,
        uuid=uuid,
        volatile=ask(nvml.nvmlDeviceGetTotalEccErrors, uncorrected, nvml.NVML_VOLATILE_ECC),
        aggregate=ask(nvml.nvmlDeviceGetTotalEccErrors, uncorrected, nvml.NVML_AGGREGATE_ECC),
        ecc=bool(ecc[0]) if ecc else None,
        pending=any(waits) if waits else None,
        remap_failed=bool(remapped[3]) if remapped else None,
        slow=ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons),
        clock=ask(nvml.nvmlDeviceGetApplicationsClock, nvml.NVML_CLOCK_SM),
        fastest=ask(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
        temperature=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        slows_at=ask(
            nvml.nvmlDeviceGetTemperatureThreshold, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        ),
        persistent=bool(persistence) if persistence is not None else None,
        prohibited=mode == nvml.NVML_COMPUTEMODE_PROHIBITED if mode is not None else None,
        width=ask(nvml.nvmlDeviceGetCurrPcieLinkWidth),
        widest=ask(nvml.nvmlDeviceGetMaxPcieLinkWidth),
        links=_links(nvml, handle),
        memory=memory.total if memory else None,
        used=memory.used if memory else None,
        processes=tuple(
            Usage(one.pid, one.usedGpuMemory)
            for one in ask(nvml.nvmlDeviceGetComputeRunningProcesses) or ()
        ),
    )


def _links(nvml: Any, handle: Any) -> int | None:
    """Return how many NVLinks are up; None where there are none at all."""
    states = []
    for link in range(_LINKS):
        try:
            states.append(bool(nvml.nvmlDeviceGetNvLinkState(handle, link)))
        except (nvml.NVMLError, AttributeError):
            break
    return sum(states) if states else None


def check_gpus(
    read: Callable[[], list[GPU]] = read_gpus,
    pci: Path = _PCI,
    environment: Mapping[str, str] = os.environ,
) -> tuple[list[GPU], list[Finding]]:
    """Return the GPUs of this node and what was found of them.

    read: asks the driver. pci: where the system lists the devices of its bus. environment: where
    DS_ACCELERATOR may say that nobody wants them.
    """
    try:
        gpus = read()
    except NoDriver as error:
        return [], [_without_driver(str(error), pci, environment)]
    return gpus, list(judge_gpus(gpus))


def _without_driver(reason: str, pci: Path, environment: Mapping[str, str]) -> Finding:
    there = _devices(pci)
    unwanted = environment.get("DS_ACCELERATOR") == "cpu"
    if not there or unwanted or environment.get("CUDA_VISIBLE_DEVICES") == "":
        return Finding("GPUs", "ok", "none: ranks of this node compute on the CPU")
    found = f"{there} NVIDIA devices on the bus, but the driver does not answer: {reason}"
    return Finding("GPUs", "FAILED", found, "install or load it, and see `nvidia-smi` and `dmesg`")


def _devices(pci: Path) -> int:
    """Return how many NVIDIA display controllers the bus has."""
    count = 0
    for vendor in pci.glob("*/vendor"):
        with suppress(OSError):
            kind = (vendor.parent / "class").read_text().strip()
            count += vendor.read_text().strip() == _NVIDIA and kind.startswith(_DISPLAY)
    return count


def judge_gpus(gpus: list[GPU]) -> Iterator[Finding]:
    """Yield a finding about all GPUs together, and one for each thing that is wrong with one."""
    if not gpus:
        yield Finding("GPUs", "ok", "none that this process may use: it computes on the CPU")
        return
    names = list(dict.fromkeys(gpu.name for gpu in gpus if not gpu.problem))
    kinds = [f"{sum(gpu.name == n and not gpu.problem for gpu in gpus)} x {n}" for n in names]
    heat = [gpu.temperature for gpu in gpus if gpu.temperature is not None]
    parts = [", ".join(kinds) or f"{len(gpus)} that do not answer"]
    parts += [f"up to {max(heat)} °C"] if heat else []
    yield Finding("GPUs", "ok", ", ".join(parts))
    for gpu in gpus:
        for finding in (*_judge_health(gpu), *_judge_speed(gpu)):
            yield finding._replace(found=f"GPU {gpu.number}: {finding.found}")
    yield from _judge_links(gpus)


def _judge_health(gpu: GPU) -> Iterator[Finding]:
    """What makes a GPU compute wrongly, or not at all."""
    name, reset = "GPU health", _RESET.format(number=gpu.number)
    if gpu.problem:
        yield Finding(name, "FAILED", gpu.problem, reset)
    if gpu.volatile:
        found = f"{gpu.volatile} uncorrected memory errors since the driver was loaded"
        yield Finding(name, "FAILED", found, reset)
    elif gpu.aggregate:
        found = f"{gpu.aggregate} uncorrected memory errors in its life, none since the last reset"
        yield Finding(name, "warning", found, "watch it; replace it if the number grows")
    if gpu.remap_failed:
        yield Finding(name, "FAILED", "a broken row of its memory has no spare left", "replace it")
    if gpu.pending:
        found = "broken memory is left out only after a reset"
        yield Finding(name, "warning", found, f"{reset} before a long run")
    if gpu.ecc is False:
        found = "its memory is not protected against errors (ECC is off)"
        yield Finding(name, "warning", found, f"`nvidia-smi -e 1 -i {gpu.number}` and reset it")
    if gpu.prohibited:
        found = "its compute mode is PROHIBITED"
        yield Finding(name, "FAILED", found, f"`nvidia-smi -c 0 -i {gpu.number}`")


def _judge_speed(gpu: GPU) -> Iterator[Finding]:
    """What makes a GPU slow, and with it every rank that waits for it."""
    name = "GPU speed"
    reasons = [words for bit, words in _SLOW.items() if (gpu.slow or 0) & bit]
    if reasons:
        todo = "look at the cooling and the power supply"
        yield Finding(name, "warning", f"slowed down now: {', '.join(reasons)}", todo)
    if gpu.clock and gpu.fastest and gpu.clock < gpu.fastest * 0.7:
        found = f"its clock is set to {gpu.clock} MHz; {gpu.fastest} are possible"
        yield Finding(name, "warning", found, f"`nvidia-smi -rac -i {gpu.number}`")
    if gpu.temperature is not None and gpu.slows_at and gpu.temperature > gpu.slows_at - _HOT:
        found = f"{gpu.temperature} °C; it slows down at {gpu.slows_at}"
        yield Finding(name, "warning", found, "look at the cooling")
    if gpu.persistent is False:
        found = "the driver is unloaded when nobody uses it (persistence mode is off)"
        yield Finding(name, "warning", found, "start nvidia-persistenced, or `nvidia-smi -pm 1`")
    if gpu.width and gpu.widest and gpu.width < gpu.widest:
        found = f"{gpu.width} of {gpu.widest} PCIe lanes are in use"
        yield Finding(name, "warning", found, "look at its slot and its riser; reboot")


def _judge_links(gpus: list[GPU]) -> Iterator[Finding]:
    """A GPU that has fewer NVLinks up than its neighbours of the same kind has lost some."""
    for gpu in gpus:
        most = max((one.links or 0 for one in gpus if one.name == gpu.name), default=0)
        if gpu.links is not None and gpu.links < most:
            found = f"GPU {gpu.number}: {gpu.links} NVLinks are up, {most} on another one"
            yield Finding("NVLink", "FAILED", found, "see `nvidia-smi nvlink -s`; reset or reboot")


def faults_in(log: str) -> dict[str, int]:
    """Return how often each of the driver's error numbers (XID) that a program cannot cause stands
    in a kernel log."""
    counts: dict[str, int] = {}
    for number in re.findall(r"NVRM: Xid \([^)]*\): (\d+)", log):
        if number in _XIDS:
            counts[number] = counts.get(number, 0) + 1
    return counts


_XIDS = {  # those of hardware, in NVIDIA's catalogue; 13, 31, 43 and 45 are a program's own
    "48": "two-bit memory error",
    "63": "memory row replaced",
    "64": "memory row not replaced",
    "74": "NVLink error",
    "79": "fallen off the bus",
    "92": "many one-bit memory errors",
    "94": "contained memory error",
    "95": "uncontained memory error",
    "119": "its processor (GSP) does not answer",
    "120": "its processor (GSP) failed",
}


def kernel_log(path: Path = Path("/dev/kmsg")) -> str | None:
    """Return the kernel's log as far as it is kept; None where it may not be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    lines: list[str] = []
    try:
        while len(lines) < 100_000:
            try:
                record = os.read(descriptor, 8192)
            except BlockingIOError:
                break
            except OSError:  # a record was overwritten before it was read
                continue
            if not record:
                break
            lines.append(record.decode(errors="replace"))
    finally:
        os.close(descriptor)
    return "".join(lines)


def check_kernel_log(gpus: list[GPU], log: str | None) -> Iterator[Finding]:
    """Check what the kernel has logged of the GPUs since the machine started."""
    if not gpus:
        return
    if log is None:
        found = "may not be read by this user: errors of GPUs (XID) in it are not seen"
        yield Finding("kernel log", "ok", found)
        return
    faults = faults_in(log)
    if not faults:
        yield Finding("kernel log", "ok", "no hardware errors of GPUs (XID)")
    for number, count in faults.items():
        found = f"XID {number} ({_XIDS[number]}), {count} times since the machine started"
        todo = "see `dmesg | grep Xid` for when and which GPU; reset it if it was not since"
        yield Finding("kernel log", "warning", found, todo)


def check_use(gpus: list[GPU]) -> Iterator[Finding]:
    """Check that nobody else's memory lies on the GPUs, whose processes are not ours to end."""
    for gpu in gpus:
        if gpu.used and gpu.memory and gpu.used > 0.1 * gpu.memory:
            pids = ", ".join(str(one.pid) for one in gpu.processes) or "unknown"
            found = f"GPU {gpu.number}: {size(gpu.used)} of {size(gpu.memory)} are in use"
            todo = f"see who runs there (`nvidia-smi`; process {pids})"
            yield Finding("GPU memory", "warning", found, todo)
