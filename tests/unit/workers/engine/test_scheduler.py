"""What is computed in which step, in which order, and what is refused."""

import pytest

from baleen.blocks import BLOCK_TOKENS
from baleen.config import EngineConfig
from baleen.errors import AlreadyRunning, CapacityError, InvalidRequest
from tests.support.engine import FakeEngine, expected_output, make_request, make_requests, prompt_of
from workers.engine.batch import Batch, FinishReason
from workers.engine.request import Request


def work(batch: Batch | None) -> list[tuple[str, int, int, bool]]:
    assert batch is not None
    return [(str(item.request.id), item.start, item.num_tokens, item.samples) for item in batch.items]


def assert_complete(engine: FakeEngine, *requests: Request) -> None:
    for request in requests:
        tokens, finish = expected_output(request)
        assert engine.tokens_of(request) == tokens
        assert engine.finish_of(request) is finish


def test_one_request_is_prefilled_and_decoded_to_its_end() -> None:
    engine = FakeEngine()
    request = make_request("a", prompt_of(10), max_tokens=3)
    engine.submit(request)
    assert engine.scheduler.has_work and engine.scheduler.num_waiting_tokens == 10
    assert work(engine.step()) == [("a", 0, 10, True)]
    assert work(engine.step()) == [("a", 10, 1, True)]
    assert engine.scheduler.num_running == 1 and engine.scheduler.num_running_tokens == 12
    assert work(engine.step()) == [("a", 11, 1, True)]
    assert engine.step() is None and not engine.scheduler.has_work
    assert_complete(engine, request)
    assert [output.num_prompt_tokens for output in engine.outputs] == [10, 10, 10]
    assert engine.finish_of(request) is FinishReason.LENGTH


def test_the_end_token_stops() -> None:
    engine = FakeEngine()
    requests = [make_request(f"r{seed}", [3], seed=seed, max_tokens=60, ignore_eos=False) for seed in range(8)]
    engine.submit(*requests)
    engine.run()
    assert_complete(engine, *requests)
    assert FinishReason.STOP in {engine.finish_of(request) for request in requests}


def test_long_prompts_go_in_chunks_beside_decodes() -> None:
    engine = FakeEngine(
        config=EngineConfig(audit="step", max_batch_tokens=40, max_chunk_tokens=30, max_running=4), num_blocks=64
    )
    first, second = make_request("a", prompt_of(10), max_tokens=9), make_request("b", prompt_of(100, 2))
    third = make_request("c", prompt_of(100, 3))
    engine.submit(first)
    engine.step()
    engine.submit(second, third)
    # decode first, then the chunk limit, then what is left of the budget
    assert work(engine.step()) == [("a", 10, 1, True), ("b", 0, 30, False), ("c", 0, 9, False)]
    assert work(engine.step()) == [("a", 11, 1, True), ("b", 30, 30, False), ("c", 9, 9, False)]
    assert work(engine.step()) == [("a", 12, 1, True), ("b", 60, 30, False), ("c", 18, 9, False)]
    assert work(engine.step()) == [("a", 13, 1, True), ("b", 90, 10, True), ("c", 27, 29, False)]
    engine.run()
    assert_complete(engine, first, second, third)


def test_a_prefill_moves_on_even_if_all_others_decode() -> None:
    engine = FakeEngine(config=EngineConfig(audit="step", max_batch_tokens=4, max_running=4))
    short = [make_request(f"s{place}", prompt_of(2, place), max_tokens=30) for place in range(3)]
    engine.submit(*short)
    while any(request.num_output == 0 for request in short):
        engine.step()
    late = make_request("late", prompt_of(12, 9))
    engine.submit(late)
    assert [work(engine.step())[3:] for _ in range(2)] == [[("late", 0, 1, False)], [("late", 1, 1, False)]]
    engine.run()
    assert_complete(engine, late, *short)


def test_more_requests_than_slots_take_turns() -> None:
    engine = FakeEngine(config=EngineConfig(audit="step", max_batch_tokens=64, max_running=2))
    requests = [make_request(f"r{place}", prompt_of(5, place), max_tokens=2 + place) for place in range(5)]
    engine.submit(*requests)
    engine.step()
    assert (engine.scheduler.num_running, engine.scheduler.num_waiting) == (2, 3)
    assert {request.slot for request in requests[:2]} == {0, 1}
    engine.run()
    assert_complete(engine, *requests)
    assert len({request.generation for request in requests}) == 5


