"""The network that ships with the package: it generates emoji of 32 x 32 pixels (docs/shipped.md).

model/emoji/model.safetensors      ADDP, its values in float16
model/emoji/tokenizer.safetensors  the tokenizer
model/emoji/predictor.safetensors  the predictor
model/emoji/SHA256SUMS             their checksums, for sha256sum --check
model/emoji/README.md, LICENSE     what they are, and whose emoji they have seen
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from model.documents import MIB, read_file
from model.errors import WeightsError
from model.sampling_options import SamplerName

SHIPPED = Path(__file__).with_name("emoji")
TITLE = "the network that ships with addp: emoji of 32 x 32 pixels"
SAMPLER: SamplerName = "clear"  # with which its pictures are best
# Of its nine classes, those whose pictures people can name most often (docs/shipped.md).
CLASSES = ("smileys-emotion", "people-body", "flags", "food-drink", "symbols")
_SUMS = "SHA256SUMS"


def shipped_folder() -> Path:
    """Return the folder of the networks that ship, after comparing them with their checksums.

    Raises WeightsError where a file is missing or not as it was shipped.
    """
    try:
        sums = read_file(SHIPPED / _SUMS, MIB, WeightsError).decode(errors="replace")
        for line in sums.splitlines():
            expected, _, name = line.partition("  ")
            with (SHIPPED / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    raise _damaged(f"{SHIPPED / name} is not as it was shipped")
    except OSError as error:
        raise _damaged(f"{error.filename} cannot be read ({error.strerror})") from error
    return SHIPPED


def _damaged(what: str) -> WeightsError:
    return WeightsError(f"{what}; install addp again, or take it from git again in a clone")
