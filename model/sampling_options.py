"""The options of generation, with their defaults and bounds: every command line and every sampler
takes them from here. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from model.documents import Settings

SamplerName = Literal["published", "halton", "guided", "clear"]
# What each named sampler sets; the published one has the defaults below.
SAMPLERS: dict[SamplerName, dict[str, Any]] = {
    "published": {},
    "halton": {"order": "halton"},
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
    order: Literal["confidence", "halton", "random"] = Field(
        "confidence",
        description="which tokens a step keeps: the likeliest (published); those that a Halton "
        "sequence spreads evenly over the image; or any",
    )
    choice_temperature: float = Field(
        6.0,
        ge=0,
        le=1000,
        description="randomness in choosing the tokens that a step keeps by confidence",
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
    top_p_end: float | None = Field(
        None, ge=0.01, le=1, description="top-p of the last step, reached in a line; else it stays"
    )
    token_temperature: float = Field(
        1.0,
        ge=0.01,
        le=100,
        description="randomness in drawing tokens: logits are divided by it; below 1, pictures "
        "are plainer and have fewer errors",
    )
    token_temperature_end: float | None = Field(
        None,
        ge=0.01,
        le=100,
        description="token temperature of the last step, reached in a line; else it stays",
    )
    guidance_weight: float = Field(
        0.0,
        ge=0,
        le=100,
        description="w in l + w (l - l0), the logits that tokens are drawn by; l0 are those of the "
        "fully masked image, which cost nothing; 0: no guidance",
    )
    guide: Path | None = Field(
        None,
        description="take l0 from this ADDP network, an older or smaller one of the same tokens; "
        "each step then costs a pass of it",
    )
    class_guidance: float = Field(
        1.0,
        ge=0,
        le=100,
        description="with classes: w in lu + w (lc - lu), of the logits without the class and with "
        "it; 0: the class is not told, 1: no guidance; others cost one more pass of the decoder a "
        "step",
    )
    remask_steps: int = Field(
        0,
        ge=0,
        le=10_000,
        description="so many of the steps mend: they hold half of the tokens masked, take known "
        "tokens back, and draw as many others",
    )
    remask_share: float = Field(
        0.25, ge=0, le=0.5, description="share of the known tokens that such a step takes back"
    )
    critic: Literal["none", "predictor"] = Field(
        "none",
        description="who says which tokens are taken back: nobody (any are), or the run's frozen "
        "predictor, at one pass of it a mending step",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Take what was not given from the named sampler."""
        if isinstance(given, dict):
            return SAMPLERS.get(given.get("sampler", "published"), {}) | given
        return given

    @model_validator(mode="after")
    def _leave_steps(self) -> SamplingOptions:
        if self.remask_steps > max(0, self.steps - 2):
            raise ValueError(
                f"remask_steps={self.remask_steps} of steps={self.steps} leaves fewer than the two "
                "in which tokens become known"
            )
        return self

    def or_else(self, sampler: SamplerName) -> SamplingOptions:
        """Return these options, with a named sampler for those that were not given; these
        themselves where they name one."""
        if "sampler" in self.model_fields_set:
            return self
        return SamplingOptions(sampler=sampler, **self.model_dump(exclude_unset=True))

    @property
    def has_guide(self) -> bool:
        """Whether another network guides."""
        return self.guide is not None and self.guidance_weight > 0

    @property
    def has_critic(self) -> bool:
        """Whether the predictor says which tokens are mended."""
        return self.critic == "predictor" and self.remask_steps > 0

    @property
    def passes(self) -> int:
        """How many network passes a sample without a class costs, of the guide and the critic, too.
        With a class, guidance other than 0 and 1 adds a pass of the decoder alone to each step."""
        return self.steps * (1 + self.has_guide) + self.remask_steps * self.has_critic