def test_a_repeated_prompt_computes_only_the_rest() -> None:
    engine = FakeEngine()
    first, second = (make_request(name, prompt_of(150)) for name in ("a", "b"))
    engine.submit(first)
    engine.run()
    engine.submit(second)
    assert work(engine.step()) == [("b", 128, 22, True)]
    engine.run()
    assert_complete(engine, first, second)
    assert engine.tokens_of(first) == engine.tokens_of(second)
    assert [engine.last_output(request).num_cached_tokens for request in (first, second)] == [0, 128]


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    engine = FakeEngine()
    first = make_request("a", prompt_of(60), max_tokens=80)
    engine.submit(first)
    engine.run()
    second = make_request("b", [*first.token_ids, 5, 6])
    engine.submit(second)
    engine.run()
    assert second.num_cached == 128
    assert_complete(engine, first, second)


def test_without_prefix_cache_and_with_other_salts_nothing_is_found() -> None:
    engine = FakeEngine()
    options: list[dict[str, object]] = [{"prefix_cache": False}, {"prefix_cache": False}, {"salt": b"x"}, {}]
    requests = [make_request(f"r{place}", prompt_of(150), **option) for place, option in enumerate(options)]
    for request in requests:
        engine.submit(request)
        engine.run()
    assert [request.num_cached for request in requests] == [0, 0, 0, 0]
    assert_complete(engine, *requests)


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_siblings_wait_for_the_prompt_and_compute_only_its_tail(prefix_cache: bool) -> None:
    engine = FakeEngine(config=EngineConfig(audit="step", max_batch_tokens=100, max_running=8))
    requests = make_requests("a", prompt_of(150), n=3, prefix_cache=prefix_cache)
    other = make_request("z", prompt_of(5, 3))
    engine.submit(*requests, other)
    assert engine.scheduler.num_waiting == 4
    assert work(engine.step()) == [("a", 0, 100, False)]
    assert work(engine.step()) == [("a", 100, 50, True), ("z", 0, 5, True)]
    batch = engine.step()
    assert [(item.request.index, item.start, item.num_tokens) for item in (batch.items if batch else ())] == [
        (0, 150, 1),
        (0, 5, 1),
        (1, 128, 22),
        (2, 128, 22),
    ]
    engine.run()
    assert_complete(engine, other, *requests)
    assert len({tuple(engine.tokens_of(request)) for request in requests}) == 3
    assert engine.model.num_computed == 150 + 2 * 22 + 5 + 4 * 3


def test_a_late_sibling_of_a_computed_prompt_need_not_wait() -> None:
    engine = FakeEngine()
    first, second = make_requests("a", prompt_of(70), n=2)
    engine.submit(first)
    engine.step()
    engine.submit(second)
    assert work(engine.step())[1] == ("a", 64, 6, True)


def test_equal_prompts_computed_at_once_both_end_right() -> None:
    engine = FakeEngine(num_blocks=64)
    requests = [make_request(f"r{place}", prompt_of(100), max_tokens=70) for place in range(3)]
    engine.submit(*requests)
    engine.run()
    assert [request.num_cached for request in requests] == [0, 0, 0]
    assert_complete(engine, *requests)


def test_urgent_requests_go_first_and_equal_ones_in_order_of_arrival() -> None:
    engine = FakeEngine(config=EngineConfig(audit="step", max_batch_tokens=64, max_running=1))
    names = ["late", "first", "second", "urgent"]
    requests = [
        make_request(name, prompt_of(5, place), priority=priority)
        for place, (name, priority) in enumerate(zip(names, (1, 0, 0, -1), strict=True))
    ]
    engine.submit(*requests)
    engine.run()
    ends = [str(output.request_id) for output in engine.outputs if output.finish]
    assert ends == ["urgent", "first", "second", "late"]


