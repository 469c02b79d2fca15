"""What crosses between the scheduler, the model and the outside, one step at a time. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from baleen.reports import FinishReason, PromptLogprobs, RequestOutput, SampledToken
from workers.engine.prompt_scores import NOTHING
from workers.parallel.lockstep import DecodeSize

if TYPE_CHECKING:
    from workers.engine.request import Request

__all__ = ["Batch", "BatchItem", "FinishReason", "PromptLogprobs", "RequestOutput", "SampledToken", "StepResult"]


@dataclass(frozen=True, slots=True)
class BatchItem:
    """Tokens of one request in this step: positions start to start + num_tokens - 1.

    `request` is read, never changed, by the model. `samples`: the last position's logits are wanted. `scored`: places
    of the prompt, of those one after these tokens, whose log-probabilities are wanted.
    """

    request: Request
    start: int
    num_tokens: int
    samples: bool
    scored: range = NOTHING


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work."""

    items: tuple[BatchItem, ...]
    num_tokens: int

    @property
    def decode(self) -> DecodeSize | None:
        """Its size, if each item is one token that samples; None of a step that computes prompts."""
        if not all(item.num_tokens == 1 and item.samples for item in self.items):
            return None
        return DecodeSize(len(self.items), max((item.start + 1 for item in self.items), default=0))


@dataclass(frozen=True, slots=True)
class SamplingFailure:
    """No token can be chosen for a request, or its prompt has no log-probabilities. It ends that request alone.

    dead_end: its constraint allows none.
    """

    detail: str
    dead_end: bool = False

    @property
    def reason(self) -> FinishReason:
        """How the request ends."""
        return FinishReason.DEAD_END if self.dead_end else FinishReason.FAILED


@dataclass(frozen=True, slots=True)
class StepResult:
    """The model's answer to a Batch: one entry per item, None where the item does not sample.

    scored: of each request that has a prompt to score.
    """

    sampled: tuple[SampledToken | SamplingFailure | None, ...]
    scored: Mapping[Request, PromptLogprobs | SamplingFailure] = field(default_factory=dict)
