"""Named errors for a user's mistakes. Each message says what was wrong, where, and what to do. And
the errors of libraries, in one line."""

_LONGEST = 300  # characters of a line


class ADDPError(Exception):
    """The base of every error that a user can cause and mend. Command lines print it as one
    paragraph, without a trace."""

    exit_code = 1


class ConfigError(ADDPError):
    """A configuration cannot be run: it has an unknown key, impossible batch arithmetic, or a wrong
    value."""

    exit_code = 78


class WeightsError(ADDPError):
    """A weights file is unreadable, or does not fit the network it was meant for."""


class DataError(ADDPError):
    """Images, token shards or manifests are missing, damaged, or do not belong together."""


def in_one_line(error: Exception, *, named: bool = False) -> str:
    """Shorten what a library says in many lines: each of them comes once.

    PyTorch's advice on how to see more is left out, and all that follows it. Of xformers' list of
    operators, the reasons stay. named: begin with the error's class, as a failed lookup, whose text
    is only what was looked up, and an error without a text always do.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ends = next((i for i, line in enumerate(lines) if line.startswith("Set TORCH")), len(lines))
    heads = [i for i, line in enumerate(lines) if line.endswith("is not supported because:")]
    first = heads[0] if heads else 0
    kept = [line for i, line in enumerate(lines[:ends]) if i >= first and i not in heads]
    said = "; ".join(dict.fromkeys(kept))
    if named or not said or isinstance(error, LookupError):
        said = ": ".join(filter(None, [type(error).__name__, said]))
    return said[:_LONGEST]
