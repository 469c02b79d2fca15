"""Whatever is submitted, aborted, preempted or late: no block is lost, tokens are right, each ends exactly once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.config import EngineConfig
from tests.support.engine import FakeEngine, make_requests, prompt_of
from tests.support.scheduler_machine import SchedulerMachine, assert_ended_well, prompts
from workers.engine.request import Request

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
