"""Preemption, abort and deadline: nothing is lost, nothing leaks, everyone gets one answer."""

import pytest

from baleen.config import EngineConfig
from baleen.ids import RequestId
from tests.support.engine import FakeEngine, expected_output, make_request, make_requests, prompt_of
from workers.cache.ledger import AccountingError
from workers.engine.batch import FinishReason
from workers.engine.request import NO_SLOT, RequestState


def all_blocks_back(engine: FakeEngine) -> bool:
    blocks = engine.blocks
    return blocks.num_held == 0 and blocks.num_free + blocks.num_cached == blocks.num_blocks


def test_preempted_requests_lose_no_token_and_continue_the_same_way() -> None:
    engine = FakeEngine(num_blocks=6)
    requests = [make_request(f"r{place}", prompt_of(60, place), max_tokens=150) for place in range(4)]
    engine.submit(*requests)
    engine.run()
    assert engine.scheduler.tallies.preemptions > 0
    for request in requests:
        assert (engine.tokens_of(request), engine.finish_of(request)) == expected_output(request)
    assert all_blocks_back(engine)


def test_the_last_in_order_gives_way_and_keeps_its_place() -> None:
    engine = FakeEngine(num_blocks=3)
    first, second = (make_request(name, prompt_of(62, place), max_tokens=60) for place, name in enumerate("ab"))
    engine.submit(first)
    engine.step()
    engine.submit(second)
    engine.step()
    generation = second.generation
    late = make_request("late", prompt_of(3, 5))
    engine.submit(late)
    while second.state is RequestState.RUNNING:
        engine.step()
    assert engine.scheduler.tallies.preemptions == 1 and first.state is RequestState.RUNNING
    assert second.num_computed == 0 and second.block_ids == [] and second.slot == NO_SLOT
    assert second.num_output > 0
    engine.run()
    assert second.generation > generation
    ends = [str(output.request_id) for output in engine.outputs if output.finish]
    assert ends.index("a") < ends.index("b")
    assert engine.tokens_of(second) == expected_output(second)[0]


def test_an_urgent_request_never_gives_way_to_a_lesser_one() -> None:
    engine = FakeEngine(num_blocks=4)
    lesser = make_request("lesser", prompt_of(60), max_tokens=120, priority=1)
    urgent = make_request("urgent", prompt_of(60, 1), max_tokens=120)
    engine.submit(lesser)
    engine.step()
    engine.submit(urgent)
    preempted = 0
    while engine.step():
        assert urgent.state is not RequestState.WAITING
        preempted += lesser.state is RequestState.WAITING
    assert preempted > 0
    assert [engine.tokens_of(request) for request in (lesser, urgent)] == [
        expected_output(request)[0] for request in (lesser, urgent)
    ]


def test_a_request_alone_may_use_the_whole_pool() -> None:
    engine = FakeEngine(num_blocks=3)
    request = make_request("a", prompt_of(100), max_tokens=93)
    engine.submit(request, make_request("b", prompt_of(100, 1), max_tokens=93))
    engine.run()
    assert engine.tokens_of(request) == expected_output(request)[0]


def test_abort_while_waiting_running_or_between_schedule_and_commit() -> None:
    engine = FakeEngine(config=EngineConfig(audit="step", max_batch_tokens=64, max_running=2))
    decoding, prefilling, waiting = (make_request(f"r{place}", prompt_of(100, place)) for place in range(3))
    engine.submit(decoding)
    engine.step()
    engine.step()
    engine.submit(prefilling, waiting)
    engine.step()
    batch = engine.scheduler.schedule()
    assert batch is not None and {item.request for item in batch.items} == {decoding, prefilling}
    slots = [request.slot for request in (decoding, prefilling)]
    for request in (decoding, prefilling, waiting):
        engine.scheduler.abort(request.id, detail="the client left")
        engine.scheduler.abort(request.id)
    assert not engine.scheduler.has_work and engine.scheduler.num_running == 0
    # the batch may still be computed: its rows and blocks stay until the commit
    assert [request.slot for request in (decoding, prefilling)] == slots
    assert engine.blocks.num_held > 0
    result = engine.model.run(batch)
    engine.collect()
    before = engine.tokens_of(decoding)
    engine.scheduler.commit(batch, result)
    engine.collect()
    assert engine.tokens_of(decoding) == before
    assert decoding.slot == prefilling.slot == NO_SLOT
    assert all_blocks_back(engine)
    for request in (decoding, prefilling, waiting):
        assert engine.finish_of(request) is FinishReason.CANCELLED
        assert engine.last_output(request).detail == "the client left"
    assert engine.step() is None


def test_an_id_aborted_in_flight_can_be_submitted_again_at_once() -> None:
    engine = FakeEngine()
    engine.submit(make_request("a", prompt_of(100)))
    batch = engine.scheduler.schedule()
    assert batch is not None
    engine.scheduler.abort(RequestId("a"))
    again = make_request("a", prompt_of(100))
    engine.submit(again)
    engine.scheduler.check()
    engine.scheduler.commit(batch, engine.model.run(batch))
    engine.collect()
    engine.outputs.clear()
    engine.run()
    assert engine.tokens_of(again) == expected_output(again)[0]


