"""Whatever is submitted, aborted, preempted or late: no block is lost, tokens are right, each ends exactly once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baleen.config import EngineConfig
from baleen.errors import CapacityError
from tests.support.engine import FakeEngine, expected_output, make_requests, prompt_of
from workers.engine.batch import FinishReason
from workers.engine.request import Request

CUT_SHORT = (FinishReason.CANCELLED, FinishReason.DEADLINE)
# few beginnings, so that many requests share one, and lengths on both sides of a block's border
prompts = st.builds(
    lambda base, shared, tail, start: prompt_of(shared, base) + prompt_of(tail, start),
    st.integers(0, 1),
    st.sampled_from([0, 63, 64, 65, 128, 150]),
    st.sampled_from([1, 2, 30, 62, 63, 64]),
    st.integers(0, 2),
)


def assert_ended_well(engine: FakeEngine, request: Request, allowed: tuple[FinishReason, ...] = ()) -> None:
    """One end, whose tokens are the fake model's own, all of them unless it was cut short for an allowed reason."""
    tokens, finish = expected_output(request)
    said, end = engine.tokens_of(request), engine.finish_of(request)
    assert end is not None, f"{request.key} never ended"
    if end in CUT_SHORT:
        assert end in allowed
        assert said == tokens[: len(said)]
    else:
        assert (said, end) == (tokens, finish)
    assert request.token_ids == request.token_ids[: request.num_prompt] + said
    assert request.finish is end and not request.block_ids


