"""How often the router may try again, over all requests, so that a failing cluster is not buried in repeats."""

from __future__ import annotations


class RetryBudget:
    """Every request earns a share of a retry; every retry spends a whole one. The store is bounded."""

    def __init__(self, *, share: float, reserve: int) -> None:
        """share: retries per request in the long run. reserve: retries in store at the start, and the most ever."""
        assert share >= 0 and reserve >= 0
        self._share = share
        self._most = float(reserve)
        self._left = float(reserve)

    @property
    def left(self) -> float:
        """Retries in store."""
        return self._left

    def earn(self) -> None:
        """Note a new request."""
        self._left = min(self._most, self._left + self._share)

    def spend(self) -> bool:
        """Take one retry out; False if there is none."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
