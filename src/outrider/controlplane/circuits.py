"""Circuits by hand: held open or closed, or left to their own rules again."""

from __future__ import annotations

from collections.abc import Iterable

from outrider.dataplane.policies.deciders.breaker import Breaker

ACTIONS = ("open", "close", "reset")


def order(breakers: Iterable[Breaker], name: str, action: str) -> Breaker | None:
    """Carry out an action, one of ACTIONS, on the circuit with this name. Returns the circuit, or None if there is
    none."""
    breaker = next((one for one in breakers if one.name == name), None)
    if breaker is None:
        return None
    if action == "open":
        breaker.hold_open()
    elif action == "close":
        breaker.hold_closed()
    else:
        breaker.reset()
    return breaker
