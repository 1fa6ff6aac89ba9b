"""The configuration of a run: every key with its default, its bounds and its meaning.

`reading.py` makes a configuration of a run file and a command line, `defaults.py` prints the keys,
`changes.py` says which may change while a run goes on, and `renamed.py` knows their old names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from data_pipeline.annotations.recipes import DetectionRecipe, SegmentationRecipe
from data_pipeline.images.location import absolute
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.storage import is_remote
from model.config import (
    LARGEST_IMAGE,
    WIDEST,
    Geometry,
    MaskedPixelsConfig,
    TokenizerConfig,
    TokenizerLossConfig,
    TransformerConfig,
)
from model.documents import Seed, Settings
from trainer.config.bounds import LARGEST_BATCH, MOST_RANKS, MOST_STEPS, YEAR
from trainer.engine.precision import Precision
from trainer.objectives.registry import OBJECTIVES, known_objective, objective_class

_LONGEST_PATH = 4096  # characters


def _absolute(place: str) -> str:
    """Return a folder as an absolute path, and a url as it is."""
    return place if is_remote(place) else str(Path(place).absolute())


def _named(path: Any) -> Any:
    """Refuse a path that is empty, which would be the working folder, and one that cannot be meant.

    YAML makes null of `run=`, which other keys take for "none".
    """
    if path is None or isinstance(path, str | Path):
        text = str(path or "")
        if (
            not text.strip()
            or len(text) > _LONGEST_PATH
            or any(ord(c) < 32 or ord(c) == 127 for c in text)
        ):
            raise ValueError("it must be a path, not empty, and without control characters")
    return path


# Absolute as soon as they are read, so that a run folder's configuration holds in every working
# directory.
Place = Annotated[str, BeforeValidator(_named), AfterValidator(_absolute)]  # a folder or a url
ImagePlace = Annotated[str, BeforeValidator(_named), AfterValidator(absolute)]  # or other urls
LocalPath = Annotated[Path, BeforeValidator(_named), AfterValidator(Path.absolute)]
_Weight = Annotated[float, Field(gt=0, le=1e9)]
_Beta = Annotated[float, Field(ge=0, lt=1)]
_Block = Annotated[int, Field(ge=0, lt=256)]
_Moment = Annotated[float, Field(gt=0, le=MOST_STEPS)]


class DataSection(Settings):
    tokens: Place | None = Field(
        None, description="the token data set, a folder or s3://bucket/prefix"
    )
    mixture: dict[Place, _Weight] = Field(
        {},
        max_length=4096,
        description="several token data sets and their weights, in place of `tokens`",
    )
    images: ImagePlace | None = Field(
        None,
        description="images, a folder or s3://: class folders or WebDataset shards, which may "
        "also lie at urls; addp reads them in evaluations only. segment: ADE20k, detect: COCO, as "
        "docs/annotations.md shows them",
    )
    held_out: float = Field(
        0.1, ge=0, lt=1, description="share of the images kept for evaluation, fixed by hash"
    )
    views: ViewRecipe = Field(ViewRecipe(), description="crops of the images")
    window: int = Field(16, gt=0, le=10**6, description="shards whose rows are shuffled together")
    stripes: int = Field(
        1,
        gt=0,
        le=10**6,
        description="parts of the data; a node downloads only those that its ranks read",
    )
    tail: Literal["drop", "pad"] = Field(
        "drop", description="samples that fill no batch at the end of an epoch"
    )
    cache: LocalPath | None = Field(
        None, description="folder on a local disk for shards from s3://, shared by a host's ranks"
    )
    cache_gib: float = Field(200, gt=0, le=2**30, description="size that the cache may have")
    on_bad_shard: Literal["stop", "quarantine"] = Field(
        "stop",
        description="what a shard that stays damaged does: it ends the run, or its rows count with "
        "weight 0",
    )
    retry_seconds: float = Field(
        600,
        ge=0,
        le=YEAR,
        description="seconds for which a store that does not answer is asked again",
    )


class TokenizerSection(Settings):
    sizes: TokenizerConfig = Field(
        TokenizerConfig(), description="sizes; `size: published|demo|tiny` takes a named one"
    )
    weights: LocalPath | None = Field(
        None,
        description="weights file, ours or an official one: what a tokenizer run begins with, "
        "addp's frozen tokenizer, and what `addp data preview` decodes by",
    )


class TransformerSection(Settings):
    sizes: TransformerConfig = Field(
        TransformerConfig(), description="sizes; `size: base|large|demo|tiny` takes a named one"
    )
    weights: LocalPath | None = Field(
        None,
        description="weights file, ours or an official one: what a run of this network begins "
        "with, or what another objective takes of it",
    )


class ClassifierSection(Settings):
    method: Literal["finetune", "linear"] = Field(
        "finetune",
        description="train everything from addp.weights (null: from scratch), or a linear head "
        "only",
    )
    tokenizer_norm: bool = Field(
        False, description="finetune: keep the norm that the reference leaves out"
    )
    layer_decay: float = Field(
        0.65, gt=0, le=1, description="finetune: learning rate of a block over the next one's"
    )
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="finetune: stochastic depth of the last block"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="in place of addp.sizes.dropout")


class AugmentationSection(Settings):
    randaugment: int = Field(9, ge=0, lt=30, description="magnitude; 0: none")
    operations: int = Field(2, ge=1, le=100, description="operations that RandAugment draws")
    erasing: float = Field(
        0.25, ge=0, le=1, description="share of the images with a random rectangle erased"
    )
    mixup: float = Field(0.8, ge=0, le=1000, description="alpha of mixup; 0: none")
    cutmix: float = Field(1.0, ge=0, le=1000, description="alpha of cutmix; 0: none")


class SegmenterSection(Settings):
    blocks: tuple[_Block, _Block, _Block, _Block] = Field(
        (3, 5, 7, 11),
        description="blocks, counted from 0, whose maps get strides 4, 8, 16 and 32 for patches of "
        "16; ascending, the last one at the end, and one may stand twice",
    )
    channels: int = Field(768, gt=0, le=WIDEST, description="width of UperNet's head")
    auxiliary_channels: int = Field(256, gt=0, le=WIDEST, description="width of the FCN head")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="share of channels that are dropped before a classifier"
    )
    tokenizer_norm: bool = Field(False, description="keep the norm that the reference leaves out")
    layer_decay: float = Field(
        0.65, gt=0, le=1, description="learning rate of a block over the next one's"
    )
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the last block")
    crops: SegmentationRecipe = SegmentationRecipe()


class DetectorSection(Settings):
    split: str = Field(
        "train",
        pattern=r"^[\w.-]{1,64}$",
        description="whose annotations are read; with its year where there are several of them",
    )
    window: int = Field(14, gt=0, le=512, description="side of an attention window, patches")
    global_blocks: tuple[_Block, ...] = Field(
        (2, 5, 8, 11), description="blocks, counted from 0, that attend to the whole image"
    )
    channels: int = Field(256, gt=0, le=WIDEST, description="width of the pyramid and of the heads")
    linear_width: int = Field(
        1024, gt=0, le=WIDEST, description="width of the box head's linear layer"
    )
    anchor_size: int = Field(
        32, gt=0, le=LARGEST_IMAGE, description="side of the smallest anchors, pixels"
    )
    anchors_per_image: int = Field(256, gt=0, le=65_536, description="anchors of the RPN's loss")
    regions_per_image: int = Field(512, gt=0, le=65_536, description="regions of the heads' losses")
    proposals: int = Field(
        1000, gt=0, le=65_536, description="regions of an image that the RPN proposes"
    )
    tokenizer_norm: bool = Field(False, description="keep the norm that the reference leaves out")
    layer_decay: float = Field(
        0.7, gt=0, le=1, description="learning rate of a block over the next one's"
    )
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the last block")
    jitter: DetectionRecipe = DetectionRecipe()


class BatchSection(Settings):
    global_batch: int = Field(
        4096, gt=0, le=LARGEST_BATCH, description="samples of one optimizer step over all ranks"
    )
    micro: int = Field(
        64, gt=0, le=LARGEST_BATCH, description="samples of one forward pass on a rank"
    )


class OptimizerSection(Settings):
    name: Literal["adamw", "lamb", "lars"] = Field(
        "adamw", description="LAMB and LARS are layer-wise in every ZeRO stage"
    )
    kernel: Literal["auto", "torch", "apex"] = Field(
        "auto", description="whose implementation; auto takes NVIDIA apex's where it fits"
    )
    base_lr: float = Field(
        1e-4,
        gt=0,
        le=100,
        description="learning rate for a batch of 256; lr = base_lr * global_batch / 256",
    )
    betas: tuple[_Beta, _Beta] = Field(
        (0.9, 0.95), description="moment decays; LARS takes the first as momentum"
    )
    eps: float = Field(
        1e-8, ge=1e-30, le=1, description="added to the root of the second moment (adamw, lamb)"
    )
    trust: float = Field(
        0.001,
        gt=0,
        le=100,
        description="LARS: step length of a layer over the length of its weights",
    )
    weight_decay: float = Field(
        0.05, ge=0, le=100, description="of tensors with two or more dimensions, but not of biases"
    )
    clip: float = Field(3.0, ge=0, le=1e9, description="largest gradient norm; 0 does not clip")


class ScheduleSection(Settings):
    unit: Literal["epochs", "steps"] = Field(
        "epochs", description="what `total` and `warmup` count"
    )
    total: float = Field(1600, gt=0, le=MOST_STEPS, description="length of the run")
    warmup: float = Field(40, ge=0, le=MOST_STEPS, description="linear warm-up from 0")
    shape: Literal["cosine", "linear", "tenths"] = Field(
        "cosine",
        description="how the rate falls then: as half a cosine to 0, in a line to 0, or to a tenth "
        "at each of `milestones`",
    )
    milestones: tuple[_Moment, ...] = Field(
        (), max_length=1000, description="moments at which the rate falls to a tenth, ascending"
    )

    @model_validator(mode="after")
    def _falls(self) -> ScheduleSection:
        if bool(self.milestones) != (self.shape == "tenths"):
            raise ValueError("milestones belong to shape = tenths, and that has one at least")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones = {list(self.milestones)} must ascend")
        return self


class CheckpointSection(Settings):
    every: int = Field(1000, gt=0, le=MOST_STEPS, description="steps between checkpoints")
    keep: int = Field(3, gt=0, le=MOST_STEPS, description="newest checkpoints kept")
    permanent_every: int = Field(
        0,
        ge=0,
        le=MOST_STEPS,
        description="checkpoints at multiples of it are kept for good; 0: none",
    )
    asynchronous: bool = Field(
        True, description="write files while training goes on; needs their size in host memory"
    )
    upload: Place | None = Field(
        None, description="s3://bucket/prefix (or a folder) that each checkpoint is copied to"
    )
    retry_seconds: float = Field(
        600,
        ge=0,
        le=YEAR,
        description="seconds for which a run's end waits for its last uploads; while a run trains, "
        "a failed upload is tried again without end",
    )
    lease: float = Field(
        60,
        ge=0.1,
        le=YEAR,
        description="seconds without a sign of life after which another machine's hold on `upload` "
        "is void",
    )


class ResumeSection(Settings):
    allow: tuple[str, ...] = Field(
        (),
        description="keys (or sections) that may differ from the checkpoint's although they change "
        "the optimisation",
    )


class HealthSection(Settings):
    spikes: Literal["ignore", "log", "rewind"] = Field(
        "log", description="what a spike of loss or gradient norm does"
    )
    loss_deviations: float = Field(
        8.0, gt=0, le=1e6, description="a spike: loss above the median by so many deviations"
    )
    norm_factor: float = Field(
        10.0, gt=1, le=1e6, description="a spike: gradient norm above so many times the median"
    )
    consecutive: int = Field(3, gt=0, le=10**6, description="steps in a row that make a spike")
    history: int = Field(
        256,
        ge=8,
        le=10**6,
        description="steps of the running statistics; no step is judged before half as many",
    )
    extra_skip_steps: int = Field(
        0,
        ge=0,
        le=MOST_STEPS,
        description="after a rewind: steps whose data are left out beyond those of the spike",
    )
    max_rewinds: int = Field(
        3, ge=0, le=10**6, description="rewinds after which a run stops as diverged (exit code 77)"
    )
    max_nonfinite_steps: int = Field(
        100,
        gt=0,
        le=MOST_STEPS,
        description="non-finite steps in a row after which a run stops as diverged",
    )
    hang: float = Field(
        1800,
        ge=0,
        le=YEAR,
        description="seconds without progress before a rank exits with 76; 0: never",
    )


class RunConfig(Settings):
    """One training run."""

    objective: Annotated[str, AfterValidator(known_objective)] = Field(
        "addp",
        description="what is trained: VQ tokenizer, token predictor (MAGE), ADDP; its network on "
        "masked pixels (MAE), to compare with; or a classifier, a segmenter or a detector on its "
        f"encoder ({' | '.join(OBJECTIVES)})",
    )
    run: Annotated[Path, BeforeValidator(_named)] = Field(
        Path("runs/unnamed"), description="run folder: checkpoints, metrics, resolved configuration"
    )
    seed: Seed = Field(0, description="all randomness is keyed by it")
    data: DataSection = DataSection()
    tokenizer: TokenizerSection = TokenizerSection()
    predictor: TransformerSection = TransformerSection()
    addp: TransformerSection = TransformerSection()
    classifier: ClassifierSection = ClassifierSection()
    augmentation: AugmentationSection = AugmentationSection()
    segmenter: SegmenterSection = SegmenterSection()
    detector: DetectorSection = DetectorSection()
    tokenizer_loss: TokenizerLossConfig = TokenizerLossConfig()
    pixels: MaskedPixelsConfig = MaskedPixelsConfig()
    mask_ratio_scope: Literal["step", "micro"] = Field(
        "step",
        description="what shares a mask ratio: all samples of a step, or of a micro batch as "
        "published",
    )
    condition: Literal["none", "classes"] = Field(
        "none",
        description="what the network is told of an image beside its tokens: nothing, as "
        "published, or its class, so that pictures of a class can be generated",
    )
    condition_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of the samples whose class is not told, from which generation without "
        "a class, and guidance, are learned",
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="over the vocabulary, or over classes"
    )
    output_bias: Literal["zeros", "frequencies"] = Field(
        "zeros",
        description="start of a fresh network's output bias: zeros as published, or the log "
        "frequencies of the codes in the data",
    )
    batch: BatchSection = BatchSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    precision: Precision = Field(
        "bf16",
        description="that the whole network computes in, with float32 master weights in the "
        "optimizer (fp16 also scales the loss); bf16-mixed: only its products are in bfloat16",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="DeepSpeed ZeRO stage; bf16 and fp16 need 1 or more"
    )
    offload: Literal["none", "optimizer", "parameters"] = Field(
        "none",
        description="what lies in CPU memory: the optimizer (stages 1 to 3), also the parameters "
        "(stage 3)",
    )
    recompute_every: int = Field(
        0,
        ge=0,
        le=1000,
        description="activation checkpointing of each n-th transformer block; 0: none",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, saved beside them; null: none",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile the networks; auto: on GPUs, in ZeRO 0 to 2, in runs of 2,000 "
        "steps or more",
    )
    deterministic: bool = Field(False, description="only deterministic kernels; slower on CUDA")
    frozen_ahead: bool = Field(
        False,
        description="on CUDA, run the frozen networks for the next micro batch beside the backward "
        "pass; they then share no memory with it",
    )
    checkpoint: CheckpointSection = CheckpointSection()
    resume: ResumeSection = ResumeSection()
    health: HealthSection = HealthSection()
    expect_ranks: int | None = Field(
        None,
        gt=0,
        le=MOST_RANKS,
        description="ranks that the launcher has to start, or the run is refused; null: any number",
    )
    collective_timeout: float = Field(
        2400,
        gt=0,
        lt=10**7,
        description="seconds that a rank waits for the others in one exchange before it ends; "
        "above health.hang",
    )
    log_every: int = Field(20, gt=0, le=MOST_STEPS, description="steps between metric lines")
    wandb: str | None = Field(
        None,
        pattern=r"^[^\s/\\#?%:]{1,128}$",
        description="project of Weights & Biases to log to as well (extra `wandb`)",
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        """Take true and false, which YAML makes of a plain on and off."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @property
    def learning_rate(self) -> float:
        """The highest learning rate, at the end of the warm-up."""
        return self.optimizer.base_lr * self.batch.global_batch / 256

    @property
    def geometry(self) -> Geometry:
        """What ties the networks together: the sizes of image, grid and vocabulary."""
        return Geometry.of(self.tokenizer.sizes)

    @property
    def depends_on_micro(self) -> bool:
        """Whether `batch.micro` changes more than rounding: see the objective's class."""
        return objective_class(self.objective).depends_on_micro(self)
