"""The launch backends by name: one file each, and one line each in this table."""

from __future__ import annotations

from cluster.launch.backend import LaunchBackend
from cluster.launch.backends.deepspeed import DeepSpeedBackend
from cluster.launch.backends.kubernetes import KubernetesBackend
from cluster.launch.backends.local import LocalBackend
from cluster.launch.backends.slurm import SlurmBackend
from cluster.launch.backends.torchrun import TorchrunBackend

BACKENDS: dict[str, LaunchBackend] = {
    "local": LocalBackend(),
    "deepspeed": DeepSpeedBackend(),
    "torchrun": TorchrunBackend(),
    "slurm": SlurmBackend(),
    "kubernetes": KubernetesBackend(),
}