class SchedulerMachine(RuleBasedStateMachine):
    """Random work on a tiny pool; the fake model checks every context that it reads."""

    @initialize(
        num_blocks=st.integers(4, 8),
        max_running=st.sampled_from([1, 3, 3, 5]),
        budget=st.sampled_from([5, 40, 300]),
        chunk=st.sampled_from([7, 64, 1000]),
    )
    def begin(self, num_blocks: int, max_running: int, budget: int, chunk: int) -> None:
        config = EngineConfig(
            audit="step", max_batch_tokens=budget, max_chunk_tokens=chunk, max_running=max_running, max_waiting=12
        )
        self.engine = FakeEngine(num_blocks=num_blocks, config=config)
        self.requests: list[Request] = []
        self.aborted: set[Request] = set()
        self.count = 0

    @rule(
        prompt=prompts,
        max_tokens=st.sampled_from([1, 5, 70, 130]),
        min_tokens=st.sampled_from([0, 1]),
        n=st.sampled_from([1, 1, 2, 3]),
        seed=st.integers(0, 2),
        ignore_eos=st.booleans(),
        salt=st.sampled_from([b"", b"", b"x"]),
        prefix_cache=st.sampled_from([True, True, False]),
        priority=st.integers(-1, 1),
        patience=st.sampled_from([None, None, None, None, 0, 3, 30]),
    )
    def submit(
        self, prompt: list[int], n: int, seed: int, salt: bytes, priority: int, patience: int | None, **options: int
    ) -> None:
        self.count += 1
        deadline = None if patience is None else self.engine.clock.now() + patience
        requests = make_requests(
            f"r{self.count}", prompt, n=n, seed=seed, salt=salt, priority=priority, deadline=deadline, **options
        )
        try:
            self.engine.scheduler.submit_all(requests)
        except CapacityError:
            return
        self.requests.extend(requests)

    @rule(places=st.lists(st.integers(0, 5), min_size=2, max_size=4))
    def crowd(self, places: list[int]) -> None:
        """Short prompts with long outputs: all are admitted, and then they outgrow the pool."""
        for place in places:
            self.submit(prompt_of(50 + place, place), 1, 0, b"", 0, None, max_tokens=100)

    @rule(count=st.sampled_from([1, 3, 20, 80]))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    @rule(seconds=st.sampled_from([0.5, 2.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.engine.clock.advance(seconds)

    @precondition(lambda self: self.engine.scheduler.has_work)
    @rule(data=st.data(), whole=st.booleans())
    def abort(self, data: st.DataObject, whole: bool) -> None:
        self._abort(data.draw(st.sampled_from(self.requests[-6:])), whole)

    @precondition(lambda self: self.engine.scheduler.num_running)
    @rule(data=st.data(), before=st.booleans())
    def abort_between_schedule_and_commit(self, data: st.DataObject, before: bool) -> None:
        batch = self.engine.scheduler.schedule()
        if batch is None:
            return
        victims = data.draw(st.sets(st.sampled_from([item.request for item in batch.items]), min_size=1))
        result = None if before else self.engine.model.run(batch)
        for victim in victims:
            self._abort(victim, whole=False)
            self.engine.scheduler.check()
        self.engine.scheduler.commit(batch, result or self.engine.model.run(batch))
        self.engine.collect()

    def _abort(self, request: Request, whole: bool) -> None:
        self.engine.scheduler.abort(request.id, None if whole else request.index)
        self.engine.collect()
        hit = [other for other in self.requests if other.id == request.id and (whole or other is request)]
        assert all(other.finish is not None for other in hit)
        self.aborted.update(hit)

    @invariant()
    def books_are_right(self) -> None:
        scheduler, blocks = self.engine.scheduler, self.engine.blocks
        scheduler.check()
        assert blocks.num_free + blocks.num_held + blocks.num_cached == blocks.num_blocks
        live = [request for request in self.requests if request.finish is None]
        assert scheduler.num_waiting + scheduler.num_running == len(live)
        assert scheduler.has_work == bool(live)
        assert scheduler.num_waiting_tokens + scheduler.num_running_tokens == sum(r.num_tokens for r in live)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        # the first running request gains a token in every step and is displaced at most once by each other request
        bound = sum(request.max_tokens for request in self.requests) * max(1, len(self.requests))
        self.engine.run(max_steps=bound + 1)
        for request in self.requests:
            allowed = [FinishReason.CANCELLED] if request in self.aborted else []
            if request.deadline is not None and request.deadline <= self.engine.clock.now():
                allowed.append(FinishReason.DEADLINE)
            assert_ended_well(self.engine, request, tuple(allowed))
        assert self.engine.blocks.num_held == 0
        self.engine.scheduler.check()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)


@settings(max_examples=40, deadline=None)
@given(
    work=st.lists(st.tuples(prompts, st.integers(1, 100), st.sampled_from([1, 1, 2, 4])), min_size=1, max_size=8),
    num_blocks=st.integers(5, 12),
    max_running=st.integers(1, 8),
    chunk=st.sampled_from([1, 13, 64, 1000]),
    prefix_cache=st.booleans(),
)
def test_tokens_do_not_depend_on_pool_batch_chunk_or_cache(
    work: list[tuple[list[int], int, int]], num_blocks: int, max_running: int, chunk: int, prefix_cache: bool
) -> None:
    config = EngineConfig(audit="step", max_batch_tokens=100, max_chunk_tokens=chunk, max_running=max_running)
    engine = FakeEngine(num_blocks=num_blocks, config=config)
    requests: list[Request] = []
    for place, (prompt, max_tokens, n) in enumerate(work):
        requests += make_requests(f"r{place}", prompt, max_tokens=max_tokens, n=n, prefix_cache=prefix_cache)
    engine.submit(*requests)
    engine.run()
    for request in requests:
        assert_ended_well(engine, request)


@settings(max_examples=25, deadline=None)
@given(level=st.integers(1, 4), aging_s=st.sampled_from([1.0, 3.0]), flood_tokens=st.integers(1, 8))
def test_a_flood_of_urgent_requests_delays_others_for_a_bounded_time(
    level: int, aging_s: float, flood_tokens: int
) -> None:
    config = EngineConfig(audit="step", max_batch_tokens=80, max_running=2, aging_s=aging_s)
    engine = FakeEngine(num_blocks=6, config=config)
    (patient,) = make_requests("patient", prompt_of(70), max_tokens=10, priority=level)
    began = engine.clock.now()
    count = 0
    while patient.finish is None:
        # two a second are more than the engine can finish
        for _ in range(2):
            count += 1
            engine.submit(*make_requests(f"urgent{count}", prompt_of(66, count), max_tokens=flood_tokens))
        if count == 2:
            engine.submit(patient)
        engine.clock.advance(1.0)
        engine.step()
        overtaken_for = level * aging_s
        # those that may go first, each alone at worst, then its own prefill and decode
        assert engine.clock.now() - began <= 2 * (overtaken_for + 2) * (flood_tokens + 2) + 20
    assert_ended_well(engine, patient)
