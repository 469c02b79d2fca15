"""Runs instances through a served cluster, and puts the results together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from baleen.text.encoding_v32 import Message
from cluster.evaluation.grading import is_right
from cluster.evaluation.instances import TEXT, Instance

MAX_TOKENS = 192
REQUEST_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for an instance. got: None if it is not of the format. stopped: it ended by itself."""

    instance: Instance
    text: str
    got: Message | None
    stopped: bool

    @property
    def right(self) -> bool:
        """Whether it ended by itself with a right answer."""
        return self.stopped and self.got is not None and is_right(self.instance, self.got)


@dataclass(slots=True)
class Results:
    """right and asked: counts by family; ended: answers that ended by themselves; wrong: some answers to look at."""

    asked: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    wrong: list[Answer] = field(default_factory=list)
    perplexity: dict[str, float] = field(default_factory=dict)
    text_tokens: int = 0


class Way(Protocol):
    """A way to a cluster. Both raise BaleenError where the cluster refuses."""

    async def ask(self, instance: Instance) -> Answer:
        """The answer to an instance, greedy."""

    async def perplexity(self, texts: Sequence[str], results: Results) -> None:
        """Measure texts; raises BaleenError if this way cannot."""


async def evaluate(way: Way, instances: Sequence[Instance]) -> Results:
    """Ask and measure everything."""
    results = Results()
    graded = [instance for instance in instances if instance.family != TEXT]
    for answer in await asyncio.gather(*(way.ask(instance) for instance in graded)):
        family = answer.instance.family
        results.asked[family] += 1
        results.right[family] += answer.right
        results.ended += answer.stopped
        if not answer.right:
            results.wrong.append(answer)
    texts = [instance.expected.content for instance in instances if instance.family == TEXT]
    if texts:
        await way.perplexity(texts, results)
    return results
