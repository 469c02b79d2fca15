"""The step loop: receive, schedule, agree, emit, run, commit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from baleen.blocks import BLOCK_TOKENS
from baleen.clock import Clock
from baleen.errors import AlreadyRunning, BaleenError, DrainingError
from baleen.ids import RequestId
from baleen.reports import Load
from workers.engine.batch import Batch, FinishReason, RequestOutput, StepResult
from workers.engine.inbox import Inbox
from workers.engine.load import measure_load
from workers.engine.messages import (
    Abort,
    Command,
    Drain,
    Event,
    Fetch,
    Prefill,
    Refused,
    ReleaseReservation,
    Reserve,
    StepReport,
    Submit,
    WithdrawFetch,
)
from workers.engine.meters import LoopMeters
from workers.engine.speed import SpeedMeter
from workers.engine.submission import expand_submission, prefill_request
from workers.parallel.lockstep import NO_ROWS, DecodeSize
from workers.transfer.moves import Moves

if TYPE_CHECKING:
    from baleen.config import RankConfig
    from baleen.model_spec import ModelSpec
    from workers.engine.scheduler import Scheduler
    from workers.parallel.group import Agreement, Group

IDLE_WAIT_S = 5.0
"""Longest sleep of an idle rank before it marks that it is alive; commands and peers wake it at once."""

GATHER_WAIT_S = 0.01
"""Sleep of a rank that has drained, between looks whether the others have."""

DRAINED = "draining: the rank leaves, the request can continue elsewhere"
"""Detail of a request that had not ended when the time to drain was over."""

PUSH_LOOKS = 200
PUSH_LOOK_S = 0.005
"""How often, and how far apart, a rank that leaves looks whether its last transfers have ended."""

STALLED_WAIT_S = 0.05
"""Sleep of a rank whose requests find no block, between looks whether their deadlines have passed."""

LOAD_INTERVAL_S = 0.1
"""Least time between reports that carry nothing but the load."""


class StepRunner(Protocol):
    """What computes a batch: `workers.model.runner.Runner`, or a fake."""

    def run(self, batch: Batch | None, decode: DecodeSize | None = None) -> StepResult:
        """Compute a step, and return when it is over: its blocks are read by others from then on.

        With None, only take part in the group's. decode: of an Agreement.
        """
        ...


class StepLoop:
    """One rank's main thread.

    A step's outputs leave the rank once the next `Group.exchange` has shown that every rank finished that step. So a
    token that was emitted is one that all ranks computed, and survivors of a lost rank never disagree about it.
    """

    def __init__(
        self,
        config: RankConfig,
        spec: ModelSpec,
        *,
        scheduler: Scheduler,
        runner: StepRunner,
        group: Group,
        inbox: Inbox,
        emit: Callable[[Event], None],
        clock: Clock,
        moves: Moves | None = None,
        publish: Callable[[], None] | None = None,
        on_begun: Callable[[Submit | Prefill], None] = lambda command: None,
    ) -> None:
        """`moves`: what this rank exchanges with others; None: it keeps to itself.

        publish: called in each step, when the blocks of the last one are registered.
        on_begun: told of each request that was taken.
        """
        self._config = config
        self._spec = spec
        self._scheduler = scheduler
        self._runner = runner
        self._group = group
        self._inbox = inbox
        self._emit = emit
        self._clock = clock
        self._moves = moves or Moves(scheduler.blocks, None, clock, fingerprint=b"")
        scheduler.on_prefilled = self._moves.prefills.computed
        self._moves.start(inbox.put)
        self._publish = publish
        self._on_begun = on_begun
        self._speed = SpeedMeter()
        self.meters = LoopMeters()
        self._step = 0
        self._left = False
        self._live: dict[RequestId, int] = {}
        self._drain: Drain | None = None
        self._drain_deadline = 0.0
        self._load: Load | None = None
        self._load_time = clock.now()

    @property
    def load(self) -> Load | None:
        """The latest that was reported; for any thread."""
        return self._load

    def run(self) -> str:
        """Step until the group has drained; returns why it did.

        Raises EpochEnded if the group ended otherwise, and whatever goes wrong in a step.
        """
        while not self._left:
            self.step()
        assert self._drain is not None
        return self._drain.reason

    def step(self) -> None:
        """One step of the engine; an idle one sleeps until there is work."""
        now = self._clock.now
        times = [now()]
        self._receive()
        batch = self._scheduler.schedule()
        times.append(now())
        agreement = self._agree(batch)
        times.append(now())
        self._emit_outputs(agreement)
        if self._publish is not None:
            self._publish()
        times.append(now())
        if agreement.all_idle:
            self._rest(agreement)
            return
        result = self._compute(batch, agreement)
        times.append(now())
        self._commit(batch, result)
        times.append(now())
        self.meters.stepped(times)

    def _receive(self) -> None:
        for command in self._inbox.take():
            self._obey(command)
        self._moves.reap()
        if self._drain is not None and self._clock.now() >= self._drain_deadline:
            self._fail_all()

    def _obey(self, command: Command) -> None:
        match command:
            case Submit() | Prefill():
                self._begin(command)
            case Abort():
                if command.asked_at is not None and command.request_id in self._live:
                    self.meters.aborting(command.request_id, command.asked_at)
                self._scheduler.abort(command.request_id, command.index)
                self._moves.prefills.abort(command.request_id)
            case Drain():
                self._begin_drain(command)
            case Reserve():
                self._reserve(command)
            case ReleaseReservation():
                self._moves.reservations.release(command.ticket)
            case Fetch():
                self._fetch(command)
            case WithdrawFetch():
                self._moves.fetches.withdraw(command.fetch)
            case _:
                needless = self._moves.hear(command)
                if needless is not None:
                    self._scheduler.abort(needless)

    def _begin(self, command: Submit | Prefill) -> None:
        request_id = command.request_id
        try:
            self._require_serving()
            if request_id in self._live or request_id in self._moves.prefills:
                raise AlreadyRunning(f"id {request_id} belongs to a request that has not ended")
            if isinstance(command, Submit):
                self._submit(command)
            else:
                self._prefill(command)
            self._on_begun(command)
        except BaleenError as error:
            self._emit(refusal(request_id, error))

    def _require_serving(self) -> None:
        if self._drain is not None:
            raise DrainingError(f"rank {self._group.rank} takes no new requests: {self._drain.reason}")

    def _submit(self, command: Submit) -> None:
        salt = command.cache_salt.encode()
        claim = self._moves.reservations.claim(command.ticket, salt) if command.ticket else None
        try:
            requests = expand_submission(
                command.request_id,
                command.token_ids,
                command.sampling,
                vocab_size=self._spec.vocab_size,
                eos_token_ids=self._spec.eos_token_ids,
                prefix_cache=self._config.cache.prefix_cache or claim is not None,
                salt=claim.salt if claim is not None else salt,
                priority=command.priority,
                deadline=command.deadline,
                num_delivered=command.num_delivered,
                token_masks=command.token_masks,
                prompt_logprobs_from=command.prompt_logprobs_from,
            )
            self._scheduler.submit_all(requests, unpin=claim.unpin if claim is not None else None)
        except BaleenError:
            if claim is not None:
                claim.unpin()
            raise
        self._live[command.request_id] = len(requests)

    def _prefill(self, command: Prefill) -> None:
        self._moves.prefills.require_possible(command)
        salt = command.cache_salt.encode()
        claim = self._moves.reservations.claim(command.ticket, salt) if command.ticket else None
        unpin = claim.unpin if claim is not None else None
        try:
            request = prefill_request(
                command.request_id,
                command.token_ids,
                vocab_size=self._spec.vocab_size,
                prefix_cache=self._config.cache.prefix_cache or claim is not None,
                salt=claim.salt if claim is not None else salt,
                priority=command.priority,
                deadline=command.deadline,
                prompt_logprobs=command.prompt_logprobs,
                prompt_logprobs_from=command.prompt_logprobs_from,
            )
            if request is not None:
                self._scheduler.submit_all([request], unpin=unpin)
                self._live[command.request_id] = 1
            elif unpin is not None:
                unpin()
        except BaleenError:
            if unpin is not None:
                unpin()
            raise
        self._moves.prefills.begin(command, request.num_tokens // BLOCK_TOKENS if request is not None else 0)

    def _reserve(self, command: Reserve) -> None:
        try:
            self._require_serving()
            found = self._moves.reservations.reserve(command, reserve=self._scheduler.num_spoken_for)
        except BaleenError as error:
            if command.reply.set_running_or_notify_cancel():
                command.reply.set_exception(error)
        else:
            if command.reply.set_running_or_notify_cancel():
                command.reply.set_result(found)
            else:
                self._moves.reservations.release(found.ticket)

    def _fetch(self, command: Fetch) -> None:
        try:
            self._require_serving()
            self._moves.fetches.begin(command)
        except BaleenError as error:
            if command.reply.set_running_or_notify_cancel():
                command.reply.set_exception(error)

    def _begin_drain(self, command: Drain) -> None:
        """Start to leave, or shorten the time for it; a second command never lengthens it."""
        timeout_s = self._config.parallel.drain_timeout_s if command.timeout_s is None else command.timeout_s
        deadline = self._clock.now() + timeout_s
        self._drain_deadline = deadline if self._drain is None else min(deadline, self._drain_deadline)
        self._drain = self._drain or command
        self._moves.reservations.release_all()

    def _agree(self, batch: Batch | None) -> Agreement:
        num_tokens = 0 if batch is None else batch.num_tokens
        decode = NO_ROWS if batch is None else batch.decode
        agreement = self._group.exchange(self._step, num_tokens, draining=self._drain is not None, decode=decode)
        self._step += 1
        if agreement.any_draining and self._drain is None:
            ranks = [str(rank) for rank, draining in enumerate(agreement.draining_per_rank) if draining]
            self._begin_drain(Drain(f"rank {', '.join(ranks)} of the group drains"))
        return agreement

    def _emit_outputs(self, agreement: Agreement) -> None:
        """Report everything since the last report: all that the scheduler has is now known to be final."""
        prompts, outputs = self._scheduler.take_prompts(), self._take_outputs()
        now = self._clock.now()
        if prompts or outputs or agreement.all_idle or now >= self._load_time + LOAD_INTERVAL_S:
            load = measure_load(self._scheduler, self._speed, draining=self._drain is not None)
            if prompts or outputs or load != self._load:
                # a rank that slept through the end of the epoch must not speak for it
                self._group.check()
                self._emit(StepReport(agreement.step, tuple(outputs), load, tuple(prompts)))
                self._load, self._load_time = load, now
        self._emit_prefills()

    def _emit_prefills(self) -> None:
        for done in self._moves.prefills.take_done():
            self._group.check()
            self._emit(done)

    def _compute(self, batch: Batch | None, agreement: Agreement) -> StepResult:
        begin = self._clock.now()
        self._group.report("compute")
        result = self._runner.run(batch, agreement.decode)
        self._group.report("commit")
        if batch is not None:
            self._speed.measure(batch, self._clock.now() - begin)
        return result

    def _commit(self, batch: Batch | None, result: StepResult) -> None:
        if batch is not None:
            self._scheduler.commit(batch, result)

    def _rest(self, agreement: Agreement) -> None:
        """Nobody has a token to compute: leave if all want to, else sleep until something comes."""
        if agreement.may_leave:
            self._leave(agreement)
        elif agreement.any_draining:
            self._group.wait_for_work(GATHER_WAIT_S)
        else:
            while not self._group.wait_for_work(self._idle_wait_s()):
                # blocks that come back by themselves may be what a request waits for
                if self._moves.reap() or self._scheduler.has_work:
                    return

    def _idle_wait_s(self) -> float:
        if self._scheduler.has_work:
            return STALLED_WAIT_S
        deadline = self._moves.next_deadline
        return IDLE_WAIT_S if deadline is None else min(IDLE_WAIT_S, max(0.001, deadline - self._clock.now()))

    def _leave(self, agreement: Agreement) -> None:
        """Answer everyone who still waits for an answer, and end the loop."""
        self._await_pushes()
        for command in self._inbox.close():
            self._obey(command)
        self._fail_all()
        self._emit_outputs(agreement)
        self._moves.stop_pushes(DRAINED)
        self._emit_prefills()
        self._moves.close()
        self._left = True

    def _await_pushes(self) -> None:
        """Give transfers whose blocks are all computed a moment to be acknowledged. The other ranks are not needed."""
        for _ in range(PUSH_LOOKS):
            if not self._moves.is_pushing:
                break
            time.sleep(PUSH_LOOK_S)
            for command in self._inbox.take():
                self._obey(command)

    def _fail_all(self) -> None:
        """End what has not ended, as failed: its tokens so far are delivered, so that it can continue elsewhere."""
        for request_id in list(self._live):
            self._scheduler.abort(request_id, detail=DRAINED)
        self._moves.cancel_pushes(DRAINED)

    def _take_outputs(self) -> list[RequestOutput]:
        """What the scheduler has to say; the ends that draining forced are failures, not wishes of the client."""
        outputs: list[RequestOutput] = []
        for output in self._scheduler.take_outputs():
            if output.finish is not None:
                self.meters.ended(output.request_id, output.finish, self._clock.now())
                self._live[output.request_id] -= 1
                if not self._live[output.request_id]:
                    del self._live[output.request_id]
            if output.request_id in self._moves.prefills:
                self._moves.prefills.ended(output)
            elif output.finish is FinishReason.CANCELLED and output.detail == DRAINED:
                outputs.append(replace(output, finish=FinishReason.FAILED))
            else:
                outputs.append(output)
        return outputs


def refusal(request_id: RequestId, error: BaleenError) -> Refused:
    """The answer to a request that was not taken."""
    return Refused(request_id, type(error).__name__, getattr(error, "field", None), str(error))
