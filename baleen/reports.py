"""What a rank tells about itself and its requests, as routers and ranks both know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from baleen.config import Role
from baleen.ids import Epoch, Incarnation, RequestId


class FinishReason(Enum):
    """How a completion ended; exactly one applies."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    FAILED = "failed"
    DEAD_END = "dead_end"


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One new token. Log-probabilities are natural, of the model's own distribution."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Of tokens of a prompt that follow each other, the first of them at `position`; natural, of the model's own.

    logprobs: one for each token. top_ids, top_logprobs: the most likely tokens at each place, best first, as many for
    each, one place after the other.
    """

    position: int
    logprobs: Sequence[float]
    top_ids: Sequence[int] = ()
    top_logprobs: Sequence[float] = ()

    @property
    def end(self) -> int:
        """Place after the last of these tokens."""
        return self.position + len(self.logprobs)

    @property
    def num_top(self) -> int:
        """How many of the most likely tokens each place has."""
        return len(self.top_ids) // len(self.logprobs) if self.logprobs else 0

    def part(self, start: int, end: int) -> PromptLogprobs:
        """What belongs to places `start` to `end` - 1, which are among these."""
        first, last = start - self.position, end - self.position
        top = slice(first * self.num_top, last * self.num_top)
        return PromptLogprobs(start, self.logprobs[first:last], self.top_ids[top], self.top_logprobs[top])


@dataclass(frozen=True, slots=True)
class PromptReport:
    """News of the prompt that all completions of a request have: each place once, in order."""

    request_id: RequestId
    logprobs: PromptLogprobs


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy a rank is. Tokens are those still to be computed for prompts (queued) and those in use (running).

    Speeds are moving averages in tokens per second, 0 until measured, step_s is one in seconds. draining: it takes no
    new requests any more. free_blocks counts the cached ones, which make room. From prompt_tokens on: totals since the
    rank started; cached_prompt_tokens were found computed when their request first started.
    """

    free_blocks: int
    num_waiting: int
    num_running: int
    queued_tokens: int
    running_tokens: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    draining: bool = False
    cached_blocks: int = 0
    held_blocks: int = 0
    arriving_blocks: int = 0
    lent_blocks: int = 0
    step_s: float = 0.0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """What never changes in one life of a rank.

    address: of its gRPC server. transfer_address: where it takes blocks, empty if it has none. transport: what moves
    them. metrics_address: where it answers GET /metrics, or empty. model_fingerprint: names weights and record format,
    as hexadecimal text; the fingerprint in the names of blocks (`baleen.blocks.root_hash`).
    """

    incarnation: Incarnation
    epoch: Epoch
    rank: int
    world_size: int
    role: Role
    pool: str
    group: str
    address: str
    model_fingerprint: str
    vocab_size: int
    max_context: int
    eos_token_ids: tuple[int, ...]
    num_blocks: int
    max_running: int
    pid: int
    transfer_address: str = ""
    metrics_address: str = ""
    transport: str = ""
