"""What enters and leaves a rank, as domain objects; each wire has its own codec for them. No torch."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from baleen.errors import InvalidRequest
from baleen.ids import Epoch, Incarnation, RequestId
from baleen.reports import Load, PromptReport, RequestOutput
from baleen.sampling import SamplingParams
from workers.engine.token_mask import TokenMask
from workers.transfer.transport import TransferNews


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Start a request. `deadline` is in the rank's own clock; requests share cached blocks within one salt only.

    num_delivered: tokens at the end of `token_ids` that are output already, of a request that moved here; with n above
    1 each completion moves alone, with n 1 here and its own seed (`baleen.seeds`). ticket: of the reservation whose
    blocks arrived for it. traceparent: W3C trace context of whoever asks, or empty. token_masks: one of the constraint
    and the budget for each completion, past the delivered tokens. prompt_logprobs_from: place of the first token of the
    prompt whose log-probabilities are wanted, where `sampling` asks for them.
    """

    request_id: RequestId
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    deadline: float | None = None
    cache_salt: str = ""
    num_delivered: int = 0
    ticket: str | None = None
    traceparent: str = ""
    token_masks: tuple[TokenMask, ...] = ()
    prompt_logprobs_from: int = 0


@dataclass(frozen=True, slots=True)
class Destination:
    """A reservation on another rank: where it takes transfers, and the first block that it does not hold yet."""

    address: str
    ticket: str
    first_block: int

    def require_possible(self) -> None:
        """Raise InvalidRequest if nothing could ever be sent there."""
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InvalidRequest(f"address is {self.address!r}, must be host:port", field="destination")
        if self.first_block < 0:
            raise InvalidRequest(f"first_block is {self.first_block}, must be at least 0", field="destination")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """Compute whole blocks, or find them cached, and push them to `destination`; without one, only keep them.

    ticket: of a reservation on this rank, whose blocks were fetched for it. prompt_logprobs: as in SamplingParams, of
    the tokens from place `prompt_logprobs_from` on that follow on those that are computed.
    """

    request_id: RequestId
    token_ids: tuple[int, ...]
    cache_salt: str = ""
    priority: int = 0
    deadline: float | None = None
    destination: Destination | None = None
    ticket: str | None = None
    traceparent: str = ""
    prompt_logprobs: int | None = None
    prompt_logprobs_from: int = 0


@dataclass(frozen=True, slots=True)
class Abort:
    """End one completion of a request, or all with index None. Legal in any state, and for unknown requests.

    asked_at: when it came, in the rank's own clock; None: not known.
    """

    request_id: RequestId
    index: int | None = None
    asked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new requests, finish the running ones within `timeout_s` (None: the configured time), then leave."""

    reason: str
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class HealthQuery:
    """Ask for a HealthReport; answered beside the step loop, so also when that is stuck."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Blocks set aside for a transfer. address: where to push to; the ticket is good for one transfer, one Submit."""

    ticket: str
    address: str
    num_held_blocks: int
    num_reserved_blocks: int
    expires_in_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Set blocks aside for a prompt that another rank computes. `reply` gets the Reservation, or a BaleenError."""

    token_ids: tuple[int, ...]
    cache_salt: str
    timeout_s: float
    reply: Future[Reservation]


@dataclass(frozen=True, slots=True)
class ReleaseReservation:
    """Give a reservation back. Legal at any time, and for unknown tickets."""

    ticket: str


@dataclass(frozen=True, slots=True)
class FetchDone:
    """A Fetch has ended: leading blocks of the prompt that were here, and blocks that the destination took.

    failure: why it took not all that were wanted, or None.
    """

    num_blocks: int
    num_pushed: int
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fetch:
    """Push the blocks of a prompt that are cached here, and compute nothing. `reply` gets FetchDone, or a BaleenError.

    `deadline` is in the rank's own clock. Concerns the whole blocks before the last of `token_ids`.
    """

    token_ids: tuple[int, ...]
    cache_salt: str
    destination: Destination
    deadline: float
    reply: Future[FetchDone]
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class WithdrawFetch:
    """Nobody waits for the answer of `fetch` any more. Legal at any time."""

    fetch: Fetch


LocalCommand = Submit | Abort | Drain
"""What may also come over a rank's standard input."""

Command = LocalCommand | Prefill | Reserve | ReleaseReservation | Fetch | WithdrawFetch | TransferNews
"""What the step loop obeys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The rank takes requests. startup: seconds of each part of the start, in order.

    address: of its gRPC server, transfer_address: where it takes blocks; empty if it has none.
    """

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
    address: str = ""
    transfer_address: str = ""


@dataclass(frozen=True, slots=True)
class StepReport:
    """Everything new of one engine step. `step` is the step at whose start all ranks had finished what is reported.

    prompts: news of prompts, which come before what is in `outputs`, or in a PrefillDone, of the same request.
    """

    step: int
    outputs: tuple[RequestOutput, ...]
    load: Load
    prompts: tuple[PromptReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to a command that was not accepted. `error` is the class name of one of `baleen.errors`."""

    request_id: RequestId | None
    error: str
    field: str | None
    message: str


@dataclass(frozen=True, slots=True)
class PrefillDone:
    """A Prefill has ended: its blocks, those of them that the destination took, and those that were cached here.

    failure: why it did not end well, or None. pushed_from: when its transfer began, in the rank's own clock; None:
    there was none.
    """

    request_id: RequestId
    num_blocks: int
    num_pushed: int
    num_cached: int
    failure: str | None = None
    pushed_from: float | None = field(default=None, compare=False)


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


Event = Ready | StepReport | Refused | PrefillDone | HealthReport | Ended
