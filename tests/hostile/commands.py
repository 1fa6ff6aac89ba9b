"""Commands: numbers that cannot be, outputs that cannot be written, devices that are none, words in
any order."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from data_pipeline.storage import LocalStore
from tests.hostile.case import Case, text_file
from tests.hostile.weights import run_folder
from tests.token_sets import write_tokens
from trainer.config.reading import load_config

_HUGE = "1" + "0" * 30


def _usage(name: str, *command: str, says: str = "") -> Case:
    """An option's value that is out of its range: the command-line library names the option, which
    is the last but one word unless said otherwise."""
    return Case(name, command, says=(says or command[-2],), code=2)


def _run_folder(folder: Path) -> None:
    """An ADDP run that has just begun."""
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    config = load_config(None, [f"run={run}", "addp.sizes.size=tiny", "tokenizer.sizes.size=tiny"])
    (run / "config.resolved.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))


def _tokens(folder: Path) -> None:
    write_tokens(LocalStore(folder / "tokens"), [4, 4])


def _images(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        (folder / "images" / name / "1.png").write_bytes(b"no image")


def _parity(folder: Path) -> None:
    (folder / "folder").mkdir()
    (folder / "folder" / "meta.json").write_text("{}")


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "file")


_FILE = text_file("file", "x")
_SMALL = ("--global-batch", "4")
_PLAN = ("tokenize", "plan", "images", "out", "--tokenizer", "none")

_NUMBERS = [
    _usage("plan for no GPU", "plan", "--gpus", "0"),
    _usage("plan for a negative number of GPUs", "plan", "--gpus", "-1"),
    _usage(
        "plan for one possible and one impossible number", "plan", "--gpus", "8", "--gpus", _HUGE
    ),
    _usage("plan for GPUs of a number too long to read", "plan", "--gpus", "9" * 5000),
    _usage("plan for a fraction of a GPU", "plan", "--gpus", "0.5"),
    _usage("plan for too many images", "plan", "--images", _HUGE),
    _usage("plan at a rate that is no number", "plan", "--mfu", "nan"),
    _usage("plan at an infinite speed of writing", "plan", "--write", "inf"),
    _usage("plan with a negative grace", "plan", "--grace", "-1"),
    _usage("plan with a grace that is no number", "plan", "--grace", "nan"),
    _usage("check for no GPU", "check", "--gpus", "0"),
    _usage("emoji without pixels", "openmoji", "out", "--size", "0"),
    _usage("emoji of negative pixels", "openmoji", "out", "--size", "-64"),
    _usage("emoji as large as a city", "openmoji", "out", "--size", "1000000"),
    _usage("no scenes", "scenes", "out", "--scenes", "0"),
    _usage("a billion held-out scenes", "scenes", "out", "--held-out", "1000000000"),
    _usage("scenes smaller than an emoji", "scenes", "out", "--size", "8"),
    _usage("scenes made by no process", "scenes", "out", "--processes", "0"),
    Case(
        "scenes of unknown things",
        ("scenes", "out", "--classes", "flags,hats"),
        ("--classes", "'hats'", "animals-nature"),
        78,
    ),
    _usage("crops larger than the image", *_PLAN, "--min-scale", "20"),
    _usage("crops of nothing", *_PLAN, "--min-scale", "0"),
    _usage("crops of a size that is no number", *_PLAN, "--min-scale", "nan"),
    _usage("seven times the images held out", *_PLAN, "--held-out", "7"),
    _usage("a negative share held out", *_PLAN, "--held-out", "-0.1"),
    _usage("no views", *_PLAN, "--views", "0"),
    _usage("more views than memory", *_PLAN, "--views", _HUGE),
    _usage("shards without rows", *_PLAN, "--rows", "0"),
    _usage("shards of all rows of the world", *_PLAN, "--rows", _HUGE),
    _usage("a seed of more than 64 bits", *_PLAN, "--seed", _HUGE),
    _usage(
        "a job of a billion threads",
        "tokenize",
        "run",
        "out",
        "--tokenizer",
        "x",
        "--threads",
        "1000000000",
    ),
    _usage(
        "a job in batches of nothing", "tokenize", "run", "out", "--tokenizer", "x", "--batch", "0"
    ),
    _usage("a share of bad images over one", "tokenize", "finalize", "out", "--bad-limit", "1.5"),
    _usage("a look each nan seconds", "tokenize", "status", "out", "--every", "nan"),
    _usage("an inspection of endless rows", "tokenize", "inspect", "out", "--rows", _HUGE),
    _usage("an image of no rows of a data set", "tokenize", "inspect", "out", "--rows", "0"),
    _usage("a measurement that never ends", "data", "bench", "tokens", "--seconds", "inf"),
    _usage("a global batch of 10^30", "data", "bench", "tokens", "--global-batch", _HUGE),
    _usage("a negative step", "data", "order", "tokens", "--step", "-1"),
    _usage("an order of 10^30 samples", "data", "order", "tokens", "--step", "1", "--count", _HUGE),
    _usage("a preview larger than memory", "data", "preview", "tokens", "--zoom", "1000000"),
    _usage("a network of no images", "generate", "run", "--count", "0"),
    _usage("10^30 images", "generate", "run", "--count", _HUGE),
    _usage("a grid of a million images", "generate", "run", "--count", "1000000"),
    _usage("images of 10^30 steps", "generate", "run", "--steps", _HUGE),
    _usage("a temperature that is no number", "generate", "run", "--choice-temperature", "nan"),
    _usage("a nucleus of nothing", "generate", "run", "--top-p", "0"),
    _usage("a negative checkpoint", "generate", "run", "--checkpoint", "-1"),
    _usage("an evaluation that holds out too much", "evaluate", "run", "--held-out", "7"),
    _usage("an evaluation with a lease that is no number", "evaluate", "run", "--lease", "nan"),
    _usage("an evaluation in batches of 10^30", "evaluate", "run", "--batch", _HUGE),
    _usage("an import with no heads", "import", "file", "out", "--heads", "0"),
    _usage("an import with 10^30 heads", "import", "file", "out", "--heads", _HUGE),
    _usage("an export of a negative step", "export", "run", "out", "--step", "-3"),
    _usage("a training of a billion processes", "train", "run.yaml", "--processes", "1000000000"),
    _usage("a demo of no length", "demo", "--scale", "0"),
    _usage("a demo of endless length", "demo", "--scale", "inf"),
    _usage("a demo of no processes", "demo", "--processes", "0"),
    _usage("checkpoints of which none is kept", "checkpoints", "run", "prune", "--keep", "0"),
    _usage("a training without a configuration", "train", "seed=1", says="run file"),
    Case(
        "a plan of more samples than an epoch has",
        ("plan", "batch.global_batch=16777216"),
        ("global_batch",),
        78,
    ),
    Case("a plan of steps without end", ("plan", "schedule.total=1e300"), ("schedule.total",), 78),
    Case(
        "a plan of a batch that takes hours to divide",
        ("plan", "batch.global_batch=1000000000000000000"),
        ("batch.global_batch",),
        78,
    ),
    Case(
        "a plan on more GPUs than samples",
        ("plan", "--gpus", "1000000"),
        ("batch.global_batch",),
        78,
    ),
    Case("a plan on a device that is no number", ("plan", "--device", "nan"), ("--device",), 78),
    Case("a plan on a device that does nothing", ("plan", "--device", "0"), ("--device",), 78),
    Case("a plan on an infinite device", ("plan", "--device", "inf"), ("--device",), 78),
    Case(
        "a job of a part that is none",
        ("tokenize", "run", "tokens", "--tokenizer", "x", "--shards", "3/2"),
        (),
        (1, 74, 78),
        _tokens,
    ),
    Case(
        "samples beyond the batch",
        ("data", "order", "tokens", "--step", "0", "--global-batch", "4", "--count", "5"),
        ("--count",),
        78,
        _tokens,
    ),
    Case(
        "a batch larger than the data set",
        ("data", "bench", "tokens"),
        ("global_batch = 1024",),
        78,
        _tokens,
    ),
    Case(
        "a step in the far future",
        ("data", "order", "tokens", "--step", "999999999999", "--global-batch", "4"),
        ("shard",),
        0,
        _tokens,
    ),
    Case(
        "stripes of more than there are shards",
        ("data", "order", "tokens", "--step", "0", "--global-batch", "4", "--stripes", "4"),
        (),
        (1, 78),
        _tokens,
    ),
]

_OUTPUTS = [
    Case(
        "a grid as a text file",
        ("generate", "run", "--out", "grid.txt"),
        ("grid.txt", ".png"),
        78,
        _run_folder,
    ),
    Case(
        "a grid in a folder that is a file",
        ("generate", "run", "--out", "file/grid.png"),
        ("file",),
        78,
        _FILE,
    ),
    Case("a set where a file is", ("generate", "run", "--into", "file"), ("file",), 78, _FILE),
    Case(
        "a report as an image",
        ("report", "run", "--out", "page.png"),
        ("page.png", ".html"),
        78,
        _run_folder,
    ),
    Case(
        "a report in a folder that is a file",
        ("report", "run", "--out", "file/page.html"),
        ("file",),
        78,
        _FILE,
    ),
    Case(
        "a training in a folder that is a file",
        ("train", "run.yaml", "run=run.yaml/x"),
        ("is a file",),
        78,
        text_file("run.yaml", "seed: 1\n"),
    ),
    Case(
        "an export of an unknown suffix",
        ("export", "run", "out.xyz", "--format", "timm"),
        (".safetensors",),
        78,
    ),
    Case("an export into a file", ("export", "run", "file"), ("file",), 78, _FILE),
    Case("an import into a file", ("import", "none.pth", "file"), ("file",), 78, _FILE),
    Case("emoji into a file", ("openmoji", "file"), ("file",), 78, _FILE),
    Case("scenes into a file", ("scenes", "file"), ("file",), 78, _FILE),
    Case(
        "scenes among other things", ("scenes", "images"), ("images", "something else"), 78, _images
    ),
    Case("a demo in a file", ("demo", "--out", "file"), ("file",), 78, _FILE),
    Case(
        "a demo among its images",
        ("demo", "--images", "images", "--out", "images/demo"),
        ("--out",),
        78,
        _images,
    ),
    Case(
        "a preview of an unknown suffix",
        ("data", "preview", "tokens", "--page", "page.exe"),
        ("page.exe",),
        78,
    ),
    Case(
        "an inspection of an unknown suffix",
        ("tokenize", "inspect", "tokens", "--page", "p"),
        (".png",),
        78,
    ),
    Case(
        "a plan into a file",
        ("tokenize", "plan", "images", "file", "--tokenizer", "x"),
        ("file",),
        78,
        _FILE,
    ),
    Case(
        "a plan among its images",
        ("tokenize", "plan", "images", "images/o", "--tokenizer", "x"),
        ("OUT",),
        78,
        _images,
    ),
    Case(
        "a plan over its images",
        ("tokenize", "plan", "images", "./images/a/..", "--tokenizer", "x"),
        ("OUT",),
        78,
        _images,
    ),
    Case(
        "a plan into the bucket of its images",
        ("tokenize", "plan", "s3://b/x", "s3://b/x/out", "--tokenizer", "x"),
        ("OUT",),
        78,
    ),
    Case(
        "an evaluation that works among the images",
        ("evaluate", "run", "--images", "images", "--work", "images/work"),
        ("--work",),
        78,
        _images,
    ),
    Case(
        "an evaluation that works in a file",
        ("evaluate", "run", "--work", "file"),
        ("file",),
        78,
        _FILE,
    ),
    Case(
        "an evaluation of nothing",
        ("evaluate", "run", "--suite", ","),
        ("--suite",),
        78,
        _run_folder,
    ),
    Case(
        "an evaluation of no such benchmark",
        ("evaluate", "run", "--suite", "a$x^$"),
        ("no such benchmark",),
        78,
        _run_folder,
    ),
]

_DEVICES = [
    Case(
        "a step on a device that is none",
        ("folder", "--device", "nan"),
        (),
        (1, 78),
        _parity,
        "model.parity",
    ),
    Case(
        "a hostfile that never ends",
        ("launch", "run.yaml", "--hostfile", "file"),
        ("file",),
        78,
        lambda folder: (text_file("run.yaml", "seed: 1\n")(folder), _fifo(folder))[0],
    ),
    Case(
        "a hostfile of zeros",
        ("launch", "run.yaml", "--hostfile", "/dev/zero"),
        ("/dev/zero",),
        78,
        text_file("run.yaml", "seed: 1\n"),
    ),
    Case(
        "an address that is a command",
        ("launch", "run.yaml", "--hostfile", "file", "--master-addr", "$(id)"),
        ("--master-addr",),
        78,
        lambda folder: (
            text_file("run.yaml", "seed: 1\n")(folder),
            text_file("file", "h slots=1\n")(folder),
        )[0],
    ),
]

# Files that options name: a FIFO would never end, and some stores are none.
_FILES = [
    Case(
        "a FIFO for the tokenizer of a plan",
        (*_PLAN[:-1], "file"),
        ("file",),
        (1, 78),
        lambda folder: (_images(folder), _fifo(folder))[0],
    ),
    Case(
        "a FIFO for the tokenizer of a preview",
        ("data", "preview", "tokens", "--tokenizer", "file", *_SMALL),
        ("file",),
        (1, 78),
        lambda folder: (_tokens(folder), _fifo(folder))[0],
    ),
    Case(
        "a FIFO for the tokenizer of a network",
        ("generate", "run", "--tokenizer", "file"),
        ("file",),
        (1, 78),
        lambda folder: (run_folder(folder), _fifo(folder))[0],
    ),
    Case(
        "a FIFO for Inception's weights",
        ("evaluate", "run", "--suite", "fid", "--inception-weights", "file"),
        ("--inception-weights",),
        78,
        lambda folder: (run_folder(folder), _fifo(folder))[0],
    ),
    Case(
        "an evaluation on images that are a FIFO",
        ("evaluate", "run", "--images", "file"),
        ("file",),
        (1, 74, 78),
        lambda folder: (run_folder(folder), _fifo(folder))[0],
    ),
    Case(
        "an evaluation of a step that is not there",
        ("evaluate", "run", "--checkpoint", "5", "--images", "x"),
        ("no checkpoint of step 5",),
        78,
        lambda folder: (run_folder(folder), _images(folder))[0],
    ),
    Case(
        "an export of a step that is not there",
        ("export", "run", "out", "--step", "5"),
        ("no checkpoint of step 5",),
        78,
        run_folder,
    ),
    Case(
        "an export to where nobody can write",
        ("export", "run", "/proc/out"),
        ("cannot be written",),
        74,
        run_folder,
    ),
    Case("an export of a FIFO", ("export", "file", "out"), ("file",), 78, _fifo),
    Case(
        "images at an address with a secret",
        (*_PLAN[:2], "s3://me:secret@b/x", *_PLAN[3:]),
        ("credentials",),
        74,
    ),
    Case("a store with one slash", ("tokenize", "verify", "s3:/b/x"), ("s3://bucket/prefix",), 74),
    Case(
        "a report on a store without a name",
        ("report", "s3://", "--out", "out.html"),
        ("s3://",),
        (74, 78),
    ),
]

# Words and options in any order: each of these is understood, and says what it says of the plain
# order.
_LATE = ("batch.micro=0", "--config", "run.yaml", "seed=1")
_ORDERS = [
    Case(
        f"an override before the file of {name}",
        (*command, *_LATE),
        ("batch.micro",),
        code,
        text_file("run.yaml", "seed: 2\n"),
        module,
    )
    for name, command, module, code in (
        ("config", ("config",), "cluster.cli", 78),
        ("plan", ("plan",), "cluster.cli", 78),
        ("train", ("train",), "cluster.cli", 78),
        ("pretrain", (), "trainer.pretrain", 78),
    )
]
_ORDERS += [
    Case(
        "a file after the override of pretrain",
        ("batch.micro=0", "run.yaml", "--local_rank=0"),
        ("batch.micro",),
        78,
        text_file("run.yaml", "seed: 2\n"),
        "trainer.pretrain",
    ),
    Case(
        "two files for pretrain",
        ("--config", "run.yaml", "run.yaml"),
        ("one run file only",),
        78,
        text_file("run.yaml", "seed: 2\n"),
        "trainer.pretrain",
    ),
    Case(
        "an option between the overrides of train",
        ("train", "batch.micro=0", "--processes", "2", "run.yaml", "seed=1"),
        ("batch.micro",),
        78,
        text_file("run.yaml", "seed: 2\n"),
    ),
    Case("a word of 100,000 letters", ("config", "x" * 100_000), ("neither a run file",), 78),
    Case("an override of 100,000 letters", ("config", "x" * 100_000 + "=1"), ("unknown key",), 78),
    Case(
        "a run file that never ends",
        ("config", "--config", "file"),
        ("no regular file",),
        78,
        _fifo,
    ),
    Case(
        "a run file that is a device", ("plan", "--config", "/dev/zero"), ("no regular file",), 78
    ),
    Case("a run file that is a folder", ("train", "--config", "."), ("no regular file",), 78),
    Case(
        "a run file of a gigabyte",
        ("config", "file"),
        ("MiB",),
        78,
        lambda folder: os.truncate(_touched(folder / "file"), 1 << 30),
    ),
    Case("an option that is none", ("train", "run.yaml", "--cofnig=x"), ("--cofnig",), 2),
]


def _touched(path: Path) -> Path:
    path.touch()
    return path


CASES = [*_NUMBERS, *_OUTPUTS, *_DEVICES, *_FILES, *_ORDERS]
