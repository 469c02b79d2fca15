"""Random work on a scheduler with a tiny pool, for the laws that hold whatever happens."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baleen.config import EngineConfig
from baleen.errors import CapacityError
from tests.support.engine import FakeEngine, expected_output, make_requests, prompt_of, prompt_scores
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


def assert_scored(engine: FakeEngine, request: Request) -> None:
    """Scores of the prompt are the fake model's own, if any were asked for, and all of them where it was computed."""
    found = engine.scores.get(request.id, [])
    if request.prompt_scores is None:
        assert not found
        return
    expected = prompt_scores(request.prompt_scores.prompt_ids)
    assert found == expected[: len(found)]
    assert len(found) == len(expected) or request.finish in CUT_SHORT


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
        self.prefilling: list[Request] = []
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
        scored=st.sampled_from([False, False, True]),
    )
    def submit(
        self,
        prompt: list[int],
        n: int,
        seed: int,
        salt: bytes,
        priority: int,
        patience: int | None,
        scored: bool = False,
        **options: int,
    ) -> None:
        self.count += 1
        if scored:
            options |= {"prompt_logprobs": 0}
            if options["max_tokens"] == 1:
                # nothing but the scores
                options |= {"max_tokens": 0, "min_tokens": 0}
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

    @precondition(lambda self: self.requests and self.engine.scheduler.has_work)
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
        busy = blocks.num_held + blocks.num_lent + blocks.num_arriving
        assert blocks.num_free + busy + blocks.num_cached == blocks.num_blocks
        live = [request for request in self.requests + self.prefilling if request.finish is None]
        assert scheduler.num_waiting + scheduler.num_running == len(live)
        assert scheduler.has_work == bool(live)
        assert scheduler.num_waiting_tokens + scheduler.num_running_tokens == sum(r.num_tokens for r in live)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        # the first running request gains a token in every step and is displaced at most once by each other request
        everything = self.requests + self.prefilling
        bound = sum(request.max_tokens for request in everything) * max(1, len(everything))
        self.engine.run(max_steps=bound + 1)
        for request in self.requests:
            allowed = [FinishReason.CANCELLED] if request in self.aborted else []
            if request.deadline is not None and request.deadline <= self.engine.clock.now():
                allowed.append(FinishReason.DEADLINE)
            assert_ended_well(self.engine, request, tuple(allowed))
            assert_scored(self.engine, request)
        assert self.engine.blocks.num_held == 0
        self.engine.scheduler.check()
