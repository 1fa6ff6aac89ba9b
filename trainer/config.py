"""The configuration of a run: defaults below < run file (YAML, differences only) < key=value on the command line.

Unknown keys are refused with the nearest known one; `addp config` prints every key with its default and meaning.
"""

from __future__ import annotations

import difflib
import os
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from data_pipeline.output import check_apart, is_within
from data_pipeline.storage import is_remote
from data_pipeline.views import ViewRecipe
from model.config import Geometry, TokenizerConfig, TokenizerLossConfig, TransformerConfig
from model.documents import MIB, Seed, Settings, parse_yaml, read_file, show
from model.errors import ConfigError
from trainer.changes import check_names
from trainer.precision import MODES, Precision
from trainer.uses import ALL, Objective, UsedBy, refuse_unused, statement

_LARGEST_FILE = MIB  # bytes of a run file
_LONGEST_PATH = 4096  # characters
_DEEPEST_KEY = 8  # parts of an override's key
_LONGEST_KEY = 100  # characters that are compared with the known keys
_MOST_TOLD = 5  # mistakes in one message
# Far beyond what can be meant; they keep arithmetic, memory and loops within bounds.
_YEAR = 366 * 86_400.0  # seconds; Python cannot wait for some centuries
_MOST_STEPS = 10**9
LARGEST_BATCH = 1 << 24
MOST_RANKS = 1 << 20


def _absolute(place: str) -> str:
    return place if is_remote(place) else str(Path(place).absolute())


def _named(path: Any) -> Any:
    """An empty one would be the working folder. YAML makes None of `run=`, which other keys take for none."""
    if path is None or isinstance(path, str | Path):
        text = str(path or "")
        if not text.strip() or len(text) > _LONGEST_PATH or any(ord(c) < 32 or ord(c) == 127 for c in text):
            raise ValueError("it must be a path, not empty, and without control characters")
    return path


# Absolute as soon as they are read, so that a run folder's configuration holds in every working directory.
Place = Annotated[str, BeforeValidator(_named), AfterValidator(_absolute)]  # a folder or a url
LocalPath = Annotated[Path, BeforeValidator(_named), AfterValidator(Path.absolute)]
_Weight = Annotated[float, Field(gt=0, le=1e9)]
_Beta = Annotated[float, Field(ge=0, lt=1)]

TOKENS = UsedBy("mage", "addp")
PICTURES = UsedBy("tokenizer", "classify")


class DataSection(Settings):
    tokens: Annotated[Place | None, TOKENS] = Field(
        None, description="the token data set, a folder or s3://bucket/prefix"
    )
    mixture: Annotated[dict[Place, _Weight], TOKENS] = Field(
        {}, max_length=4096, description="several token data sets and their weights, in place of `tokens`"
    )
    pictures: Annotated[Place | None, UsedBy("tokenizer", "addp", "classify")] = Field(
        None, description="pictures, a folder or s3://: class folders or WebDataset shards; of addp's evaluations"
    )
    held_out: Annotated[float, UsedBy("tokenizer", "addp", "classify")] = Field(
        0.1, ge=0, lt=1, description="share of the pictures kept for evaluation, fixed by hash"
    )
    views: Annotated[ViewRecipe, PICTURES] = Field(ViewRecipe(), description="crops of the pictures")
    window: Annotated[int, TOKENS] = Field(16, gt=0, le=10**6, description="shards whose rows are shuffled together")
    stripes: Annotated[int, TOKENS] = Field(
        1, gt=0, le=10**6, description="parts of the data; a node downloads only those that its ranks read"
    )
    tail: Annotated[Literal["drop", "pad"], TOKENS] = Field(
        "drop", description="samples that fill no batch at the end of an epoch"
    )
    cache: Annotated[LocalPath | None, TOKENS] = Field(
        None, description="folder on a local disk for shards from s3://, shared by a host's ranks"
    )
    cache_gib: Annotated[float, TOKENS] = Field(200, gt=0, le=2**30, description="size that the cache may have")
    on_bad_shard: Annotated[Literal["stop", "quarantine"], TOKENS] = Field(
        "stop", description="what a shard does that stays damaged: end the run, or its rows count with weight 0"
    )
    patience: Annotated[float, TOKENS] = Field(
        600, ge=0, le=_YEAR, description="seconds for which a store that does not answer is tried again"
    )


