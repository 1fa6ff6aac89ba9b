"""The options of generation, with their defaults and bounds: every command line and every sampler
takes them from here. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model.documents import Settings


class SamplingOptions(Settings):
    """How images come about, step by step (ADDP section 3.4); `model.sampler` computes it."""

    steps: int = Field(20, ge=1, le=10_000, description="denoising steps (N in the paper)")
    schedule: Literal["cosine", "linear"] = Field(
        "cosine", description="how the number of masked tokens falls with the steps"
    )
    choice_temperature: float = Field(
        6.0, ge=0, le=1000, description="randomness in choosing the tokens that a step keeps"
    )
    temperature: Literal["dynamic", "constant"] = Field(
        "dynamic", description="dynamic: this randomness falls to 0; constant: it stays"
    )
    top_p: float = Field(
        1.0,
        ge=0.01,
        le=1,
        description="draw from the likeliest tokens that have this probability together",
    )