def test_age_beats_urgency() -> None:
    engine = FakeEngine(config=EngineConfig(audit="step", max_batch_tokens=64, max_running=1, aging_s=5.0))
    patient = make_request("patient", prompt_of(5), priority=2)
    engine.submit(make_request("now", prompt_of(5, 1), max_tokens=50), patient)
    engine.step()
    flood = 0
    while engine.finish_of(patient) is None:
        engine.clock.advance(1.0)
        flood += 1
        assert flood < 100, "starved"
        engine.submit(make_request(f"urgent{flood}", prompt_of(3, flood), max_tokens=2))
        engine.step()
    overtakers = sum(1 for output in engine.outputs if output.finish and str(output.request_id).startswith("urgent"))
    # two levels of five seconds, one arrival a second: ten at most may go first
    assert overtakers <= 10


def test_a_big_request_is_not_starved_by_small_ones() -> None:
    engine = FakeEngine(num_blocks=8)
    engine.submit(make_request("running", prompt_of(100), max_tokens=60))
    engine.step()
    big = make_request("big", prompt_of(7 * BLOCK_TOKENS, 1), max_tokens=2)
    engine.submit(big)
    for place in range(30):
        engine.submit(make_request(f"small{place}", prompt_of(5, place + 2)))
        engine.step()
    assert engine.scheduler.num_running == 1
    engine.run()
    ends = [str(output.request_id) for output in engine.outputs if output.finish]
    assert ends[:2] == ["running", "big"]


def test_admission_leaves_a_block_for_running_requests() -> None:
    engine = FakeEngine(num_blocks=4)
    engine.submit(make_request("a", prompt_of(60), max_tokens=60))
    engine.step()
    engine.submit(make_request("b", prompt_of(3 * BLOCK_TOKENS, 1)))
    engine.step()
    assert (engine.scheduler.num_running, engine.scheduler.num_waiting) == (1, 1)
    engine.run()
    assert engine.scheduler.tallies.preemptions == 0


def test_what_can_never_run_is_refused_with_values_and_limits() -> None:
    engine = FakeEngine(num_blocks=2, max_context=200)
    with pytest.raises(InvalidRequest, match=r"prompt of 190 .* max_tokens of 11 .* limit of 200"):
        engine.submit(make_request("context", prompt_of(190), max_tokens=11))
    with pytest.raises(CapacityError, match="need 3 cache blocks, the whole pool has 2"):
        engine.submit(make_request("pool", prompt_of(120), max_tokens=20))
    assert not engine.scheduler.has_work and engine.scheduler.take_outputs() == []
    fits = make_request("fits", prompt_of(120), max_tokens=9)
    engine.submit(fits)
    engine.run()
    assert_complete(engine, fits)


def test_a_full_queue_refuses_and_takes_all_completions_or_none() -> None:
    engine = FakeEngine(config=EngineConfig(max_waiting=3))
    engine.submit(make_request("a", [1]))
    with pytest.raises(CapacityError, match="1 requests wait and 3 came, the queue takes at most 3"):
        engine.scheduler.submit_all(make_requests("b", [1], n=3))
    assert engine.scheduler.num_waiting == 1
    engine.scheduler.submit_all(make_requests("b", [1], n=2))
    with pytest.raises(CapacityError):
        engine.submit(make_request("c", [1]))
    engine.run()
    engine.submit(make_request("c", [1]))


def test_a_live_id_is_refused_and_a_finished_one_may_come_again() -> None:
    engine = FakeEngine()
    engine.submit(make_request("a", [1]))
    with pytest.raises(AlreadyRunning, match=r"request a\[0\] is already running or queued"):
        engine.submit(make_request("a", [1]))
    engine.run()
    engine.submit(make_request("a", [1]))


def test_a_step_must_be_committed_once_before_the_next() -> None:
    engine = FakeEngine()
    engine.submit(make_request("a", [1]))
    batch = engine.scheduler.schedule()
    assert batch is not None
    with pytest.raises(AssertionError, match="not committed"):
        engine.scheduler.schedule()
    result = engine.model.run(batch)
    engine.scheduler.commit(batch, result)
    with pytest.raises(AssertionError, match="committed already"):
        engine.scheduler.commit(batch, result)
