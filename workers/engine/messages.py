"""What enters and leaves a rank, as domain objects; each wire has its own codec for them. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from baleen.ids import Epoch, Incarnation, RequestId
from baleen.sampling import SamplingParams
from workers.engine.batch import RequestOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Start a request. `deadline` is in the rank's own clock; requests share cached blocks within one salt only."""

    request_id: RequestId
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    deadline: float | None = None
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Abort:
    """End one completion of a request, or all with index None. Legal in any state, and for unknown requests."""

    request_id: RequestId
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new requests, finish the running ones within `timeout_s` (None: the configured time), then leave."""

    reason: str
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class HealthQuery:
    """Ask for a HealthReport; answered beside the step loop, so also when that is stuck."""


Command = Submit | Abort | Drain
"""What the step loop obeys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The rank takes requests. startup: seconds of each part of the start, in order."""

    rank: int
    world_size: int
    epoch: Epoch
    incarnation: Incarnation
    pid: int
    model_fingerprint: str
    vocab_size: int
    max_context: int
    eos_token_ids: tuple[int, ...]
    num_blocks: int
    startup: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy a rank is. Tokens are those still to be computed for prompts (queued) and those in use (running).

    Speeds are moving averages in tokens per second, 0 until measured.
    """

    free_blocks: int
    num_waiting: int
    num_running: int
    queued_tokens: int
    running_tokens: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class StepReport:
    """Everything new of one engine step. `step` is the step at whose start all ranks had finished what is reported."""

    step: int
    outputs: tuple[RequestOutput, ...]
    load: Load


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to a command that was not accepted. `error` is the class name of one of `baleen.errors`."""

    request_id: RequestId | None
    error: str
    field: str | None
    message: str


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Progress of the step loop: how long it has been in its present phase. ended: why the epoch is over, or None."""

    rank: int
    step: int
    phase: str
    seconds_in_phase: float
    ended: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The last message of a rank: requests without a finish are over with it."""

    cause: str


Event = Ready | StepReport | Refused | HealthReport | Ended
