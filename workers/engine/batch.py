"""What crosses between the scheduler, the model and the outside, one step at a time. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from baleen.ids import RequestId

if TYPE_CHECKING:
    from workers.engine.request import Request


class FinishReason(Enum):
    """How a completion ended; exactly one applies."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    FAILED = "failed"


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
class SampledToken:
    """One new token. Log-probabilities are natural, of the model's own distribution."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingFailure:
    """No token can be chosen for a request, for example since everything is forbidden. It ends that request alone."""

    detail: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """The model's answer to a Batch: one entry per item, None where the item does not sample."""

    sampled: tuple[SampledToken | SamplingFailure | None, ...]


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """News of one completion. `position` is the place of tokens[0] in the output, so that a repeat is recognised.

    `finish` is set in the last output of a completion, and only there; `detail` says why where it is no ordinary end.
    """

    request_id: RequestId
    index: int
    position: int
    tokens: tuple[SampledToken, ...]
    finish: FinishReason | None
    detail: str
    num_prompt_tokens: int
    num_cached_tokens: int