class TokenizerSection(Settings):
    sizes: Annotated[TokenizerConfig, ALL] = Field(
        TokenizerConfig(), description="sizes; `size: published|demo|tiny` takes a named one"
    )
    weights: Annotated[LocalPath | None, UsedBy("tokenizer", "mage", "addp")] = Field(
        None,
        description="weights file, ours or an official one: what a tokenizer run begins with, addp's frozen tokenizer, "
        "and what `addp data preview` decodes by",
    )


class TransformerSection(Settings):
    sizes: TransformerConfig = Field(
        TransformerConfig(), description="sizes; `size: base|large|demo|tiny` takes a named one"
    )
    weights: LocalPath | None = Field(
        None,
        description="weights file, ours or an official one: what a run of this network begins with, or what another "
        "objective takes of it",
    )


class ClassifierSection(Settings):
    method: Literal["finetune", "linear"] = Field(
        "finetune", description="train everything from addp.weights (null: from scratch), or a linear head only"
    )
    tokenizer_norm: bool = Field(False, description="finetune: keep the norm that the reference leaves out")
    layer_decay: float = Field(0.65, gt=0, le=1, description="finetune: learning rate of a block over the next one's")
    drop_path: float = Field(0.1, ge=0, lt=1, description="finetune: stochastic depth of the last block")
    dropout: float = Field(0.0, ge=0, lt=1, description="in place of addp.sizes.dropout")


class AugmentationSection(Settings):
    randaugment: int = Field(9, ge=0, lt=30, description="magnitude; 0: none")
    operations: int = Field(2, ge=1, le=100, description="operations that RandAugment draws")
    erasing: float = Field(0.25, ge=0, le=1, description="share of the pictures with a random rectangle erased")
    mixup: float = Field(0.8, ge=0, le=1000, description="alpha of mixup; 0: none")
    cutmix: float = Field(1.0, ge=0, le=1000, description="alpha of cutmix; 0: none")


class BatchSection(Settings):
    global_batch: int = Field(4096, gt=0, le=LARGEST_BATCH, description="samples of one optimizer step over all ranks")
    micro: int = Field(64, gt=0, le=LARGEST_BATCH, description="samples of one forward pass on a rank")


class OptimizerSection(Settings):
    name: Literal["adamw", "lamb", "lars"] = Field("adamw", description="LAMB and LARS are layer-wise in every stage")
    kernel: Literal["auto", "torch", "apex"] = Field("auto", description="auto takes NVIDIA apex's where it fits")
    base_lr: float = Field(
        1e-4, gt=0, le=100, description="learning rate for a batch of 256; lr = base_lr * global_batch / 256"
    )
    betas: tuple[_Beta, _Beta] = Field((0.9, 0.95), description="moment decays; LARS takes the first as momentum")
    eps: float = Field(1e-8, ge=1e-30, le=1, description="added to the root of the second moment (adamw, lamb)")
    trust: float = Field(0.001, gt=0, le=100, description="LARS: step length of a layer over the length of its weights")
    weight_decay: float = Field(
        0.05, ge=0, le=100, description="on tensors of two or more dimensions that are no biases"
    )
    clip: float = Field(3.0, ge=0, le=1e9, description="largest gradient norm; 0 does not clip")


class ScheduleSection(Settings):
    unit: Literal["epochs", "steps"] = Field("epochs", description="what `total` and `warmup` count")
    total: float = Field(1600, gt=0, le=_MOST_STEPS, description="length of the run")
    warmup: float = Field(40, ge=0, le=_MOST_STEPS, description="linear warm-up, then half a cosine to 0")


