"""One completion on its way through a rank: its tokens, its state and the legal changes of both.

WAITING --start--> RUNNING --preempt--> WAITING
WAITING or RUNNING --end--> FINISHED, for good
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from baleen.blocks import BLOCK_TOKENS, shareable_blocks
from baleen.errors import BaleenError
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from workers.cache.ledger import AccountingError, Holder
from workers.cache.prefix import Node
from workers.engine.batch import FinishReason, RequestOutput, SampledToken
from workers.engine.prompt_scores import PromptScores
from workers.engine.token_mask import TokenMask

NO_SLOT = -1
"""`Request.slot` while the request is not running."""


class IllegalTransition(BaleenError):
    """A request was asked for a change that its state forbids."""


class RequestState(Enum):
    """Where a request is; exactly one applies."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One completion. Only the scheduler changes it; sampler and model read it.

    token_ids: prompt and output so far. num_computed: leading tokens whose cache records are written, always
    0 <= num_computed <= len(token_ids). seed: of this completion alone. stop_ids: tokens that end it. priority: lower
    is more urgent. deadline: absolute seconds of the rank's clock. order: place among all requests of the rank, lower
    first. num_cached: prompt tokens that the prefix cache gave when it first started. num_delivered: output tokens that
    came with the request, because it began elsewhere. prefill_only: its whole blocks are to be computed, and no token
    is sampled; then token_ids are whole blocks. prompt_scores: what is to be reported of the prompt, None: nothing.
    samples: whether a token is wanted once all before it are computed; if not, it ends there.

    While running, it has a row `slot` of the runner's block table and blocks for all its tokens. `generation` is
    unique to this stay: a row written under another generation is stale.
    """

    id: RequestId
    index: int
    token_ids: list[int]
    sampling: SamplingParams
    seed: int
    stop_ids: frozenset[int] = frozenset()
    salt: bytes = b""
    priority: int = 0
    deadline: float | None = None
    token_mask: TokenMask | None = None
    num_delivered: int = 0
    prefill_only: bool = False
    prompt_scores: PromptScores | None = None
    order: tuple[float, int] = (0.0, 0)
    key: Holder = field(init=False)
    samples: bool = field(init=False)
    num_prompt: int = field(init=False)
    state: RequestState = field(default=RequestState.WAITING, init=False)
    num_computed: int = field(default=0, init=False)
    num_cached: int = field(default=0, init=False)
    block_ids: list[int] = field(default_factory=list, init=False)
    prefix_node: Node | None = field(default=None, init=False)
    slot: int = field(default=NO_SLOT, init=False)
    generation: int = field(default=0, init=False)
    finish: FinishReason | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        assert self.token_ids, "a prompt has at least one token"
        assert self.index >= 0
        assert 0 <= self.num_delivered < len(self.token_ids)
        assert not (self.prefill_only and len(self.token_ids) % BLOCK_TOKENS)
        self.num_prompt = len(self.token_ids) - self.num_delivered
        self.key = Holder(self.id, self.index)
        self.samples = not self.prefill_only and self.sampling.max_tokens > 0

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens."""
        return len(self.token_ids)

    @property
    def num_output(self) -> int:
        """Output tokens."""
        return len(self.token_ids) - self.num_prompt

    @property
    def output_ids(self) -> list[int]:
        """A copy of the output tokens."""
        return self.token_ids[self.num_prompt :]

    @property
    def num_uncomputed(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def max_tokens(self) -> int:
        """Most tokens that prompt and output can reach."""
        return self.num_prompt + (0 if self.prefill_only else self.sampling.max_tokens)

    @property
    def num_shareable_blocks(self) -> int:
        """Most leading blocks that the prefix cache may give.

        What is no prefill computes one token itself, and what reports log-probabilities of its prompt computes those
        that give them.
        """
        limit = shareable_blocks(len(self.token_ids) + self.prefill_only)
        readable = self.prompt_scores.num_readable_blocks if self.prompt_scores is not None else None
        return limit if readable is None else min(limit, readable)

    def start(self, *, slot: int, generation: int, num_computed: int) -> None:
        """Begin to run with `num_computed` tokens found in the prefix cache."""
        self._require(RequestState.WAITING, "start")
        assert 0 <= num_computed < len(self.token_ids) + self.prefill_only
        if not self.generation:
            self.num_cached = min(num_computed, self.num_prompt)
        self.state = RequestState.RUNNING
        self.slot = slot
        self.generation = generation
        self.num_computed = num_computed

    def preempt(self) -> None:
        """Go back to waiting without blocks. No token is lost; all must be computed, or found, again."""
        self._require(RequestState.RUNNING, "preempt")
        assert not self.block_ids, "whoever preempts releases the blocks first"
        self.state = RequestState.WAITING
        self.slot = NO_SLOT
        self.num_computed = 0

    def advance(self, num_tokens: int) -> None:
        """Note that the cache records of the next `num_tokens` tokens are written."""
        self._require(RequestState.RUNNING, "advance")
        assert 0 < num_tokens <= self.num_uncomputed
        self.num_computed += num_tokens

    def append(self, token_id: int, *, max_context: int) -> FinishReason | None:
        """Add a sampled token and say whether it is the last one, and why.

        A stop token belongs to the output. One that comes before min_tokens, which a sampler only produces where a
        token mask lets it, does not stop without a constraint. max_context: most tokens of prompt and output.
        """
        self._require(RequestState.RUNNING, "append")
        assert self.num_computed == len(self.token_ids), "a token can only be sampled once all before it are computed"
        self.token_ids.append(token_id)
        if self.token_mask is not None:
            self.token_mask.accept(token_id)
        num_tokens = len(self.token_ids)
        num_output = num_tokens - self.num_prompt
        if token_id in self.stop_ids and (
            self.sampling.constraint is not None or num_output > self.sampling.min_tokens
        ):
            return FinishReason.STOP
        if num_output >= self.sampling.max_tokens or num_tokens >= max_context:
            return FinishReason.LENGTH
        return None

    def end(self, reason: FinishReason) -> bool:
        """Finish from any state; False if it had finished before, and then nothing changes.

        Slot and blocks stay as they are: a batch that is being computed may still name them.
        """
        if self.state is RequestState.FINISHED:
            return False
        self.state = RequestState.FINISHED
        self.finish = reason
        return True

    def vacate(self) -> None:
        """Give up the slot after the end; whoever calls this has released the blocks."""
        self._require(RequestState.FINISHED, "vacate")
        assert not self.block_ids
        self.slot = NO_SLOT

    def output(self, position: int, tokens: tuple[SampledToken, ...], detail: str = "") -> RequestOutput:
        """News for whoever waits: `tokens`, of which the first is output number `position`, and the end if it came."""
        return RequestOutput(
            self.id, self.index, position, tokens, self.finish, detail, self.num_prompt, self.num_cached
        )

    def check(self) -> None:
        """Audit of this request alone. Raises AccountingError."""
        running = self.state is RequestState.RUNNING
        good = (
            0 <= self.num_computed <= len(self.token_ids) <= self.max_tokens
            and running == (self.slot != NO_SLOT)
            and (self.finish is not None) == (self.state is RequestState.FINISHED)
            and (not running or self.num_computed <= len(self.block_ids) * BLOCK_TOKENS)
            and (self.state is not RequestState.WAITING or not (self.block_ids or self.num_computed))
        )
        if not good:
            raise AccountingError(
                f"{self.key} is {self.state.value} with {self.num_computed} of {len(self.token_ids)} tokens computed, "
                f"at most {self.max_tokens} allowed, {len(self.block_ids)} blocks, slot {self.slot}, {self.finish}"
            )

    def _require(self, state: RequestState, change: str) -> None:
        if self.state is not state:
            raise IllegalTransition(f"{self.key} is {self.state.value}, {change} needs it to be {state.value}")
