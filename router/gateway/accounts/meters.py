"""Plain counts of what the ledger was given and what was refused. Written by one thread each, read by any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from baleen.metrics import Sample
from router.gateway.accounts.money import PICO
from router.gateway.accounts.records import Entry, Outcome, Reason


class AccountMeters:
    """Counts since this gateway started; entries are counted once they stand in the ledger."""

    def __init__(self) -> None:
        self.entries: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self.refused: dict[Reason, int] = dict.fromkeys(get_args(Reason), 0)
        self.hit_tokens = 0
        self.miss_tokens = 0
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.cost = 0
        """Picos."""

    def wrote(self, entry: Entry) -> None:
        """Count an entry of the ledger."""
        self.entries[entry.outcome] += 1
        self.hit_tokens += entry.usage.hit_tokens
        self.miss_tokens += entry.usage.miss_tokens
        self.completion_tokens += entry.usage.completion_tokens
        self.reasoning_tokens += entry.usage.reasoning_tokens
        self.cost += entry.cost

    def samples(self) -> Iterator[Sample]:
        """Everything."""
        yield from (("gateway_ledger_entries_total", (name,), count) for name, count in self.entries.items())
        yield from (("gateway_refused_total", (name,), count) for name, count in self.refused.items())
        yield "gateway_billed_tokens_total", ("prompt_hit",), self.hit_tokens
        yield "gateway_billed_tokens_total", ("prompt_miss",), self.miss_tokens
        yield "gateway_billed_tokens_total", ("completion",), self.completion_tokens
        yield "gateway_billed_reasoning_tokens_total", (), self.reasoning_tokens
        yield "gateway_billed_cost_total", (), self.cost / PICO