class CheckpointSection(Settings):
    every: int = Field(1000, gt=0, le=_MOST_STEPS, description="steps between checkpoints")
    keep: int = Field(3, gt=0, le=_MOST_STEPS, description="newest checkpoints kept")
    permanent_every: int = Field(
        0, ge=0, le=_MOST_STEPS, description="checkpoints at multiples of it are kept for good; 0: none"
    )
    asynchronous: bool = Field(True, description="write files while training goes on; needs their size in host memory")
    upload: Place | None = Field(None, description="s3://bucket/prefix (or a folder) that each checkpoint is copied to")
    patience: float = Field(
        600, ge=0, le=_YEAR, description="seconds for which an upload is tried again, and the end of a run waits"
    )
    lease: float = Field(
        60,
        ge=0.1,
        le=_YEAR,
        description="seconds without a sign of life after which another machine's hold on `upload` is void",
    )


class ResumeSection(Settings):
    allow: tuple[str, ...] = Field(
        (), description="keys (or sections) that may differ from the checkpoint's although they change the optimisation"
    )


class HealthSection(Settings):
    spikes: Literal["ignore", "log", "rewind"] = Field("log", description="what a spike of loss or gradient norm does")
    loss_deviations: float = Field(
        8.0, gt=0, le=1e6, description="a spike: loss above the median by so many deviations"
    )
    norm_factor: float = Field(10.0, gt=1, le=1e6, description="a spike: gradient norm above so many times the median")
    consecutive: int = Field(3, gt=0, le=10**6, description="steps in a row that make a spike")
    history: int = Field(
        256, ge=8, le=10**6, description="steps of the running statistics; nothing is judged before half of it"
    )
    skip: int = Field(
        0, ge=0, le=_MOST_STEPS, description="steps of data left out beyond the spike's own after a rewind"
    )
    rewinds: int = Field(3, ge=0, le=10**6, description="rewinds before the run stops as diverged (exit code 77)")
    skips: int = Field(
        100, gt=0, le=_MOST_STEPS, description="non-finite steps in a row before the run stops as diverged"
    )
    hang: float = Field(
        1800, ge=0, le=_YEAR, description="seconds without progress before a rank exits with 76; 0: never"
    )