def test_abort_of_a_preempted_request_and_of_unknown_ones() -> None:
    engine = FakeEngine(num_blocks=2)
    first, second = (make_request(name, prompt_of(60, place), max_tokens=60) for place, name in enumerate("ab"))
    engine.submit(first, second)
    engine.step()
    while second.state is RequestState.RUNNING:
        engine.step()
    tokens = engine.tokens_of(second)
    engine.scheduler.abort(second.id)
    engine.scheduler.abort(RequestId("nobody"))
    engine.run()
    assert engine.tokens_of(second) == tokens and engine.finish_of(second) is FinishReason.CANCELLED
    assert engine.last_output(second).position == len(tokens)


def test_one_completion_can_be_aborted_and_the_next_leads() -> None:
    engine = FakeEngine(config=EngineConfig(audit="step", max_batch_tokens=64, max_running=4))
    requests = make_requests("a", prompt_of(150), n=3)
    engine.submit(*requests)
    engine.step()
    engine.scheduler.abort(requests[0].id, 0)
    engine.scheduler.abort(requests[0].id, 9)
    batch = engine.step()
    assert batch is not None and [item.request for item in batch.items] == [requests[1]]
    engine.scheduler.abort(requests[0].id, 2)
    engine.run()
    assert [engine.finish_of(request) for request in requests] == [
        FinishReason.CANCELLED,
        FinishReason.LENGTH,
        FinishReason.CANCELLED,
    ]
    assert engine.tokens_of(requests[1]) == expected_output(requests[1])[0]


def test_abort_of_all_completions() -> None:
    engine = FakeEngine()
    requests = make_requests("a", prompt_of(150), n=3)
    engine.submit(*requests)
    engine.step()
    engine.scheduler.abort(requests[0].id)
    engine.collect()
    assert [engine.finish_of(request) for request in requests] == [FinishReason.CANCELLED] * 3
    assert engine.step() is None and all_blocks_back(engine)


def test_siblings_go_on_after_the_first_completion_ended() -> None:
    engine = FakeEngine(config=EngineConfig(audit="step", max_batch_tokens=64, max_running=1))
    requests = make_requests("a", prompt_of(20), n=3, max_tokens=1)
    engine.submit(*requests)
    engine.run()
    assert [engine.tokens_of(request) for request in requests] == [expected_output(request)[0] for request in requests]


def test_deadlines_end_requests_in_any_state_with_a_detail() -> None:
    engine = FakeEngine(config=EngineConfig(audit="step", max_batch_tokens=64, max_running=1))
    now = engine.clock.now()
    running = make_request("running", prompt_of(5), max_tokens=50, deadline=now + 2)
    waiting = make_request("waiting", prompt_of(5, 1), deadline=now + 2)
    siblings = make_requests("siblings", prompt_of(5, 2), n=2, deadline=now + 5)
    free = make_request("free", prompt_of(5, 3))
    engine.submit(running, waiting, *siblings, free)
    engine.step()
    engine.clock.advance(1.999)
    engine.step()
    assert running.finish is None and waiting.finish is None
    engine.clock.advance(0.001)
    engine.step()
    assert engine.finish_of(running) is engine.finish_of(waiting) is FinishReason.DEADLINE
    assert engine.last_output(running).detail == "deadline passed 0.000 s ago, after 2 tokens"
    assert [request.finish for request in siblings] == [None, None]
    engine.clock.advance(10)
    engine.run()
    assert [engine.finish_of(request) for request in siblings] == [FinishReason.DEADLINE] * 2
    assert engine.finish_of(free) is FinishReason.LENGTH and all_blocks_back(engine)


def test_a_deadline_that_has_passed_at_submission_is_answered() -> None:
    engine = FakeEngine()
    request = make_request("a", [1], deadline=engine.clock.now() - 1)
    engine.submit(request)
    assert engine.step() is None
    assert engine.finish_of(request) is FinishReason.DEADLINE


def test_a_request_done_before_its_deadline_is_left_alone() -> None:
    engine = FakeEngine()
    request = make_request("a", [1], deadline=engine.clock.now() + 5)
    engine.submit(request)
    engine.run()
    engine.clock.advance(10)
    assert engine.step() is None
    assert engine.finish_of(request) is FinishReason.LENGTH


def test_the_audit_runs_when_idle_and_names_a_leak() -> None:
    engine = FakeEngine(config=EngineConfig(audit="idle"))
    request = make_request("leaky", prompt_of(100))
    engine.submit(request)
    engine.step()
    engine.blocks.release = lambda user: user.block_ids.clear()  # type: ignore[method-assign]
    with pytest.raises(AccountingError, match=r"request leaky\[0\] leaks"):
        engine.run()


def test_the_audit_finds_writes_into_shared_blocks_and_lost_slots() -> None:
    engine = FakeEngine()
    request = make_request("a", prompt_of(100))
    engine.submit(request)
    engine.step()
    request.num_computed = 10
    with pytest.raises(AccountingError, match=r"request a\[0\] would write into block \d+, which is shared"):
        engine.scheduler.check()
    request.num_computed = 100
    engine.scheduler.check()
    engine.scheduler._free_slots.pop()
    with pytest.raises(AccountingError, match="slots free or taken"):
        engine.scheduler.check()
