"""An order of waiting requests that gives each tenant its share of the prompt tokens; no clock, no I/O.

Weighted fair queueing by virtual time: a tenant's time advances by tokens/weight whenever one of its requests is
taken, and the tenant whose time is the least comes next. A tenant that was idle starts at the present virtual time, so
that it can neither save up a claim nor be made to pay for the past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")

LOOKAHEAD = 4
"""Requests of one tenant that are looked at when the first has no room."""

MOST_LOOKED_AT = 16
"""Requests of all tenants that are looked at before the queue is said to be stuck."""

MOST_BYPASSES = 64
"""Requests that may overtake one that has no room; then all wait for it."""

_MOST_REMEMBERED = 4096
"""Tenants without waiting requests whose time is kept; the one that left first is forgiven first."""


@dataclass(slots=True, eq=False)
class Entry(Generic[Item]):
    """One waiting request. cost: its prompt tokens."""

    item: Item
    tenant: str
    cost: int
    bypasses: int = 0


@dataclass(slots=True, eq=False)
class _Tenant(Generic[Item]):
    name: str
    weight: float
    time: float
    order: int
    entries: dict[Entry[Item], None] = field(default_factory=dict)
    cost: int = 0

    @property
    def rank(self) -> tuple[float, int]:
        return self.time, self.order


class FairQueue(Generic[Item]):
    """Waiting requests by tenant. weights: of tenants that are not to count 1."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        assert all(weight > 0 for weight in self._weights.values())
        self._tenants: dict[str, _Tenant[Item]] = {}
        self._recent: dict[str, float] = {}
        self._now = 0.0
        self._arrivals = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Entry[Item]]:
        """All entries, tenant by tenant."""
        for tenant in self._tenants.values():
            yield from tenant.entries

    def push(self, item: Item, *, tenant: str, cost: int) -> Entry[Item]:
        """Put a request behind its tenant's others."""
        entry = Entry(item, tenant, max(1, cost))
        owner = self._tenants.get(tenant)
        if owner is None:
            start = max(self._now, self._recent.pop(tenant, 0.0))
            self._arrivals += 1
            owner = _Tenant(tenant, self._weights.get(tenant, 1.0), start, self._arrivals)
            self._tenants[tenant] = owner
        owner.entries[entry] = None
        owner.cost += entry.cost
        self._length += 1
        return entry

    def discard(self, entry: Entry[Item]) -> None:
        """Take a request out that is not to be served, if it is still here; its tenant does not pay for it."""
        owner = self._tenants.get(entry.tenant)
        if owner is None or entry not in owner.entries:
            return
        del owner.entries[entry]
        owner.cost -= entry.cost
        self._length -= 1
        if not owner.entries:
            del self._tenants[entry.tenant]
            if owner.time > self._now:
                self._recent[owner.name] = owner.time
                if len(self._recent) > _MOST_REMEMBERED:
                    del self._recent[next(iter(self._recent))]

    def take(self, fits: Callable[[Item], bool]) -> Entry[Item] | None:
        """The next request that fits, removed and charged; None if none does.

        One that does not fit is passed over, but not more than `MOST_BYPASSES` times.
        """
        passed: list[Entry[Item]] = []
        for entry in islice(self._in_order(), MOST_LOOKED_AT):
            if fits(entry.item):
                for other in passed:
                    other.bypasses += 1
                self._charge(entry)
                return entry
            if entry.bypasses >= MOST_BYPASSES:
                return None
            passed.append(entry)
        return None

    def cost_ahead(self, tenant: str, cost: int) -> int:
        """Tokens that would be served before a request that `tenant` pushed now, if nobody else came."""
        own = self._tenants.get(tenant)
        weight = self._weights.get(tenant, 1.0)
        start = own.time if own else max(self._now, self._recent.get(tenant, 0.0))
        own_cost = own.cost if own else 0
        finish = start + (own_cost + cost) / weight
        ahead = float(own_cost)
        for other in self._tenants.values():
            if other is not own:
                ahead += min(other.cost, max(0.0, finish - other.time) * other.weight)
        return round(ahead)

    def greediest(self) -> tuple[str, float]:
        """The tenant with the most waiting requests for its weight, and how many that are for each unit of weight."""
        most = max(self._tenants.values(), key=lambda tenant: len(tenant.entries) / tenant.weight)
        return most.name, len(most.entries) / most.weight

    def newest(self, tenant: str) -> Entry[Item]:
        """The last request of a tenant that has some."""
        return next(reversed(self._tenants[tenant].entries))

    def pressure(self, tenant: str) -> float:
        """Waiting requests that the tenant would have with one more, for each unit of its weight."""
        own = self._tenants.get(tenant)
        return ((len(own.entries) if own else 0) + 1) / self._weights.get(tenant, 1.0)

    def _in_order(self) -> Iterator[Entry[Item]]:
        for tenant in sorted(self._tenants.values(), key=lambda tenant: tenant.rank):
            yield from islice(tenant.entries, LOOKAHEAD)

    def _charge(self, entry: Entry[Item]) -> None:
        owner = self._tenants[entry.tenant]
        self._now = max(self._now, min(tenant.time for tenant in self._tenants.values()))
        owner.time += entry.cost / owner.weight
        self.discard(entry)
