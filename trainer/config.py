"""The configuration of a run: defaults below < run file (YAML, differences only) < key=value on the command line.

Unknown keys are refused with the nearest known one; `addp config` prints every key with its default and meaning.
"""

from __future__ import annotations

import difflib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.storage import is_remote
from data_pipeline.views import ViewRecipe
from model.config import Geometry, TokenizerConfig, TokenizerLossConfig, TransformerConfig
from model.errors import ConfigError
from trainer.changes import check_names
from trainer.precision import MODES, Precision


def _absolute(place: str) -> str:
    return place if is_remote(place) else str(Path(place).absolute())


# Absolute as soon as they are read, so that a run folder's configuration holds in every working directory.
Place = Annotated[str, AfterValidator(_absolute)]  # a folder or a url
LocalPath = Annotated[Path, AfterValidator(Path.absolute)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(Section):
    tokens: Place | None = Field(None, description="the token data set, a folder or s3://bucket/prefix (mage and addp)")
    mixture: dict[Place, float] = Field(
        {}, description="several token data sets and their weights, in place of `tokens`"
    )
    pictures: Place | None = Field(
        None, description="pictures, a folder or s3://: class folders or WebDataset shards (tokenizer, classify)"
    )
    held_out: float = Field(0.1, ge=0, lt=1, description="share of the pictures kept for evaluation, fixed by hash")
    views: ViewRecipe = Field(ViewRecipe(), description="crops of the pictures (tokenizer, classify)")
    window: int = Field(16, gt=0, description="shards whose rows are shuffled together")
    stripes: int = Field(1, gt=0, description="parts of the data; a node downloads only those that its ranks read")
    tail: Literal["drop", "pad"] = Field("drop", description="samples that fill no batch at the end of an epoch")
    cache: LocalPath | None = Field(
        None, description="folder on a local disk for shards from s3://, shared by a host's ranks"
    )
    cache_gib: float = Field(200, gt=0, description="size that the cache may have")
    on_bad_shard: Literal["stop", "quarantine"] = Field(
        "stop", description="what a shard does that stays damaged: end the run, or its rows count with weight 0"
    )
    patience: float = Field(600, ge=0, description="seconds for which a store that does not answer is tried again")


class TokenizerSection(Section):
    sizes: TokenizerConfig = Field(
        TokenizerConfig(), description="sizes; `size: published|demo|tiny` takes a named one"
    )
    weights: LocalPath | None = Field(
        None, description="weights file: our safetensors, or the official VQGAN checkpoint"
    )


class TransformerSection(Section):
    sizes: TransformerConfig = Field(
        TransformerConfig(), description="sizes; `size: base|large|demo|tiny` takes a named one"
    )
    weights: LocalPath | None = Field(None, description="weights file: our safetensors, or the official checkpoint")


class ClassifierSection(Section):
    method: Literal["finetune", "linear"] = Field(
        "finetune", description="train everything from addp.weights (null: from scratch), or a linear head only"
    )
    tokenizer_norm: bool = Field(False, description="finetune: keep the norm that the reference leaves out")
    layer_decay: float = Field(0.65, gt=0, le=1, description="finetune: learning rate of a block over the next one's")
    drop_path: float = Field(0.1, ge=0, lt=1, description="finetune: stochastic depth of the last block")
    dropout: float = Field(0.0, ge=0, lt=1, description="in place of addp.sizes.dropout")


class AugmentationSection(Section):
    randaugment: int = Field(9, ge=0, lt=30, description="magnitude; 0: none")
    operations: int = Field(2, ge=1, description="operations that RandAugment draws")
    erasing: float = Field(0.25, ge=0, le=1, description="share of the pictures with a random rectangle erased")
    mixup: float = Field(0.8, ge=0, description="alpha of mixup; 0: none")
    cutmix: float = Field(1.0, ge=0, description="alpha of cutmix; 0: none")


class BatchSection(Section):
    global_batch: int = Field(4096, gt=0, description="samples of one optimizer step over all ranks")
    micro: int = Field(64, gt=0, description="samples of one forward pass on a rank")


class OptimizerSection(Section):
    name: Literal["adamw", "lamb", "lars"] = Field("adamw", description="LAMB and LARS are layer-wise in every stage")
    kernel: Literal["auto", "torch", "apex"] = Field("auto", description="auto takes NVIDIA apex's where it fits")
    base_lr: float = Field(
        1e-4, gt=0, description="learning rate for a batch of 256; lr = base_lr * global_batch / 256"
    )
    betas: tuple[float, float] = Field((0.9, 0.95), description="moment decays; LARS takes the first as momentum")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment (adamw, lamb)")
    trust: float = Field(0.001, gt=0, description="LARS: step length of a layer over the length of its weights")
    weight_decay: float = Field(0.05, ge=0, description="on tensors of two or more dimensions that are no biases")
    clip: float = Field(3.0, ge=0, description="largest gradient norm; 0 does not clip")


class ScheduleSection(Section):
    unit: Literal["epochs", "steps"] = Field("epochs", description="what `total` and `warmup` count")
    total: float = Field(1600, gt=0, description="length of the run")
    warmup: float = Field(40, ge=0, description="linear warm-up, then half a cosine to 0")


class CheckpointSection(Section):
    every: int = Field(1000, gt=0, description="steps between checkpoints")
    keep: int = Field(3, gt=0, description="newest checkpoints kept")
    permanent_every: int = Field(0, ge=0, description="checkpoints at multiples of it are kept for good; 0: none")
    asynchronous: bool = Field(True, description="write files while training goes on; needs their size in host memory")
    upload: Place | None = Field(None, description="s3://bucket/prefix (or a folder) that each checkpoint is copied to")
    patience: float = Field(
        600, ge=0, description="seconds for which an upload is tried again, and the end of a run waits"
    )
    lease: float = Field(
        60, gt=0, description="seconds without a sign of life after which another machine's hold on `upload` is void"
    )


class ResumeSection(Section):
    allow: tuple[str, ...] = Field(
        (), description="keys (or sections) that may differ from the checkpoint's although they change the optimisation"
    )


class HealthSection(Section):
    spikes: Literal["ignore", "log", "rewind"] = Field("log", description="what a spike of loss or gradient norm does")
    loss_deviations: float = Field(8.0, gt=0, description="a spike: loss above the median by so many deviations")
    norm_factor: float = Field(10.0, gt=1, description="a spike: gradient norm above so many times the median")
    consecutive: int = Field(3, gt=0, description="steps in a row that make a spike")
    history: int = Field(256, ge=8, description="steps of the running statistics; nothing is judged before half of it")
    skip: int = Field(0, ge=0, description="steps of data left out beyond the spike's own after a rewind")
    rewinds: int = Field(3, ge=0, description="rewinds before the run stops as diverged (exit code 77)")
    skips: int = Field(100, gt=0, description="non-finite steps in a row before the run stops as diverged")
    hang: float = Field(1800, ge=0, description="seconds without progress before a rank exits with 76; 0: never")


class RunConfig(Section):
    """One training run."""

    objective: Literal["tokenizer", "mage", "addp", "classify"] = Field(
        "addp",
        description="what is trained: VQ tokenizer, token predictor (MAGE), ADDP, or a classifier on its encoder",
    )
    run: Path = Field(Path("runs/unnamed"), description="run folder: checkpoints, metrics, resolved configuration")
    seed: int = Field(0, description="all randomness is keyed by it")
    data: DataSection = DataSection()
    tokenizer: TokenizerSection = TokenizerSection()
    predictor: TransformerSection = TransformerSection()
    addp: TransformerSection = TransformerSection()
    classifier: ClassifierSection = ClassifierSection()
    augmentation: AugmentationSection = AugmentationSection()
    tokenizer_loss: TokenizerLossConfig = TokenizerLossConfig()
    mask_ratio_scope: Literal["step", "micro"] = Field(
        "step",
        description="what shares a mask ratio: all samples of a step, or of a micro batch as published (mage, addp)",
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="over the vocabulary (mage, addp) or classes")
    output_bias: Literal["zeros", "frequencies"] = Field(
        "zeros",
        description="start of the output bias: zeros as published, or the log frequencies of the codes in the data",
    )
    batch: BatchSection = BatchSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    precision: Precision = Field(
        "bf16",
        description="of the whole network, with float32 master weights in the optimizer (fp16 also scales the loss); "
        "bf16-mixed: of its products only",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage; bf16 and fp16 need 1 or more")
    offload: Literal["none", "optimizer", "parameters"] = Field(
        "none", description="what lies in CPU memory: the optimizer (stages 1 to 3), also the parameters (stage 3)"
    )
    recompute_every: int = Field(
        0, ge=0, description="activation checkpointing of each n-th transformer block; 0: none"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="average of the weights, saved beside them; null: none"
    )
    deterministic: bool = Field(False, description="only deterministic kernels; slower on CUDA")
    checkpoint: CheckpointSection = CheckpointSection()
    resume: ResumeSection = ResumeSection()
    health: HealthSection = HealthSection()
    expect_ranks: int | None = Field(
        None, gt=0, description="ranks that the launcher has to start, or the run is refused; null: any number"
    )
    log_every: int = Field(20, gt=0, description="steps between metric lines")
    wandb: str | None = Field(None, description="project of Weights & Biases to log to as well (extra `wandb`)")

    @property
    def learning_rate(self) -> float:
        return self.optimizer.base_lr * self.batch.global_batch / 256

    @property
    def geometry(self) -> Geometry:
        return Geometry.of(self.tokenizer.sizes)


def load_config(path: Path | str | None, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Raises ConfigError that names the file or argument, the key and, for unknown ones, the nearest known key, and
    StorageError for a url that is none."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except FileNotFoundError as error:
            raise ConfigError(f"there is no configuration file {path}") from error
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} is no readable YAML: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__}, not a mapping of keys to values")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r} is no override; write key=value, as in batch.micro=32")
        _set(values, key.split("."), yaml.safe_load(value), override)
    return checked_config(values, str(path or "the command line"))


