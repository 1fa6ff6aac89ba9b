"""The options of generation, with their defaults and bounds: every command line and every sampler
takes them from here. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from model.documents import Settings

SamplerName = Literal["published", "guided", "clear"]
# What each named sampler sets; the published one has the defaults below.
SAMPLERS: dict[SamplerName, dict[str, Any]] = {
    "published": {},
    "guided": {"guidance_weight": 2.0},
    "clear": {"class_guidance": 2.0, "top_p": 0.6},
}


class SamplingOptions(Settings):
    """How images come about, step by step (ADDP section 3.4); `model.sampler` computes it.

    An option that is not given has the value that the named sampler sets, and else its default.
    """

    sampler: SamplerName = Field(
        "published",
        exclude=True,  # it stands for the values of other options, which results state
        description="a named set of the options below, each of which may still be given",
    )
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
    guidance_weight: float = Field(
        0.0,
        ge=0,
        le=100,
        description="w in l + w (l - l0), the logits that tokens are drawn by; l0 are those of the "
        "fully masked image, which cost nothing; 0: no guidance",
    )
    class_guidance: float = Field(
        1.0,
        ge=0,
        le=100,
        description="with classes: w in lu + w (lc - lu), of the logits without the class and with "
        "it; 0: the class is not told, 1: no guidance; others cost one more pass of the decoder a "
        "step",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Take what was not given from the named sampler."""
        if isinstance(given, dict):
            return SAMPLERS.get(given.get("sampler", "published"), {}) | given
        return given

    def or_else(self, sampler: SamplerName) -> SamplingOptions:
        """Return these options, with a named sampler for those that were not given; these
        themselves where they name one."""
        if "sampler" in self.model_fields_set:
            return self
        return SamplingOptions(sampler=sampler, **self.model_dump(exclude_unset=True))
