"""The boundary: every document from outside (JSON, YAML, a line of a log) passes here before any
code uses it.

A file is opened only if it is a regular one, read only up to a stated number of bytes, and parsed
into a typed record or a plain mapping, with bounds on depth, count and the length of numbers. A
failure is one line that names the file and the key, in the exception that the caller chooses. YAML
has a module of its own (`yaml_documents.py`), which the help of a command need not load. This
module imports no torch.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails, from_json

from model.errors import ADDPError

MIB = 1 << 20
LARGEST_COUNT = 1 << 53  # what JSON's numbers hold exactly in any language
_MOST_HOLDERS = 10**6  # mappings and lists of a JSON document; each takes up to 700 bytes of memory
_MOST_COMMAS = 8 * 10**6  # of a JSON document; a value takes 60 bytes
LONGEST_SHOWN = 80  # characters of a value in a message
_PLAIN_NAME = re.compile(r"[\w./-]{1,64}")  # of a key; a file's name is one, too

R = TypeVar("R", bound=BaseModel)


class Record(BaseModel):
    """The base of records that are stored as JSON. They are frozen, and refuse unknown keys, NaN
    and values of another type.

    A field that was renamed keeps its key on disk as its alias, so that old files can be read.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class Settings(BaseModel):
    """The base of settings that people write. They are frozen, and refuse unknown keys, NaN, and
    true or false where a number is meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a flag: pydantic would take true for 1, and YAML takes `on` and `yes` for true."""
        assert info.field_name is not None
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("it takes no true or false")
        return value


def _check_name(name: str) -> str:
    if not name or name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise ValueError(f"{show(name)} is no name inside its folder")
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise ValueError(f"{show(name)} holds a control character")
    if len(name.encode(errors="surrogateescape")) > 4096 or "://" in name:
        raise ValueError(f"{show(name)} is no name of a file")
    return name


# The types that fields of records from outside are made of.
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]  # what torch.manual_seed takes
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT, strict=True)]
Positive = Annotated[int, Field(gt=0, le=LARGEST_COUNT, strict=True)]
RelativeName = Annotated[str, AfterValidator(_check_name)]  # of a file below a root
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def show(value: Any) -> str:
    """Return a value from outside for a message: in one line, short, without control characters."""
    try:
        text = ascii(value) if isinstance(value, str | bytes) else repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def printable(text: str) -> str:
    """Return a name from outside for a line of output: itself, or escaped if it holds characters
    that would move a terminal's cursor."""
    return text if text.isprintable() else ascii(text)


def read_file(path: Path | str, limit: int, error: type[ADDPError]) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises FileNotFoundError if there is none, and `error` for a folder, a device, a FIFO (which
    would never end), a larger file, and one that cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path} is no regular file")
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        if isinstance(problem, OSError) and problem.errno in (errno.EISDIR, errno.ENXIO):
            raise error(f"{path} is no regular file") from problem
        raise error(
            f"{show(str(path))} cannot be read: {getattr(problem, 'strerror', None) or problem}"
        ) from problem
    if len(content) > limit:
        raise error(
            f"{path} is larger than {limit / MIB:g} MiB, the most that such a file may have"
        )
    return content


def parse_record(
    kind: type[R], content: bytes | str | dict[str, Any], where: str, error: type[ADDPError]
) -> R:
    """Make a record of JSON, or of a mapping that `parse_json` made of it. where: names the
    document. Raises `error`, which names the document and the key that is wrong."""
    try:
        if isinstance(content, dict):
            return kind.model_validate(content)
        _check_amount(content, where, error)
        return kind.model_validate_json(content)
    except ValidationError as problem:
        raise error(f"{where}: {first_problem(problem)}") from problem


def parse_json(content: bytes | str, where: str, error: type[ADDPError], kind: type = dict) -> Any:
    """Parse JSON that is no record: a mapping, or a value of another `kind`. NaN and infinities are
    read, since metrics hold them. where: names the document.

    Raises `error` for what is no JSON, too deep (pydantic-core stops at some 200 levels), or of
    another kind.
    """
    _check_amount(content, where, error)
    try:
        value = from_json(content, allow_inf_nan=True)
    except ValueError as problem:
        raise error(f"{where} is no readable JSON: {str(problem)[:LONGEST_SHOWN]}") from problem
    if not isinstance(value, kind):
        raise error(
            f"{where} holds a {type(value).__name__}, not a {_KINDS.get(kind) or kind.__name__}"
        )
    return value


def _check_amount(content: bytes | str, where: str, error: type[ADDPError]) -> None:
    """Bound the size of what JSON would become, before anything is made of it. Brackets in texts
    count too; no document of ours comes near the bounds."""
    of_lists, of_mappings, comma = (
        ("[", "{", ",") if isinstance(content, str) else (b"[", b"{", b",")
    )
    holders = content.count(of_lists) + content.count(of_mappings)  # type: ignore[arg-type]
    if holders > _MOST_HOLDERS or content.count(comma) > _MOST_COMMAS:  # type: ignore[arg-type]
        raise error(
            f"{where} holds more than {_MOST_HOLDERS:,} lists and mappings, or {_MOST_COMMAS:,} "
            "values"
        )


_KINDS: dict[type, str] = {dict: "mapping of keys to values", list: "list"}


def first_problem(problem: ValidationError) -> str:
    """Say in one line what pydantic found first: the key, what is wrong, and what stood there."""
    return describe_problem(problem.errors(include_url=False, include_context=False)[0])


def describe_problem(problem: ErrorDetails) -> str:
    """Say in one line what is wrong, as `first_problem` does of the first problem."""
    key, message = key_of(problem), problem["msg"].removeprefix("Value error, ")
    if problem["type"] not in ("missing", "value_error", "json_invalid"):
        message += f" (got {show(problem['input'])})"
    return f"{key}: {message}" if key else message


def key_of(problem: ErrorDetails) -> str:
    """Return the key that a problem is about, as `batch.micro`; "" if it is about the whole.

    A name that is no plain word is shown as values from outside are.
    """
    names = map(str, problem["loc"])
    return ".".join(name if _PLAIN_NAME.fullmatch(name) else show(name) for name in names)
