"""What crosses between the scheduler, the model and the outside, one step at a time. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from baleen.reports import FinishReason, RequestOutput, SampledToken

if TYPE_CHECKING:
    from workers.engine.request import Request

__all__ = ["Batch", "BatchItem", "FinishReason", "RequestOutput", "SampledToken", "StepResult"]


@dataclass(frozen=True, slots=True)
class BatchItem:
    """Tokens of one request in this step: positions start to start + num_tokens - 1.

    `request` is read, never changed, by the model. `samples`: the last position's logits are wanted.
    """

    request: Request
    start: int
    num_tokens: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work."""

    items: tuple[BatchItem, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class SamplingFailure:
    """No token can be chosen for a request. It ends that request alone. dead_end: its constraint allows none."""

    detail: str
    dead_end: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """The model's answer to a Batch: one entry per item, None where the item does not sample."""

    sampled: tuple[SampledToken | SamplingFailure | None, ...]
