"""Documents of any content, and what comes of reading one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from model.errors import ADDPError

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
DOCUMENTS = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
)


def outcome(parse: Callable[[], Any]) -> tuple[Any, str]:
    """Return (what was parsed, ""), or (None, the error's message)."""
    try:
        return parse(), ""
    except ADDPError as error:
        return None, str(error)
