"""Configurations and overrides: YAML that means harm, impossible numbers, unknown keys."""

from __future__ import annotations

from tests.hostile.case import Case, text_file

_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
)


def _file(name: str, content: str | bytes, *says: str) -> Case:
    return Case(
        name, ("config", "run.yaml"), says=says, code=78, make=text_file("run.yaml", content)
    )


def _key(name: str, override: str, *says: str) -> Case:
    return Case(name, ("config", override), says=says or (override.partition("=")[0],), code=78)


def _file_there(name: str, override: str, *says: str) -> Case:
    return Case(name, ("config", override), says=says, code=78, make=text_file("file", "x"))


CASES = [
    _file("an alias bomb in a run file", _BOMB, "line 1", "aliases"),
    _file("a run file in UTF-16", "seed: 1\n".encode("utf-16"), "run.yaml"),
    _file("a run file in Latin-1", "# \u00e9\nseed: 1\n".encode("latin-1"), "run.yaml", "UTF-8"),
    _file(
        "a section that stands twice", "batch: {micro: 1}\nbatch: {micro: 2}\n", "batch", "twice"
    ),
    _file(
        "a key that stands twice in a section", "batch: {micro: 1, micro: 2}\n", "micro", "twice"
    ),
    _file(
        "a tag that runs code",
        "run: !!python/object/apply:os.system [touch ../outside/x]\n",
        "line 1",
        "tag",
    ),
    _file("a tag of our own", "seed: !int 3\n", "line 1", "tag"),
    _file("a merge of a mapping that is none", "<<: 3\n", "run.yaml"),
    _file("nesting without an end", "seed: " + "[" * 100_000, "line 1", "deeper"),
    _file("mappings in mappings", "a: {" * 500, "deeper"),
    _file("an integer of 5,000 digits", "seed: " + "9" * 5000, "line 1", "digits"),
    _file("a hexadecimal integer of 5,000 digits", "seed: 0x" + "f" * 5000, "line 1", "digits"),
    _file(
        "a thousand unknown keys",
        "".join(f"k{i}: 1\n" for i in range(1000)),
        "unknown key k0",
        "more",
    ),
    _file("a run file that is a list", "- seed\n", "list"),
    _file("a run file that is a word", "seed\n", "run.yaml"),
    _file("two documents in a run file", "seed: 1\n---\nseed: 2\n", "run.yaml", "line"),
    _file("control characters in a run file", "seed: 1\x00\n", "run.yaml"),
    _file("a key that is a list", "[a, b]: 1\n", "line 1", "no key"),
    _file("a key that is null", "null: 1\n", "run.yaml"),
    _file("a date that is none", "seed: 2020-13-45\n", "run.yaml"),
    _file("a date where a number is meant", "seed: 2020-10-10\n", "seed"),
    _file("a section that is a number", "batch: 3\n", "batch"),
    _file("a section that is empty", "batch:\n", "batch"),
    _file("an unfinished quote", "run: 'runs/x\n", "line"),
    _file("a tab as indentation", "batch:\n\tmicro: 1\n", "line 2"),
    _file("a key of 90,000 letters", "? " + "k" * 90_000 + "\n: 1\n", "unknown key"),
    _file(
        "a key that has another name now",
        "health: {skips: 3}\n",
        "health.skips is called health.max_nonfinite_steps now",
    ),
    _key("an override of a key that has another name now", "data.pictures=x", "data.images now"),
    _key("a permission for a key of old", "resume.allow=[data.patience]", "data.retry_seconds now"),
    _key("an infinite learning rate", "optimizer.base_lr=.inf"),
    _key("a learning rate that overflows", "optimizer.base_lr=1e30"),
    _key("a learning rate that is true", "optimizer.base_lr=true"),
    _key("a moment decay that is one", "optimizer.betas=[0.9, 1.0]"),
    _key("one moment decay", "optimizer.betas=0.9"),
    _key("a warm-up longer than the run", "schedule.warmup=2000", "schedule.warmup = 2000 epochs"),
    _key("a warm-up as long as the run", "schedule.warmup=1600", "schedule.warmup = 1600 epochs"),
    _key("a run of no length", "schedule.total=0"),
    _key("no blocks", "addp.sizes.depth=0"),
    _key("fewer than no blocks", "predictor.sizes.depth=-1"),
    _key("10^30 blocks", "addp.sizes.depth=1" + "0" * 30),
    _key("a width of 2^60", "addp.sizes.dim=1152921504606846976"),
    _key("a codebook that its ids cannot name", "tokenizer.sizes.codebook_size=70000"),
    _key(
        "a hundred levels of a tokenizer",
        f"tokenizer.sizes.channel_multipliers={[1] * 100}",
        "tokenizer.sizes.channel_multipliers",
    ),
    _key("a global batch that is a loop of hours", "batch.global_batch=1000000000000000000"),
    _key("a global batch that is no number", "batch.global_batch=.nan"),
    _key("a micro batch that is a list", "batch.micro=[1]"),
    *(
        _key(f"{name} of nothing or less", f"{name}={value}")
        for name, value in {
            "batch.global_batch": 0,
            "batch.micro": -4,
            "addp.sizes.heads": 0,
            "tokenizer.sizes.norm_groups": 0,
            "tokenizer.sizes.channels": 0,
            "log_every": 0,
            "health.history": 0,
            "data.views.size": 0,
            "schedule.total": -1,
            "collective_timeout": 0,
            "checkpoint.keep": 0,
            "data.window": 0,
            "optimizer.base_lr": -1,
            "ema_decay": 1,
        }.items()
    ),
    _key("a mixture with a negative weight", "data.mixture={a: 2, b: -1}", "data.mixture"),
    _key("a mixture with a weight that is no number", "data.mixture={a: .nan}", "data.mixture"),
    _key("a mixture of nothing", "data.mixture={a: 0, b: 0}", "data.mixture"),
    _key("crops that are larger than an image", "data.views.scale=[0.2, 20]", "data.views.scale"),
    _key("an hour that is infinite", "health.hang=.inf"),
    _key("a list where a path is meant", "run=[a]"),
    _key("a list that does not end", "run=[", "'run=['", "line 1"),
    _key("a run without a name", "run="),
    _key("a run with an empty name", "run=''"),
    _key("a run with a line in its name", 'run="a\\nb"'),
    _key("a name that YAML keeps for itself", "wandb=@x", "wandb=@x"),
    _key("a name that is a path", "wandb=../../x"),
    _key("an override without a key", "=x", "=x"),
    _key("an override of a key of spaces", "  =x", "names no key"),
    _key("an override of a key with spaces", "batch micro=1", "unknown key"),
    _key("an override of what is in no section", "a.b.c.d=1", "unknown key a"),
    _key("an override of what is in a value", "batch.micro.x=1", "batch.micro"),
    _key("an override of 50,000 sections", "a." * 50_000 + "a=1", "names no key"),
    _key("an override with an alias bomb", "run=[&a [x, x], *a]", "aliases"),
    _key(
        "an upload onto the run's own folder", "checkpoint.upload=runs/unnamed", "checkpoint.upload"
    ),
    _key(
        "an upload into the run's own folder",
        "checkpoint.upload=runs/unnamed/checkpoints",
        "checkpoint.upload",
    ),
    _key("a run among its images", "data.images=runs", "run = "),
    _key("a permission for what is no key", "resume.allow=[everything]", "everything"),
    _file_there("a cache that is a file", "data.cache=file", "data.cache", "name a folder"),
    _file_there(
        "an upload to a file", "checkpoint.upload=file", "checkpoint.upload", "name a folder"
    ),
    _file_there("a run that is a file", "run=file", "run = ", "name a folder"),
    Case("a store that is none", ("config", "data.tokens=gs://bucket/x"), ("scheme",), 74),
]