def checked_config(values: dict[str, Any], source: str) -> RunConfig:
    """source: where the values come from, for messages. Raises as `load_config` does."""
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, source)) from error
    _check_together(config)
    return config.model_copy(update={"run": config.run.absolute()})


def _check_together(config: RunConfig) -> None:
    """What no single key shows. Raises ConfigError, and StorageError for a url that is none."""
    check_names(config.resume.allow, RunConfig)
    is_remote(config.run)  # raises where it is a url: a run folder lies on a disk
    if config.zero_stage < MODES[config.precision].least_stage:
        others = [name for name, mode in MODES.items() if mode.least_stage == 0]
        raise ConfigError(
            f"precision = {config.precision} with zero_stage = {config.zero_stage} trains wrongly in DeepSpeed; use "
            f"zero_stage = {MODES[config.precision].least_stage}, or {' or '.join(others)}"
        )
    least = {"none": 0, "optimizer": 1, "parameters": 3}[config.offload]
    if config.zero_stage < least:
        raise ConfigError(f"offload = {config.offload} needs zero_stage = {least} or more, not {config.zero_stage}")
    permanent, every = config.checkpoint.permanent_every, config.checkpoint.every
    if permanent % every:
        raise ConfigError(
            f"checkpoint.permanent_every = {permanent} is no multiple of checkpoint.every = {every}; "
            f"{permanent // every * every or every} or {(permanent // every + 1) * every} would be"
        )


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override}: {key} is a value, not a section")
    values[keys[-1]] = value


