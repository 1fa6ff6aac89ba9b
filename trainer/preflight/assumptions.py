"""The options of `addp plan`: what a plan takes for granted. Imports no torch."""

from __future__ import annotations

import math

from pydantic import Field

from model.documents import Settings, show
from model.errors import ConfigError
from trainer.config.bounds import YEAR
from trainer.peaks import PEAKS
from trainer.preflight import reliability

IMAGENET = 1_281_167  # images
# What training waits for at a save, however small it is: ranks that agree, files that are made.
LEAST_STALL = 0.5  # seconds
COPY_RATE = 10e9  # bytes a second from a device to host memory


class Assumptions(Settings):
    """What a plan takes for granted, as nothing here can measure it."""

    images: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="images of an epoch, where the data set is not here. Not given: the data "
        f"set's, or {IMAGENET:,}",
    )
    device: str = Field(
        "H100", description=f"your GPU: {', '.join(PEAKS)}, or its TFLOP/s in dense bf16"
    )
    mfu: float = Field(
        0.4, ge=0.01, le=1, description="share of the device's peak that training reaches"
    )
    write: float = Field(
        1.0, ge=0.001, le=1e6, description="GB/s at which one rank writes its part of a checkpoint"
    )
    grace: float = Field(
        30.0,
        ge=0,
        le=YEAR,
        description="seconds that a preempted job has between the signal and the kill",
    )

    mttf: float = Field(
        round(reliability.MEAN_GPU_HOURS),
        ge=1e-3,
        le=1e12,
        description="GPU hours to a failure, on average; as published, 7.9 h at 1,024 GPUs",
    )
    detect: float = Field(
        30.0, ge=0, le=YEAR, description="seconds until a failure is noticed, on average"
    )
    restart: float = Field(
        120.0,
        ge=0,
        le=YEAR,
        description="seconds from then to the next new step: start, restore, first step",
    )
    stall: float | None = Field(
        None,
        ge=0,
        le=YEAR,
        description="seconds for which training waits at each checkpoint. Not given: "
        f"{LEAST_STALL} s, and the copy of a rank's part to host memory at {COPY_RATE / 1e9:.0f} "
        "GB/s, or its writing if saves are not asynchronous",
    )

    @property
    def peak(self) -> float:
        """Operations a second of the device. Raises ConfigError for a device that is not known."""
        try:
            peak = PEAKS.get(self.device) or float(self.device) * 1e12
        except ValueError:
            peak = math.nan
        if not 0 < peak <= 1e18:
            known = ", ".join(PEAKS)
            raise ConfigError(f"--device {show(self.device)}: {known}, or a number of TFLOP/s")
        return peak
