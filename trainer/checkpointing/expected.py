"""Which run wants to go on, and whether a checkpoint is one of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

from model.documents import show
from model.errors import ConfigError
from trainer.checkpointing.format import Manifest
from trainer.config.changes import Change, changes, forbidden
from trainer.config.schema import RunConfig
from trainer.run_folder import RunFolder


class Expected(NamedTuple):
    """The run that wants to go on.

    run_identity: what a checkpoint must share. run: its id. before: the configuration of the
    folder's last start, as JSON; {} where there was none.
    """

    run_identity: dict[str, Any]
    run: str
    config: RunConfig
    before: dict[str, Any]

    def check(self, manifest: Manifest, name: str) -> list[Change]:
        """What has changed in the configuration since that checkpoint. Raises ConfigError where it
        is another run's, or where a key that changes the optimisation has changed and is not
        allowed. name: of the checkpoint, for messages."""
        self._check_identity(manifest, name)
        changed = changes(manifest.config or self.before, self.config)
        # What the folder's last start had already is not new: it was allowed then, and stays so
        # where a checkpoint from before that start has to do.
        new = {change.key for change in changes(self.before or manifest.config, self.config)}
        free = () if self.config.depends_on_micro else ("batch.micro",)
        allowed = (*self.config.resume.allow, *free)
        bad = [change for change in forbidden(changed, allowed) if change.key in new]
        if bad:
            allow = ",".join(sorted({*self.config.resume.allow, *(c.key for c in bad)}))
            raise ConfigError(
                f"the configuration differs from that of {name} in what changes the optimisation: "
                f"{'; '.join(map(str, bad))}. To go on with it, add 'resume.allow=[{allow}]'; else "
                "use the configuration of before, or another run folder (and another "
                "checkpoint.upload)"
            )
        return changed

    def _check_identity(self, manifest: Manifest, name: str) -> None:
        saved = manifest.run_identity
        if not saved.get("data"):  # earlier versions did not say on which images a tokenizer trains
            saved = {**saved, "data": self.run_identity.get("data")}
        different = [
            difference
            for key, value in self.run_identity.items()
            for difference in _differences(key, _lasting(saved.get(key)), _lasting(value))
        ]
        if manifest.run and manifest.run != self.run:
            different.append(f"run: checkpoint {manifest.run}, now {self.run}")
        if different:
            raise ConfigError(
                f"{name} belongs to another run than the configured one ({'; '.join(different)}); "
                "use that configuration, or another run folder"
            )


def _lasting(value: Any) -> Any:
    """What no run may change of an entry of its identity. The dropout may change, with
    `resume.allow`, and how positions started no longer matters."""
    if isinstance(value, dict):
        return {k: _lasting(v) for k, v in value.items() if k not in ("dropout", "positions")}
    return value


def _differences(key: str, before: Any, now: Any) -> list[str]:
    """Say what differs, of a mapping by the names in it: a network may have a thousand classes."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for name in dict.fromkeys([*before, *now])
            for difference in _differences(f"{key}: {name}", before.get(name), now.get(name))
        ]
    return [] if before == now else [f"{key}: checkpoint {show(before)}, now {show(now)}"]


def last_config(folder: RunFolder) -> dict[str, Any]:
    """The resolved configuration of the folder's last start, as JSON; {} where there is none that
    can be read."""
    try:
        config = yaml.safe_load((folder.path / "config.resolved.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}