def _explain(error: ValidationError, source: str) -> str:
    problems = []
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        name = ".".join(location)
        if item["type"] == "extra_forbidden":
            known = list(_model_at(location[:-1]).model_fields)
            near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0)
            problems.append(f"unknown key {name}; the nearest known one is {'.'.join([*location[:-1], *near])}")
        else:
            problems.append(f"{name or 'configuration'}: {item['msg']} (got {item['input']!r})")
    return f"in {source}: " + "; ".join(problems)


def _model_at(location: list[str]) -> type[BaseModel]:
    model: type[BaseModel] = RunConfig
    for key in location:
        annotation = model.model_fields[key].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    return model


def documented_defaults() -> str:
    """Every key with its default and meaning, as YAML."""
    lines = [
        "# Every key with its default. Written by `addp config --defaults`; a run file holds differences only.",
        "",
    ]
    _document(RunConfig(), lines, "")
    return "\n".join(lines) + "\n"


def _document(section: BaseModel, lines: list[str], indent: str) -> None:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            lines.append(f"{indent}{name}:" + (f"  # {field.description}" if field.description else ""))
            _document(value, lines, indent + "  ")
        else:
            dumped = yaml.safe_dump(section.model_dump(mode="json")[name], default_flow_style=True).split("\n")[0]
            lines.append(f"{indent}{name}: {dumped}  # {field.description}{_choices(field.annotation)}")


def _choices(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = get_args(annotation)[0]
    return f" ({' | '.join(map(str, get_args(annotation)))})" if get_origin(annotation) is Literal else ""
