"""A request's legal transitions, and the ends it notices."""

import pytest

from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from tests.support.engine import EOS, make_request
from workers.cache.ledger import AccountingError
from workers.engine.batch import FinishReason
from workers.engine.request import NO_SLOT, IllegalTransition, Request, RequestState


def running(**options: object) -> Request:
    request = make_request("r", [1, 2, 3], **options)
    request.start(slot=2, generation=1, num_computed=0)
    return request


def say(request: Request, token_id: int, max_context: int = 100) -> FinishReason | None:
    request.advance(request.num_uncomputed)
    return request.append(token_id, max_context=max_context)


def test_counts_follow_the_tokens() -> None:
    request = running(max_tokens=4)
    assert (request.num_tokens, request.num_prompt, request.num_output, request.num_uncomputed) == (3, 3, 0, 3)
    assert say(request, 9) is None
    assert (request.num_tokens, request.num_output, request.num_uncomputed) == (4, 1, 1)
    assert request.output_ids == [9] and request.token_ids == [1, 2, 3, 9] and request.max_tokens == 7


def test_legal_life() -> None:
    request = running()
    assert request.state is RequestState.RUNNING and request.slot == 2
    say(request, 9)
    request.preempt()
    assert request.state is RequestState.WAITING and request.slot == NO_SLOT
    assert request.num_computed == 0 and request.output_ids == [9]
    request.start(slot=0, generation=2, num_computed=3)
    assert request.end(FinishReason.STOP)
    assert not request.end(FinishReason.CANCELLED)
    assert request.finish is FinishReason.STOP
    request.vacate()
    assert request.slot == NO_SLOT


@pytest.mark.parametrize("state", ["waiting", "running", "finished"])
def test_a_request_can_end_in_any_state_but_only_once(state: str) -> None:
    request = running() if state == "running" else make_request("r", [1])
    if state == "finished":
        request.end(FinishReason.LENGTH)
    assert request.end(FinishReason.CANCELLED) is (state != "finished")
    assert not request.end(FinishReason.DEADLINE)
    assert request.finish is (FinishReason.LENGTH if state == "finished" else FinishReason.CANCELLED)


def test_illegal_changes_raise_and_name_the_request() -> None:
    waiting, started, finished = make_request("w", [1]), running(), running()
    finished.end(FinishReason.CANCELLED)
    for request in (waiting, finished):
        for change in (request.preempt, lambda r=request: r.advance(1), lambda r=request: r.append(1, max_context=9)):
            with pytest.raises(IllegalTransition, match=rf"request {request.id}\[0\] is {request.state.value}"):
                change()
    for request in (started, finished):
        with pytest.raises(IllegalTransition, match="start needs it to be waiting"):
            request.start(slot=0, generation=9, num_computed=0)
    for request in (waiting, started):
        with pytest.raises(IllegalTransition, match="vacate needs it to be finished"):
            request.vacate()


def test_computed_tokens_stay_within_the_known_ones() -> None:
    request = running()
    with pytest.raises(AssertionError):
        request.advance(4)
    with pytest.raises(AssertionError):
        request.append(5, max_context=100)
    request.num_computed = 4
    with pytest.raises(AccountingError, match="4 of 3 tokens computed"):
        request.check()


def test_only_the_first_start_counts_as_cached_prompt() -> None:
    request = make_request("r", [1] * 70)
    request.start(slot=0, generation=1, num_computed=64)
    say(request, 3)
    request.preempt()
    request.start(slot=0, generation=2, num_computed=0)
    assert request.num_cached == 64


def test_the_end_token_stops_and_belongs_to_the_output() -> None:
    request = running(ignore_eos=False)
    assert say(request, EOS) is FinishReason.STOP
    assert request.output_ids == [EOS]


def test_ignore_eos_goes_on_but_stop_tokens_still_stop() -> None:
    sampling = SamplingParams(max_tokens=9, stop_token_ids=frozenset({7}), ignore_eos=True)
    request = Request(
        id=RequestId("r"), index=0, token_ids=[1], sampling=sampling, seed=0, stop_ids=sampling.stop_token_ids
    )
    request.start(slot=0, generation=1, num_computed=0)
    assert say(request, EOS) is None
    assert say(request, 7) is FinishReason.STOP


def test_a_stop_token_before_min_tokens_does_not_stop() -> None:
    request = running(ignore_eos=False, min_tokens=2, max_tokens=9)
    assert [say(request, EOS) for _ in range(3)] == [None, None, FinishReason.STOP]


def test_length_by_max_tokens_and_by_context() -> None:
    assert [say(request := running(max_tokens=2), 5), say(request, 5)] == [None, FinishReason.LENGTH]
    assert [say(request := running(max_tokens=9), 5, 5), say(request, 5, 5)] == [None, FinishReason.LENGTH]


def test_a_stop_token_in_the_last_place_is_a_stop() -> None:
    assert say(running(max_tokens=1, ignore_eos=False), EOS) is FinishReason.STOP


def test_the_token_mask_sees_every_token_once() -> None:
    class Mask:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def fill(self, bitmask: object) -> None: ...

        def accept(self, token_id: int) -> None:
            self.seen.append(token_id)

    request = running()
    request.token_mask = mask = Mask()
    say(request, 5)
    request.preempt()
    request.start(slot=0, generation=2, num_computed=0)
    say(request, 6)
    assert mask.seen == [5, 6]
