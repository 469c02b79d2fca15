"""The step loop: receive, schedule, agree, emit, run, commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from baleen.clock import Clock
from baleen.errors import BaleenError, DrainingError, InvalidRequest
from baleen.ids import RequestId
from workers.engine.batch import Batch, FinishReason, RequestOutput, StepResult
from workers.engine.inbox import Inbox
from workers.engine.messages import Abort, Command, Drain, Event, Load, Refused, StepReport, Submit
from workers.engine.speed import SpeedMeter
from workers.engine.submission import expand_submission

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

LOAD_INTERVAL_S = 0.1
"""Least time between reports that carry nothing but the load."""


class StepRunner(Protocol):
    """What computes a batch: `workers.model.runner.Runner`, or a fake."""

    def run(self, batch: Batch | None) -> StepResult:
        """Compute a step; with None, only take part in the group's."""
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
    ) -> None:
        self._config = config
        self._spec = spec
        self._scheduler = scheduler
        self._runner = runner
        self._group = group
        self._inbox = inbox
        self._emit = emit
        self._clock = clock
        self._speed = SpeedMeter()
        self._step = 0
        self._left = False
        self._live: dict[RequestId, int] = {}
        self._drain: Drain | None = None
        self._drain_deadline = 0.0
        self._load: Load | None = None
        self._load_time = clock.now()

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
        self._receive()
        batch = self._scheduler.schedule()
        agreement = self._agree(batch)
        self._emit_outputs(agreement)
        if agreement.all_idle:
            self._rest(agreement)
        else:
            self._commit(batch, self._compute(batch))

    def _receive(self) -> None:
        for command in self._inbox.take():
            self._obey(command)
        if self._drain is not None and self._scheduler.has_work and self._clock.now() >= self._drain_deadline:
            self._fail_all()

    def _obey(self, command: Command) -> None:
        match command:
            case Submit():
                self._submit(command)
            case Abort():
                self._scheduler.abort(command.request_id, command.index)
            case Drain():
                self._begin_drain(command)

    def _submit(self, command: Submit) -> None:
        try:
            if self._drain is not None:
                raise DrainingError(f"rank {self._group.rank} takes no new requests: {self._drain.reason}")
            if command.request_id in self._live:
                raise InvalidRequest(f"id {command.request_id} belongs to a request that has not ended", field="id")
            requests = expand_submission(
                command.request_id,
                command.token_ids,
                command.sampling,
                vocab_size=self._spec.vocab_size,
                eos_token_ids=self._spec.eos_token_ids,
                prefix_cache=self._config.cache.prefix_cache,
                salt=command.cache_salt.encode(),
                priority=command.priority,
                deadline=command.deadline,
            )
            self._scheduler.submit_all(requests)
            self._live[command.request_id] = len(requests)
        except BaleenError as error:
            self._emit(refusal(command.request_id, error))

    def _begin_drain(self, command: Drain) -> None:
        """Start to leave, or shorten the time for it; a second command never lengthens it."""
        timeout_s = self._config.parallel.drain_timeout_s if command.timeout_s is None else command.timeout_s
        deadline = self._clock.now() + timeout_s
        self._drain_deadline = deadline if self._drain is None else min(deadline, self._drain_deadline)
        self._drain = self._drain or command

    def _agree(self, batch: Batch | None) -> Agreement:
        num_tokens = 0 if batch is None else batch.num_tokens
        agreement = self._group.exchange(self._step, num_tokens, draining=self._drain is not None)
        self._step += 1
        if agreement.any_draining and self._drain is None:
            ranks = [str(rank) for rank, draining in enumerate(agreement.draining_per_rank) if draining]
            self._begin_drain(Drain(f"rank {', '.join(ranks)} of the group drains"))
        return agreement

    def _emit_outputs(self, agreement: Agreement) -> None:
        """Report everything since the last report: all that the scheduler has is now known to be final."""
        outputs = self._take_outputs()
        now = self._clock.now()
        if not outputs and not agreement.all_idle and now < self._load_time + LOAD_INTERVAL_S:
            return
        load = self._measure_load()
        if outputs or load != self._load:
            # a rank that slept through the end of the epoch must not speak for it
            self._group.check()
            self._emit(StepReport(agreement.step, tuple(outputs), load))
            self._load, self._load_time = load, now

    def _compute(self, batch: Batch | None) -> StepResult:
        begin = self._clock.now()
        self._group.report("compute")
        result = self._runner.run(batch)
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
            self._leave()
        elif agreement.any_draining:
            self._group.wait_for_work(GATHER_WAIT_S)
        else:
            while not self._group.wait_for_work(IDLE_WAIT_S):
                pass

    def _leave(self) -> None:
        """Answer what came since the last look at the inbox, and end the loop."""
        for command in self._inbox.close():
            self._obey(command)
        assert not self._scheduler.has_work, "a rank without a token to compute has no request"
        self._left = True

    def _fail_all(self) -> None:
        """End what has not ended, as failed: its tokens so far are delivered, so that it can continue elsewhere."""
        for request_id in list(self._live):
            self._scheduler.abort(request_id, detail=DRAINED)

    def _take_outputs(self) -> list[RequestOutput]:
        """What the scheduler has to say; the ends that draining forced are failures, not wishes of the client."""
        outputs = self._scheduler.take_outputs()
        for place, output in enumerate(outputs):
            if output.finish is None:
                continue
            self._live[output.request_id] -= 1
            if not self._live[output.request_id]:
                del self._live[output.request_id]
            if output.finish is FinishReason.CANCELLED and output.detail == DRAINED:
                outputs[place] = replace(output, finish=FinishReason.FAILED)
        return outputs

    def _measure_load(self) -> Load:
        scheduler = self._scheduler
        return Load(
            free_blocks=scheduler.num_free_blocks + scheduler.num_cached_blocks,
            num_waiting=scheduler.num_waiting,
            num_running=scheduler.num_running,
            queued_tokens=scheduler.num_waiting_tokens,
            running_tokens=scheduler.num_running_tokens,
            prefill_tokens_per_s=self._speed.prefill_tokens_per_s,
            decode_tokens_per_s=self._speed.decode_tokens_per_s,
        )


def refusal(request_id: RequestId, error: BaleenError) -> Refused:
    """The answer to a request that was not taken."""
    return Refused(request_id, type(error).__name__, getattr(error, "field", None), str(error))
