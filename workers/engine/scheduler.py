"""What each step computes: the life of every request on this rank, from submission to its one end.

One step: `schedule` chooses, the model runs the batch, `commit` takes the answer. In between, and at any other time
in the same thread, requests may be submitted and aborted. Decodes go first, one token each; what is left of the
step's token budget goes to prefills in chunks, running ones before new ones. The rules of order, admission and
preemption are written down in `policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from baleen.blocks import BLOCK_TOKENS, blocks_for
from baleen.clock import Clock
from baleen.config import EngineConfig
from baleen.errors import AlreadyRunning, QueueFull
from baleen.ids import RequestId
from baleen.reports import PromptReport
from workers.cache.blocks import BlockCache
from workers.engine import audit
from workers.engine.batch import (
    Batch,
    BatchItem,
    FinishReason,
    PromptLogprobs,
    RequestOutput,
    SampledToken,
    SamplingFailure,
    StepResult,
)
from workers.engine.deadlines import Deadlines
from workers.engine.pins import Pins
from workers.engine.policy import OrderedRequests, admission_reserve, chunk_tokens, place_in_order, require_fit
from workers.engine.prompt_scores import NOTHING
from workers.engine.request import Request, RequestState
from workers.engine.tallies import Tallies
from workers.engine.waiting import WaitingRequests


@dataclass(slots=True, eq=False)
class _Submission:
    """Completions of one submission that have not ended."""

    live: dict[int, Request] = field(default_factory=dict)
    prompt_computed: bool = False


class Scheduler:
    """Owner of all requests of a rank.

    max_context: most tokens of prompt and output together, resolved from configuration and model. on_prefilled: told of
    each prefill-only request with newly computed or found blocks, while it has them.
    """

    def __init__(self, config: EngineConfig, blocks: BlockCache, clock: Clock, *, max_context: int) -> None:
        assert max_context >= 1
        self._config = config
        self._blocks = blocks
        self._clock = clock
        self._max_context = max_context
        self._submissions: dict[RequestId, _Submission] = {}
        self._waiting = WaitingRequests()
        self._running = OrderedRequests()
        self._free_slots = list(range(config.max_running - 1, -1, -1))
        self._in_flight: Batch | None = None
        self._ended_in_flight: list[Request] = []
        self._outputs: list[RequestOutput] = []
        self._prompts: list[PromptReport] = []
        self._deadlines = Deadlines()
        self._num_submitted = 0
        self.tallies = Tallies()
        self._pins = Pins()
        self._audited = True
        self.on_prefilled: Callable[[Request], None] = lambda request: None
        self.on_started: Callable[[Request], None] = lambda request: None
        self.on_preempted: Callable[[Request], None] = lambda request: None

    @property
    def blocks(self) -> BlockCache:
        """The blocks that requests are given."""
        return self._blocks

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._submissions)

    @property
    def num_waiting(self) -> int:
        """Requests without blocks."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Known tokens of the waiting requests, an upper bound of what they must compute to start."""
        return self._waiting.num_tokens

    @property
    def num_running(self) -> int:
        """Requests with blocks."""
        return len(self._running)

    @property
    def num_running_tokens(self) -> int:
        """Known tokens of the running requests."""
        return sum(request.num_tokens for request in self._running)

    @property
    def num_spoken_for(self) -> int:
        """Blocks that must stay available when others are set aside for a transfer, the request's own tail included."""
        waiting = blocks_for(self._waiting.num_tokens)
        return admission_reserve(self._blocks.num_blocks, len(self._running)) + waiting + 1

    def submit(self, request: Request) -> None:
        """Take a fresh request.

        Raises InvalidRequest if it exceeds the context, AlreadyRunning if its id is in use, CapacityError if it exceeds
        the whole pool or the queue is full. A refused request leaves no trace.
        """
        self.submit_all([request])

    def submit_all(self, requests: list[Request], *, unpin: Callable[[], None] | None = None) -> None:
        """Take all completions of one submission, or none; `submit` tells the errors.

        unpin: called once, when the first of them has its blocks, when all have ended, or when the room is needed.
        """
        self._refuse_unfit(requests)
        now = self._clock.now()
        for request in requests:
            assert request.state is RequestState.WAITING and not request.generation
            request.order = place_in_order(
                priority=request.priority,
                arrival_s=now,
                sequence=self._num_submitted,
                aging_s=self._config.aging_s,
            )
            self._num_submitted += 1
            submission = self._submissions.setdefault(request.id, _Submission())
            if submission.live and not submission.prompt_computed:
                self._waiting.hold_back(request)
            else:
                self._waiting.add(request)
            submission.live[request.index] = request
            self._deadlines.note(request.deadline)
        if unpin is not None:
            self._pins.add(requests[0].id, unpin)
        self._audited = False

    def abort(self, request_id: RequestId, index: int | None = None, *, detail: str = "") -> None:
        """End one completion, or all of a submission, as cancelled. Whatever has ended already is left alone."""
        submission = self._submissions.get(request_id)
        if submission is None:
            return
        for request in list(submission.live.values()):
            if index is None or request.index == index:
                self._end(request, FinishReason.CANCELLED, detail)

    def schedule(self) -> Batch | None:
        """Choose the next step's work; None if there is none, or if reservations and transfers keep all blocks.

        Requests past their deadline end here. The batch must be committed before the next call.
        """
        assert self._in_flight is None, "the last batch was not committed"
        self._end_expired()
        if not self._submissions:
            if not self._audited:
                self.check()
                self._audited = True
            return None
        items: list[BatchItem] = []
        prefills = self._schedule_decodes(items)
        budget = self._config.max_batch_tokens - len(items)
        for request in prefills:
            budget -= self._schedule_chunk(request, budget, items)
        budget -= self._admit(budget, items)
        if not items and self._pins.drop_all():
            budget -= self._admit(budget, items)
        if not items:
            assert self._blocks.is_encumbered or not self._submissions, "requests are live, but none can make progress"
            return None
        self._in_flight = Batch(tuple(items), self._config.max_batch_tokens - budget)
        return self._in_flight

    def commit(self, batch: Batch, result: StepResult) -> None:
        """Take the model's answer to the batch that `schedule` gave last."""
        assert batch is self._in_flight, "this batch was not the last one scheduled, or is committed already"
        self._in_flight = None
        outputs = self._outputs
        for item, sampled in zip(batch.items, result.sampled, strict=True):
            request = item.request
            if request.state is RequestState.FINISHED:
                continue
            assert (sampled is not None) is item.samples
            request.advance(item.num_tokens)
            self._blocks.register_computed(request)
            failure = sampled if isinstance(sampled, SamplingFailure) else None
            if item.scored and failure is None:
                failure = self._note_scored(item, result.scored[request])
            if failure is not None:
                self._end(request, failure.reason, failure.detail)
                continue
            if not isinstance(sampled, SampledToken):
                self._note_computed(request)
                continue
            position = request.num_output
            finish = request.append(sampled.token_id, max_context=self._max_context)
            self.tallies.output_tokens += 1
            if position == request.num_delivered:
                self._admit_siblings(request.id)
            if finish is not None:
                self._end(request, finish, "", (sampled,))
            else:
                outputs.append(request.output(position, (sampled,)))
        # aborted while the model was writing into their blocks, which nobody else could be given until now
        for request in self._ended_in_flight:
            self._vacate(request)
        self._ended_in_flight.clear()
        if self._config.audit == "step":
            self.check()
        else:
            self._blocks.check_counts()

    def take_outputs(self) -> list[RequestOutput]:
        """Everything that happened since the last call: tokens and ends, in order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def take_prompts(self) -> list[PromptReport]:
        """Log-probabilities of prompts since the last call, in order."""
        prompts, self._prompts = self._prompts, []
        return prompts

    def check(self) -> None:
        """Audit every request, slot and block. Raises AccountingError that names what is wrong and whose it is."""
        live = [request for submission in self._submissions.values() for request in submission.live.values()]
        for request in live:
            request.check()
        holders = {request.key: request for request in (*live, *self._ended_in_flight)}
        self._blocks.check(holders)
        audit.check_placed(live, [*self._waiting, *self._running])
        taken = (request.slot for request in (*self._running, *self._ended_in_flight))
        audit.check_slots([*self._free_slots, *taken], self._config.max_running)
        audit.check_private(self._running, self._blocks)

    def _refuse_unfit(self, requests: list[Request]) -> None:
        keys = {request.key for request in requests}
        assert len(keys) == len(requests)
        for request in requests:
            submission = self._submissions.get(request.id)
            if submission and request.index in submission.live:
                raise AlreadyRunning(f"{request.key} is already running or queued")
            require_fit(request, max_context=self._max_context, num_blocks=self._blocks.num_blocks)
        if len(self._waiting) + len(requests) > self._config.max_waiting:
            raise QueueFull(
                f"{len(self._waiting)} requests wait and {len(requests)} came, the queue takes at most "
                f"{self._config.max_waiting}"
            )

    def _schedule_decodes(self, items: list[BatchItem]) -> list[Request]:
        """One token for each request that is ready to sample; returns the others, which are in prefill."""
        prefills: list[Request] = []
        running = self._running
        place = 0
        # preemption shortens the list behind the current place, or takes the current request, which is then the last
        while place < len(running):
            request = running[place]
            num_tokens = len(request.token_ids)
            if num_tokens - request.num_computed > 1 or not request.samples:
                prefills.append(request)
            elif num_tokens <= len(request.block_ids) * BLOCK_TOKENS or self._grow(request):
                items.append(BatchItem(request, num_tokens - 1, 1, True))
            place += 1
        return prefills

    def _grow(self, request: Request) -> bool:
        """One block more for a running request, from those after it if need be; False if it had to give way."""
        while not self._blocks.extend(request):
            if self._pins.drop_all():
                continue
            victim = self._running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self._running.remove(request)
        self._blocks.release(request)
        self._free_slots.append(request.slot)
        request.preempt()
        self._waiting.add(request)
        self.tallies.preemptions += 1
        self.on_preempted(request)

    def _admit(self, budget: int, items: list[BatchItem]) -> int:
        """Start waiting requests as long as they find room; the tokens of the budget that their chunks take."""
        rest = budget
        while rest and (started := self._admit_first()):
            if started.prefill_only:
                self._note_computed(started)
            rest -= self._schedule_chunk(started, rest, items)
        return budget - rest

    def _admit_first(self) -> Request | None:
        """Start the first waiting request, or nobody if it finds no place."""
        request = self._waiting.first()
        if request is None or not self._free_slots:
            return None
        reserve = admission_reserve(self._blocks.num_blocks, len(self._running))
        num_computed = self._blocks.admit(request, reserve=reserve)
        if num_computed is None:
            return None
        self._waiting.remove(request)
        tallies, is_first = self.tallies, not request.generation
        tallies.starts += 1
        request.start(slot=self._free_slots.pop(), generation=tallies.starts, num_computed=num_computed)
        if is_first:
            tallies.prompt_tokens += request.num_prompt
            tallies.cached_prompt_tokens += request.num_cached
        self._running.add(request)
        self._pins.drop(request.id)
        self.on_started(request)
        return request

    def _note_computed(self, request: Request) -> None:
        """A request that does not sample now has new blocks: hand on a prefill's, and end it if that is all it does."""
        if request.prefill_only:
            self.on_prefilled(request)
        if not request.samples and not request.num_uncomputed:
            self._end(request, FinishReason.LENGTH, "")

    def _note_scored(self, item: BatchItem, scored: PromptLogprobs | SamplingFailure) -> SamplingFailure | None:
        """Report places of a prompt, or say why that cannot be."""
        if isinstance(scored, SamplingFailure):
            return scored
        assert item.request.prompt_scores is not None
        item.request.prompt_scores.reported(item.scored)
        self._prompts.append(PromptReport(item.request.id, scored))
        return None

    def _schedule_chunk(self, request: Request, budget: int, items: list[BatchItem]) -> int:
        uncomputed = request.num_uncomputed
        chunk = chunk_tokens(uncomputed, budget=budget, max_chunk=self._config.max_chunk_tokens)
        if chunk:
            start, scores = request.num_computed, request.prompt_scores
            scored = scores.places(start, chunk) if scores is not None else NOTHING
            items.append(BatchItem(request, start, chunk, chunk == uncomputed and request.samples, scored))
        return chunk

    def _admit_siblings(self, request_id: RequestId) -> None:
        submission = self._submissions[request_id]
        if not submission.prompt_computed:
            submission.prompt_computed = True
            self._waiting.admit_siblings(request_id)

    def _vacate(self, request: Request) -> None:
        self._blocks.release(request)
        self._free_slots.append(request.slot)
        request.vacate()

    def _end(self, request: Request, reason: FinishReason, detail: str, tokens: tuple[SampledToken, ...] = ()) -> None:
        """The one place where a request ends: state, queue or slot, blocks, siblings, answer."""
        submission = self._submissions[request.id]
        leads = not submission.prompt_computed and not self._waiting.is_held_back(request)
        was_running = request.state is RequestState.RUNNING
        if was_running:
            self._running.remove(request)
        else:
            self._waiting.remove(request)
        ended = request.end(reason)
        assert ended, f"{request.key} ended twice"
        if was_running and self._is_in_flight(request):
            self._ended_in_flight.append(request)
        elif was_running:
            self._vacate(request)
        del submission.live[request.index]
        if not submission.live:
            self._pins.drop(request.id)
            del self._submissions[request.id]
        elif leads:
            self._waiting.promote(request.id)
        self._outputs.append(request.output(request.num_output - len(tokens), tokens, detail))

    def _is_in_flight(self, request: Request) -> bool:
        return self._in_flight is not None and any(item.request is request for item in self._in_flight.items)

    def _end_expired(self) -> None:
        """End what is past its deadline."""
        now = self._clock.now()
        if not self._deadlines.take_due(now):
            return
        for submission in list(self._submissions.values()):
            for request in list(submission.live.values()):
                if request.deadline is not None and request.deadline <= now:
                    detail = f"deadline passed {now - request.deadline:.3f} s ago, after {request.num_output} tokens"
                    self._end(request, FinishReason.DEADLINE, detail)
                else:
                    self._deadlines.note(request.deadline)
