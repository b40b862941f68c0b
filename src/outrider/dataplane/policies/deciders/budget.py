"""How much retrying may add to the load: a share of real traffic, plus a few per second so that a quiet
service may retry at all.

The problem: when a target fails altogether, three retries each would quadruple its load at the worst moment.
The form is Finagle's RetryBudget (deposits and withdrawals in ten one-second slots), with the reserve granted
second by second, not in advance.
"""

from __future__ import annotations

from typing import Final

_SLOTS: Final = 10


class RetryBudget:
    """`share` of the calls of the last ten seconds, plus `reserve` retries per second."""

    __slots__ = ("_balance", "_reserve_left", "_second", "_slots", "reserve", "share")

    def __init__(self, share: float, reserve: int = 3) -> None:
        self.share = share
        self.reserve = reserve
        self._slots = [0.0] * _SLOTS
        self._balance = 0.0
        self._second = 0
        self._reserve_left = reserve

    def deposit(self, now: float) -> None:
        """A call was made for the first time, at `now` (monotonic seconds)."""
        second = int(now)
        if second > self._second:
            self._advance(second)
        self._slots[second % _SLOTS] += self.share
        self._balance += self.share

    def withdraw(self, now: float) -> bool:
        """Pay for one retry; False when the budget is used up. Paid before the back-off, so that a thousand
        calls failing together cannot all schedule a retry first and find out later."""
        second = int(now)
        if second > self._second:
            self._advance(second)
        if self._balance >= 1.0 - 1e-9:
            self._slots[second % _SLOTS] -= 1.0
            self._balance -= 1.0
            return True
        if self._reserve_left > 0:
            self._reserve_left -= 1
            return True
        return False

    def _advance(self, second: int) -> None:
        """Let the slots that have grown older than ten seconds go."""
        for step in range(1, min(second - self._second, _SLOTS) + 1):
            self._slots[(self._second + step) % _SLOTS] = 0.0
        self._second = second
        self._reserve_left = self.reserve
        self._balance = sum(self._slots)