class RunConfig(Settings):
    """One training run."""

    objective: Annotated[Objective, ALL] = Field(
        "addp",
        description="what is trained: VQ tokenizer, token predictor (MAGE), ADDP, or a classifier on its encoder",
    )
    run: Annotated[Path, BeforeValidator(_named), ALL] = Field(
        Path("runs/unnamed"), description="run folder: checkpoints, metrics, resolved configuration"
    )
    seed: Annotated[Seed, ALL] = Field(0, description="all randomness is keyed by it")
    data: DataSection = DataSection()
    tokenizer: TokenizerSection = TokenizerSection()
    predictor: Annotated[TransformerSection, TOKENS] = TransformerSection()
    addp: Annotated[TransformerSection, UsedBy("addp", "classify")] = TransformerSection()
    classifier: Annotated[ClassifierSection, UsedBy("classify")] = ClassifierSection()
    augmentation: Annotated[AugmentationSection, UsedBy("classify")] = AugmentationSection()
    tokenizer_loss: Annotated[TokenizerLossConfig, UsedBy("tokenizer")] = TokenizerLossConfig()
    mask_ratio_scope: Annotated[Literal["step", "micro"], TOKENS] = Field(
        "step", description="what shares a mask ratio: all samples of a step, or of a micro batch as published"
    )
    label_smoothing: Annotated[float, UsedBy("mage", "addp", "classify")] = Field(
        0.1, ge=0, lt=1, description="over the vocabulary, or over classes"
    )
    output_bias: Annotated[Literal["zeros", "frequencies"], TOKENS] = Field(
        "zeros",
        description="start of a fresh network's output bias: zeros as published, or the log frequencies of the codes "
        "in the data",
    )
    batch: Annotated[BatchSection, ALL] = BatchSection()
    optimizer: Annotated[OptimizerSection, ALL] = OptimizerSection()
    schedule: Annotated[ScheduleSection, ALL] = ScheduleSection()
    precision: Annotated[Precision, ALL] = Field(
        "bf16",
        description="of the whole network, with float32 master weights in the optimizer (fp16 also scales the loss); "
        "bf16-mixed: of its products only",
    )
    zero_stage: Annotated[Literal[0, 1, 2, 3], ALL] = Field(
        1, description="DeepSpeed ZeRO stage; bf16 and fp16 need 1 or more"
    )
    offload: Annotated[Literal["none", "optimizer", "parameters"], ALL] = Field(
        "none", description="what lies in CPU memory: the optimizer (stages 1 to 3), also the parameters (stage 3)"
    )
    recompute_every: Annotated[int, UsedBy("mage", "addp", "classify")] = Field(
        0, ge=0, le=1000, description="activation checkpointing of each n-th transformer block; 0: none"
    )
    ema_decay: Annotated[float | None, ALL] = Field(
        None, gt=0, lt=1, description="average of the weights, saved beside them; null: none"
    )
    deterministic: Annotated[bool, ALL] = Field(False, description="only deterministic kernels; slower on CUDA")
    checkpoint: Annotated[CheckpointSection, ALL] = CheckpointSection()
    resume: Annotated[ResumeSection, ALL] = ResumeSection()
    health: Annotated[HealthSection, ALL] = HealthSection()
    expect_ranks: Annotated[int | None, ALL] = Field(
        None,
        gt=0,
        le=MOST_RANKS,
        description="ranks that the launcher has to start, or the run is refused; null: any number",
    )
    collective_timeout: Annotated[float, ALL] = Field(
        2400, gt=0, lt=10**7,
        description="seconds that a rank waits for the others in one exchange before it ends; above health.hang",
    )  # fmt: skip
    log_every: Annotated[int, ALL] = Field(20, gt=0, le=_MOST_STEPS, description="steps between metric lines")
    wandb: Annotated[str | None, ALL] = Field(
        None,
        pattern=r"^[^\s/\\#?%:]{1,128}$",
        description="project of Weights & Biases to log to as well (extra `wandb`)",
    )

    @property
    def learning_rate(self) -> float:
        return self.optimizer.base_lr * self.batch.global_batch / 256

    @property
    def geometry(self) -> Geometry:
        return Geometry.of(self.tokenizer.sizes)

    @property
    def depends_on_micro(self) -> bool:
        """Whether `batch.micro` changes more than rounding: where something is drawn for a whole micro batch
        (dropout, augmentation, a mask ratio) or averaged over one (a codebook's usage, a BatchNorm, losses of which
        some rows do not count)."""
        if self.objective in ("tokenizer", "classify"):
            return True
        sizes = self.predictor.sizes if self.objective == "mage" else self.addp.sizes
        return (
            sizes.dropout > 0
            or self.mask_ratio_scope == "micro"
            or self.data.tail == "pad"
            or self.data.on_bad_shard == "quarantine"
        )


