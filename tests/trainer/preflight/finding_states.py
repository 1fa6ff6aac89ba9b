"""What findings say, in short, for tests."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.preflight.finding import Finding, State, worst


def state(findings: Iterable[Finding], name: str) -> State:
    """The worst state of a check; it must have been made."""
    states = [one.state for one in findings if one.name == name]
    assert states, f"nothing was said of {name}"
    return worst(states)


def text(findings: Iterable[Finding], state: State) -> str:
    """All texts of a state."""
    return "\n".join(one.text for one in findings if one.state == state)
