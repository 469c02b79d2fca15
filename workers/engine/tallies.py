"""What a scheduler has done since its rank started: plain counts, written by it and read by whoever reports them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Tallies:
    """starts: times that a request began to run, also after a preemption. cached_prompt_tokens: of prompt_tokens, those
    that were found computed when their request first started.
    """

    starts: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int = 0