def load_config(
    path: Path | str | None, overrides: list[str] | tuple[str, ...] = (), *, resolved: bool = False
) -> RunConfig:
    """What a user configures; resolved: what a run wrote down, maybe of an earlier version.

    Raises ConfigError that names the file or argument, the key and, for unknown ones, the nearest known key, and for
    keys that the objective does not use (not of resolved ones); and StorageError for a url that is none."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            content = read_file(path, _LARGEST_FILE, ConfigError)
        except FileNotFoundError as error:
            raise ConfigError(f"there is no configuration file {path}") from error
        values = parse_yaml(content, str(path), ConfigError) or {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__}, not a mapping of keys to values")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"{show(override)} is no override; write key=value, as in batch.micro=32")
        _set(values, _parts(key, override), parse_yaml(value, show(override), ConfigError), override)
    source = str(path or "the command line")
    config = checked_config(values, source)
    if not resolved:
        refuse_unused(config, config.objective, source)
    return config


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
    _check_places(config)
    schedule = config.schedule
    if schedule.warmup >= schedule.total:
        raise ConfigError(
            f"schedule.warmup = {schedule.warmup:g} {schedule.unit} is not shorter than schedule.total = "
            f"{schedule.total:g}: the learning rate would never fall; lower one, or raise the other"
        )
    if config.zero_stage < MODES[config.precision].least_stage:
        others = [name for name, mode in MODES.items() if mode.least_stage == 0]
        raise ConfigError(
            f"precision = {config.precision} with zero_stage = {config.zero_stage} trains wrongly in DeepSpeed; use "
            f"zero_stage = {MODES[config.precision].least_stage}, or {' or '.join(others)}"
        )
    least = {"none": 0, "optimizer": 1, "parameters": 3}[config.offload]
    if config.zero_stage < least:
        raise ConfigError(f"offload = {config.offload} needs zero_stage = {least} or more, not {config.zero_stage}")
    if config.collective_timeout <= config.health.hang:
        raise ConfigError(
            f"collective_timeout = {config.collective_timeout:g} is not above health.hang = {config.health.hang:g}: "
            "ranks would give up another that may still be at work; make health.hang shorter (0: no watchdog), or "
            "collective_timeout longer"
        )
    permanent, every = config.checkpoint.permanent_every, config.checkpoint.every
    if permanent % every:
        raise ConfigError(
            f"checkpoint.permanent_every = {permanent} is no multiple of checkpoint.every = {every}; "
            f"{permanent // every * every or every} or {(permanent // every + 1) * every} would be"
        )


def _check_places(config: RunConfig) -> None:
    """Raises ConfigError where a file is in the way, and where a run would write into what it reads or copies."""
    upload, pictures = config.checkpoint.upload, config.data.pictures
    for key, place in (("run", config.run), ("data.cache", config.data.cache), ("checkpoint.upload", upload)):
        if place is not None and not is_remote(place) and os.access(place, os.F_OK) and not Path(place).is_dir():
            raise ConfigError(f"{key} = {place} is a file; name a folder")
    if upload is not None and not is_remote(upload) and is_within(upload, config.run):
        raise ConfigError(
            f"checkpoint.upload = {upload} is the run's own folder {config.run}, or in it; name one that outlives it"
        )
    if pictures is not None:
        check_apart(config.run, pictures, "run")


def _parts(key: str, override: str) -> list[str]:
    parts = key.split(".")
    if len(parts) > _DEEPEST_KEY or any(not part or part != part.strip() for part in parts):
        raise ConfigError(f"{show(override)} names no key before the =; write key=value, as in batch.micro=32")
    return parts


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{show(override)}: {show(key)} is a value, not a section")
    values[keys[-1]] = value


def _explain(error: ValidationError, source: str) -> str:
    found = error.errors(include_url=False)
    problems = [_problem(item) for item in found[:_MOST_TOLD]]
    more = len(found) - len(problems)
    return f"in {source}: " + "; ".join(problems) + (f"; and {more} more" if more else "")


def _problem(item: ErrorDetails) -> str:
    location = [str(part) for part in item["loc"]]
    name = ".".join(part if re.fullmatch(r"\w{1,64}", part) else show(part) for part in location)
    if item["type"] == "extra_forbidden":
        known = list(_model_at(location[:-1]).model_fields)
        near = difflib.get_close_matches(location[-1][:_LONGEST_KEY], known, n=1, cutoff=0)
        return f"unknown key {name}; the nearest known one is {'.'.join([*location[:-1], *near])}"
    return f"{name or 'configuration'}: {item['msg'].removeprefix('Value error, ')} (got {show(item['input'])})"


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
            meaning = f"{field.description or ''}{_users(field)}".lstrip()
            lines.append(f"{indent}{name}:" + (f"  # {meaning}" if meaning else ""))
            _document(value, lines, indent + "  ")
        else:
            dumped = yaml.safe_dump(section.model_dump(mode="json")[name], default_flow_style=True).split("\n")[0]
            lines.append(f"{indent}{name}: {dumped}  # {field.description}{_choices(field.annotation)}{_users(field)}")


def _users(field: FieldInfo) -> str:
    stated = statement(field)
    return "" if stated in (None, ALL) else f" (used by {', '.join(stated.objectives)})"


def _choices(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = get_args(annotation)[0]
    return f" ({' | '.join(map(str, get_args(annotation)))})" if get_origin(annotation) is Literal else ""
