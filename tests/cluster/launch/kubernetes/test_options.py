"""What Kubernetes can be asked for: each option holds only what its place in a manifest may."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cluster.launch.kubernetes.options import KubernetesOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", "x y"),
        ("image", "-x"),
        ("image", "x\ny"),
        ("namespace", "A"),
        ("namespace", "a/b"),
        ("queue", "a b"),
        ("gpu", "nvidia.com/gpu: 8"),
        ("resource", ["cpu"]),
        ("resource", ["cpu=many"]),
        ("resource", ["cpu=-1"]),
        ("claim", ["runs"]),
        ("claim", ["runs=relative"]),
        ("claim", ["Runs=/mnt"]),
        ("claim", ["runs=/mnt\n"]),
        ("secret_env", ["a=b"]),
        ("secret_files", ["aws"]),
        ("service_account", "a_b"),
        ("node_selector", ["gpu"]),
        ("tolerate", ["gpu:Never"]),
        ("shm", "much"),
        ("user", 0),
    ],
)
def test_a_bad_option_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        KubernetesOptions.model_validate({name: value})
    assert name in str(caught.value)
