"""A model without arithmetic for scheduler tests: its next token is a hash of all tokens before.

It writes, for every position that it computes, a fingerprint of salt and tokens up to there into the block that the
request names, and before it answers it reads all positions back. A block that was freed too early, shared with the
wrong request, written twice or never computed makes it fail.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from baleen.blocks import BLOCK_TOKENS
from baleen.config import EngineConfig
from baleen.ids import RequestId
from baleen.reports import PromptLogprobs
from baleen.sampling import SamplingParams
from tests.support.clock import ManualClock
from tests.support.fake_transport import FakeTransport
from workers.cache.block_bytes import BlockLayout, HostBlocks
from workers.cache.blocks import BlockCache
from workers.engine.batch import Batch, BatchItem, FinishReason, RequestOutput, SampledToken, StepResult
from workers.engine.request import Request
from workers.engine.scheduler import Scheduler
from workers.engine.submission import expand_submission
from workers.transfer.moves import Moves

VOCAB_SIZE = 50
EOS = 0
FINGERPRINT = b"fake model"
MARK_BYTES = 8


def block_marks(salt: bytes, token_ids: Sequence[int], index: int) -> bytes:
    """What the fake model writes into block `index` of these tokens."""
    end = (index + 1) * BLOCK_TOKENS
    return b"".join(ContextMarks(salt).up_to(token_ids, end)[end - BLOCK_TOKENS : end])


class ContextMarks:
    """For each position, a value that depends on the salt and on all tokens up to there."""

    def __init__(self, salt: bytes) -> None:
        self._state = blake2b(salt, digest_size=MARK_BYTES)
        self._marks: list[bytes] = []

    def up_to(self, token_ids: Sequence[int], end: int) -> list[bytes]:
        """Marks of positions 0 to at least end - 1. Tokens seen in an earlier call must not have changed."""
        for token in token_ids[len(self._marks) : end]:
            self._state.update(token.to_bytes(4, "little"))
            self._marks.append(self._state.digest())
        return self._marks


def next_token(seed: int, token_ids: Sequence[int]) -> int:
    """What the fake model says after these tokens, whatever else is in the batch."""
    digest = blake2b(array("q", [seed, *token_ids]), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCAB_SIZE


def prompt_scores(prompt_ids: Sequence[int]) -> list[float]:
    """The log-probabilities of a prompt, from its second token on, that the fake model has."""
    return [
        -int.from_bytes(mark[:2], "little") / 16 for mark in ContextMarks(b"").up_to(prompt_ids, len(prompt_ids))[1:]
    ]


def expected_output(request: Request) -> tuple[list[int], FinishReason]:
    """The whole completion of a request that nobody cuts short, computed from its prompt alone."""
    tokens = request.token_ids[: request.num_prompt]
    for count in range(1, request.sampling.max_tokens + 1):
        tokens.append(next_token(request.seed, tokens))
        if tokens[-1] in request.stop_ids and count > request.sampling.min_tokens:
            return tokens[request.num_prompt :], FinishReason.STOP
    return tokens[request.num_prompt :], FinishReason.LENGTH


class FakeModel(HostBlocks):
    """Answers batches from a cache of its own, and checks that the cache holds what the requests say.

    The cache is a `BlockBytes`, so that its blocks can move.
    """

    def __init__(self, blocks: BlockCache) -> None:
        self._blocks = blocks
        self._store = [bytearray(BLOCK_TOKENS * MARK_BYTES) for _ in range(blocks.num_blocks)]
        self._marks: dict[Request, ContextMarks] = {}
        self.num_computed = 0
        """Positions computed since the start."""

    def run(self, batch: Batch) -> StepResult:
        """Compute every item, in order."""
        assert batch.num_tokens == sum(item.num_tokens for item in batch.items)
        slots = [item.request.slot for item in batch.items]
        assert len(set(slots)) == len(slots) and min(slots) >= 0
        return StepResult(
            tuple(self._compute(item.request, item.start, item.num_tokens, item.samples) for item in batch.items),
            {item.request: self._score(item) for item in batch.items if item.scored},
        )

    def _score(self, item: BatchItem) -> PromptLogprobs:
        scores, places = item.request.prompt_scores, item.scored
        assert scores is not None and item.start < places.start <= places.stop <= item.start + item.num_tokens + 1
        return PromptLogprobs(places.start, prompt_scores(scores.prompt_ids)[places.start - 1 : places.stop - 1])

    @property
    def layout(self) -> BlockLayout:
        """See BlockBytes."""
        return BlockLayout("marks", 2, BLOCK_TOKENS * MARK_BYTES // 4, BLOCK_TOKENS * MARK_BYTES // 4)

    def views(self, block_id: int) -> list[memoryview]:
        """See BlockBytes: each block in four pieces."""
        store = memoryview(self._store[block_id])
        return [store[start : start + len(store) // 4] for start in range(0, len(store), len(store) // 4)]

    def _compute(self, request: Request, start: int, num_tokens: int, samples: bool) -> SampledToken | None:
        end = start + num_tokens
        last = end == len(request.token_ids) and request.samples
        assert num_tokens >= 1 and end <= len(request.token_ids) and samples == last
        assert start == request.num_computed, "a position was skipped or computed twice"
        marks = self._marks.setdefault(request, ContextMarks(request.salt)).up_to(request.token_ids, end)
        for position in range(start, end):
            block = request.block_ids[position // BLOCK_TOKENS]
            assert self._blocks.is_private(block), f"{request.key} writes into shared block {block}"
            place = position % BLOCK_TOKENS * MARK_BYTES
            self._store[block][place : place + MARK_BYTES] = marks[position]
        for first in range(0, end, BLOCK_TOKENS):
            count = min(BLOCK_TOKENS, end - first)
            found = self._store[request.block_ids[first // BLOCK_TOKENS]][: count * MARK_BYTES]
            assert found == b"".join(marks[first : first + count]), (
                f"{request.key} reads a foreign context after {first}"
            )
        self.num_computed += num_tokens
        return SampledToken(next_token(request.seed, request.token_ids)) if samples else None


class FakeEngine:
    """A scheduler, its cache, a fake model and a clock that only the test moves."""

    def __init__(self, *, num_blocks: int = 32, max_context: int = 4096, config: EngineConfig | None = None) -> None:
        self.clock = ManualClock()
        self.blocks = BlockCache(num_blocks, FINGERPRINT)
        self.model = FakeModel(self.blocks)
        self.scheduler = Scheduler(
            config or EngineConfig(audit="step", max_batch_tokens=256, max_running=8),
            self.blocks,
            self.clock,
            max_context=max_context,
        )
        self.transport = FakeTransport()
        self.moves = Moves(self.blocks, self.transport, self.clock, fingerprint=FINGERPRINT)
        self.scheduler.on_prefilled = self.moves.prefills.computed
        self.outputs: list[RequestOutput] = []
        self.scores: dict[RequestId, list[float]] = {}
        self.batches: list[Batch] = []

    def submit(self, *requests: Request) -> None:
        """Submit one after the other."""
        for request in requests:
            self.scheduler.submit(request)

    def step(self) -> Batch | None:
        """One whole step; the batch that ran, or None if there was nothing to do."""
        batch = self.scheduler.schedule()
        if batch is not None:
            self.scheduler.commit(batch, self.model.run(batch))
            self.batches.append(batch)
        self.collect()
        return batch

    def run(self, max_steps: int = 10_000) -> int:
        """Step until nothing is left to do; the number of steps."""
        for count in range(max_steps):
            if self.step() is None:
                return count
        raise AssertionError(f"not finished after {max_steps} steps")

    def collect(self) -> None:
        """Take what the scheduler has to say: of prompts each place once, in order, and before any token."""
        for report in self.scheduler.take_prompts():
            known = self.scores.setdefault(report.request_id, [])
            assert report.logprobs.position == len(known) + 1
            assert not any(output.tokens for output in self.outputs if output.request_id == report.request_id)
            known += report.logprobs.logprobs
        for output in self.scheduler.take_outputs():
            if output.request_id in self.moves.prefills:
                self.moves.prefills.ended(output)
            else:
                self.outputs.append(output)

    def tokens_of(self, request: Request) -> list[int]:
        """Emitted tokens of a request, checked to be contiguous and to end at most once."""
        tokens: list[int] = []
        news = [o for o in self.outputs if (o.request_id, o.index) == (request.id, request.index)]
        for output in news:
            assert output.position == len(tokens)
            tokens.extend(token.token_id for token in output.tokens)
        assert all(output.finish is None for output in news[:-1])
        return tokens

    def finish_of(self, request: Request) -> FinishReason | None:
        """How a request ended, as the outputs say."""
        ends = [o.finish for o in self.outputs if (o.request_id, o.index) == (request.id, request.index) and o.finish]
        assert len(ends) <= 1, f"{request.key} ended {len(ends)} times"
        return ends[0] if ends else None

    def last_output(self, request: Request) -> RequestOutput:
        """The latest news of a request."""
        return [o for o in self.outputs if (o.request_id, o.index) == (request.id, request.index)][-1]


def make_requests(
    name: str,
    prompt: Sequence[int],
    *,
    max_tokens: int = 4,
    min_tokens: int = 0,
    n: int = 1,
    seed: int = 7,
    ignore_eos: bool = True,
    salt: bytes = b"",
    prefix_cache: bool = True,
    priority: int = 0,
    deadline: float | None = None,
    prompt_logprobs: int | None = None,
    prompt_logprobs_from: int = 1,
) -> list[Request]:
    """The requests of one submission to the fake model."""
    sampling = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        n=n,
        seed=seed,
        ignore_eos=ignore_eos,
        prompt_logprobs=prompt_logprobs,
    )
    return expand_submission(
        RequestId(name),
        prompt,
        sampling,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(EOS,),
        prefix_cache=prefix_cache,
        salt=salt,
        priority=priority,
        deadline=deadline,
        prompt_logprobs_from=prompt_logprobs_from,
    )


def make_request(name: str, prompt: Sequence[int], **options: object) -> Request:
    """The one request of a submission with n=1; options as for `make_requests`."""
    (request,) = make_requests(name, prompt, **options)  # type: ignore[arg-type]
    return request


def prompt_of(num_tokens: int, start: int = 1) -> list[int]:
    """A prompt without the end token; different starts differ in the first token."""
    return [1 + (start + place * place) % (VOCAB_SIZE - 1) for place in range(num_tokens)]
