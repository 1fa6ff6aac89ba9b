"""Which variables and words may be brought to other hosts: those that hold no secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from model.errors import ConfigError

# Names of variables that hold a secret; a variable that names a FILE with one does not.
_SECRET = re.compile(
    r"(SECRET|TOKEN|PASSW|CREDENTIAL|_KEY$|^AWS_ACCESS_KEY_ID$)(?!.*_FILE$)", re.IGNORECASE
)
_LOGIN = re.compile(r"://[^/\s@]*:[^/\s@]*@")  # a password within a url, as in HTTPS_PROXY
_PROXY = re.compile(r"(https?|all)_proxy", re.IGNORECASE)  # which needs no scheme


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable holds a secret, by its name or by a password in its value."""
    names_user = _PROXY.fullmatch(name) is not None and "@" in value
    return bool(_SECRET.search(name)) or has_login(value) or names_user


def has_login(value: str) -> bool:
    """Return whether a text holds a url with a password."""
    return bool(_LOGIN.search(value))


def split_secrets(
    names: Iterable[str], environment: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return those of the names that may travel, and those that hold a secret.

    Names that are not set are in neither list.
    """
    there = sorted(name for name in set(names) if name in environment)
    secrets = [name for name in there if is_secret(name, environment[name])]
    return [name for name in there if name not in secrets], secrets


def refuse_passwords(words: Sequence[str]) -> None:
    """Raise ConfigError for an override with a password: everybody can read a command line."""
    for word in words:
        if has_login(word):
            raise ConfigError(
                f"{word.partition('=')[0]} holds a password, which every user of a host could read "
                "on the command line; keep credentials in ~/.aws/credentials on each host"
            )
