"""Named errors for a user's mistakes. Each message says what was wrong, where, and what to do."""


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
