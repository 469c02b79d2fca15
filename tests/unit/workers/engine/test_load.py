"""What a rank reports of itself agrees with what it was given to do."""

import pytest

from baleen.ids import RequestId
from tests.support.loop_rank import Rank
from workers.cache.events import Removed
from workers.engine.messages import Abort

PROMPT = tuple(2 + place % 7 for place in range(150))
OTHER = tuple(3 + place % 5 for place in range(150))


def blocks_of(load):
    """By state; free_blocks counts the cached ones too."""
    free = load.free_blocks - load.cached_blocks
    return free, load.held_blocks, load.cached_blocks, load.arriving_blocks, load.lent_blocks


def test_blocks_by_state_add_up_after_every_step_and_end_in_the_cache():
    rank = Rank(num_blocks=32)
    rank.submit("first", PROMPT)
    rank.submit("second", OTHER)
    rank.steps(20)
    loads = [event.load for event in rank.events]
    assert len(loads) > 3 and {sum(blocks_of(load)) for load in loads} == {32}
    assert max(load.held_blocks for load in loads) == 6
    assert blocks_of(loads[-1]) == (28, 0, 4, 0, 0)


def test_tokens_are_counted_once_also_where_the_request_was_preempted():
    rank = Rank(num_blocks=7)
    rank.submit("first", PROMPT, max_tokens=100)
    rank.submit("second", OTHER, max_tokens=100)
    while len(rank.finishes()) < 2:
        rank.steps(1)
    rank.submit("third", PROMPT)
    rank.steps(20)
    load = rank.events[-1].load
    assert load.preemptions > 0
    assert (load.prompt_tokens, load.output_tokens) == (3 * 150, 203)
    cached = next(o.num_cached_tokens for o in rank.outputs if o.request_id == "third" and o.finish)
    assert load.cached_prompt_tokens == cached > 0


def test_the_time_of_a_step_is_that_of_the_model():
    rank = Rank()
    rank.submit("only")
    rank.steps(5)
    assert round(rank.events[-1].load.step_s, 9) == rank.step_s


def test_what_a_step_and_an_abort_take_is_measured():
    rank = Rank(num_blocks=8)
    rank.submit("long", PROMPT, max_tokens=50)
    rank.steps(5)
    rank.inbox.put(Abort(RequestId("long"), asked_at=rank.clock.now() - 0.5))
    # nobody knows it: this abort frees nothing
    rank.inbox.put(Abort(RequestId("gone"), asked_at=rank.clock.now()))
    rank.steps(3)
    meters = rank.loop.meters
    assert meters.ends == {("cancelled",): 1}
    assert sum(meters.cancel_release.counts) == 1 and meters.cancel_release.total == pytest.approx(0.5, abs=0.02)
    compute = meters.steps[("compute",)]
    assert compute.total == pytest.approx(sum(compute.counts) * rank.step_s)
    assert sum(meters.steps[("schedule",)].counts) == sum(compute.counts) > 0


def test_evictions_are_counted():
    rank = Rank(num_blocks=4)
    for name, prompt in (("first", PROMPT), ("second", OTHER), ("third", PROMPT)):
        rank.submit(name, prompt)
        rank.steps(8)
    removed = [event for event in rank.blocks.events.after(0) if isinstance(event, Removed)]
    assert rank.blocks.num_evicted == len(removed) == 2
