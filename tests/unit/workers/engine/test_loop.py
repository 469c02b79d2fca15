"""The step loop: what happens in which order, when it sleeps, how it drains, and that everyone is answered."""

import pytest

from baleen.errors import EpochEnded
from baleen.ids import RequestId
from tests.support.engine import VOCAB_SIZE, expected_output, make_request, prompt_of
from tests.support.loop_rank import Rank
from workers.engine.batch import FinishReason
from workers.engine.loop import LOAD_INTERVAL_S
from workers.engine.messages import Abort
from workers.parallel.lockstep import NO_ROWS, DecodeSize


def test_a_request_runs_to_its_end_with_the_model_s_own_tokens():
    rank = Rank()
    rank.submit("a", max_tokens=5)
    rank.steps(6)
    tokens, finish = expected_output(make_request("a", [1, 2, 3], max_tokens=5))
    assert rank.tokens_of("a") == tokens
    assert rank.finishes() == [("a", 0, finish)]
    assert rank.group.steps == [0, 1, 2, 3, 4, 5]


def test_outputs_leave_only_after_the_next_agreement():
    rank = Rank()
    rank.submit("a")
    rank.loop.step()
    assert rank.journal.count("run") == 1 and rank.outputs == []
    rank.loop.step()
    order = [entry for entry in rank.journal if entry in ("agree", "run", "emit")]
    assert order == ["agree", "run", "agree", "emit", "run"]
    assert len(rank.outputs) == 1


def test_outputs_of_a_step_that_not_all_finished_never_leave():
    rank = Rank()
    rank.submit("a")
    rank.loop.step()
    rank.group.ended = "rank 1 closed its connection"
    with pytest.raises(EpochEnded, match="rank 1"):
        rank.loop.step()
    assert rank.events == []


def test_a_rank_that_slept_through_the_end_emits_nothing():
    rank = Rank()
    rank.submit("a")
    rank.loop.step()
    rank.group.suspended = True
    with pytest.raises(EpochEnded, match="suspended"):
        rank.loop.step()
    assert rank.events == []


def test_one_message_per_step_carries_everything_new():
    rank = Rank()
    for name in "abc":
        rank.submit(name)
    rank.steps(2)
    (report,) = rank.events
    assert [output.request_id for output in report.outputs] == ["a", "b", "c"]
    assert report.load.num_running == 3 and report.load.running_tokens == 12
    assert report.load.free_blocks == 29
    assert report.load.prefill_tokens_per_s == pytest.approx(9 / 0.01)


def test_speeds_of_prefill_and_decode_are_measured_apart():
    rank = Rank()
    rank.submit("a", max_tokens=4)
    rank.submit("b", max_tokens=4)
    rank.steps(3)
    load = rank.events[-1].load
    assert load.decode_tokens_per_s == pytest.approx(2 / 0.01)
    assert load.prefill_tokens_per_s == pytest.approx(6 / 0.01)


def test_speeds_are_averages_that_follow_the_newest_step():
    rank = Rank()
    rank.submit("a", max_tokens=9)
    rank.steps(3)
    before = rank.speed("decode_tokens_per_s")
    assert before == pytest.approx(100)
    rank.step_s = 0.02
    rank.steps(2)
    assert 50 < rank.speed("decode_tokens_per_s") < before


def test_blocks_that_only_the_prefix_cache_keeps_count_as_free():
    rank = Rank()
    rank.submit("a", prompt_of(130), max_tokens=1)
    rank.steps(2)
    assert rank.blocks.num_cached == 2 and rank.events[-1].load.free_blocks == 32


@pytest.mark.parametrize(
    ("salts", "prefix_cache", "cached"),
    [(("", ""), True, 128), (("x", "x"), True, 128), (("x", "y"), True, 0), (("", ""), False, 0)],
)
def test_requests_share_blocks_within_a_salt_and_only_with_the_prefix_cache(salts, prefix_cache, cached):
    rank = Rank(prefix_cache=prefix_cache)
    for name, salt in zip("ab", salts, strict=True):
        rank.submit(name, prompt_of(130), max_tokens=1, cache_salt=salt)
        rank.steps(2)
    assert [output.num_cached_tokens for output in rank.outputs] == [0, cached]


def test_the_more_urgent_request_goes_first():
    rank = Rank(max_running=1)
    rank.submit("later", priority=1, max_tokens=1)
    rank.submit("sooner", priority=0, max_tokens=1)
    rank.steps(3)
    assert [request_id for request_id, _, _ in rank.finishes()] == ["sooner", "later"]


def test_a_long_prefill_reports_its_load_now_and_then_without_outputs():
    rank = Rank(max_chunk_tokens=8, max_batch_tokens=8)
    rank.submit("a", prompt_of(256))
    rank.steps(12)
    assert rank.outputs == []
    # a step takes 0.01 s
    assert len(rank.events) == 12 * 0.01 // LOAD_INTERVAL_S == 1


def test_an_idle_rank_serves_the_experts_of_a_busy_one():
    rank = Rank(world_size=2)
    rank.group.peer_tokens = [5, 1]
    rank.steps(3)
    assert rank.journal.count("serve") == 2 and rank.journal.count("run") == 0
    assert rank.journal[-1] == "wait"


def test_the_loop_sleeps_only_when_no_rank_has_a_token():
    rank = Rank(world_size=2)
    rank.submit("a", max_tokens=1)
    rank.group.peer_tokens = [0, 3, 0]
    rank.steps(2)
    assert "wait" not in rank.journal
    rank.steps(1)
    assert rank.journal[-1] == "wait"


def test_a_sleep_without_work_goes_on_without_an_exchange():
    rank = Rank()
    naps = iter([False, False, False, True])
    rank.group.on_wait = lambda timeout_s: next(naps)
    rank.loop.step()
    assert rank.journal.count("wait") == 4 and rank.journal.count("agree") == 1


def test_the_last_outputs_leave_before_the_sleep():
    rank = Rank()
    rank.submit("a", max_tokens=1)
    rank.steps(2)
    assert rank.finishes() == [("a", 0, FinishReason.LENGTH)]
    assert rank.journal.index("emit") < rank.journal.index("wait")


def test_an_idle_rank_that_wakes_for_nothing_repeats_no_load():
    rank = Rank()
    rank.submit("a", max_tokens=1)
    rank.steps(6)
    assert rank.journal.count("emit") == 1


def test_a_request_aborted_between_steps_ends_as_cancelled_and_once():
    rank = Rank()
    rank.submit("a", max_tokens=100)
    rank.submit("b", max_tokens=3)
    rank.steps(2)
    rank.inbox.put(Abort(RequestId("a")))
    rank.inbox.put(Abort(RequestId("a")))
    rank.inbox.put(Abort(RequestId("never seen")))
    rank.steps(4)
    assert rank.finishes() == [("a", 0, FinishReason.CANCELLED), ("b", 0, FinishReason.LENGTH)]
    assert len(rank.tokens_of("a")) == 2
    assert rank.blocks.num_held == 0


def test_one_completion_of_several_can_be_aborted():
    rank = Rank()
    rank.submit("a", n=3, max_tokens=4)
    rank.steps(2)
    rank.inbox.put(Abort(RequestId("a"), 1))
    rank.steps(7)
    assert sorted(rank.finishes(), key=lambda end: end[1]) == [
        ("a", 0, FinishReason.LENGTH),
        ("a", 1, FinishReason.CANCELLED),
        ("a", 2, FinishReason.LENGTH),
    ]


@pytest.mark.parametrize(
    ("prompt", "sampling", "error", "field"),
    [
        ((), {}, "InvalidRequest", "prompt"),
        ((1, VOCAB_SIZE), {}, "InvalidRequest", "prompt"),
        ((1,), {"max_tokens": 2000}, "InvalidRequest", "max_tokens"),
        ((1,), {"stop_token_ids": frozenset({VOCAB_SIZE})}, "InvalidRequest", "stop_token_ids"),
        ((1,), {"n": 65}, "QueueFull", None),
    ],
)
def test_a_request_that_cannot_run_is_refused_with_its_reason_and_no_other_suffers(prompt, sampling, error, field):
    rank = Rank()
    rank.submit("bad", prompt, **sampling)
    rank.submit("good")
    rank.steps(5)
    (refused,) = rank.refused
    assert (refused.request_id, refused.error, refused.field) == ("bad", error, field)
    assert rank.finishes() == [("good", 0, FinishReason.LENGTH)]


def test_an_id_in_use_is_refused_and_can_be_used_again_after_its_end():
    rank = Rank()
    rank.submit("a", max_tokens=2)
    rank.steps(1)
    rank.submit("a", max_tokens=2)
    rank.steps(3)
    assert [(r.error, r.field) for r in rank.refused] == [("AlreadyRunning", None)]
    rank.submit("a", max_tokens=2)
    rank.steps(3)
    assert rank.finishes() == [("a", 0, FinishReason.LENGTH)] * 2


def test_a_deadline_that_passes_ends_the_request_with_what_it_has():
    rank = Rank()
    rank.submit("a", max_tokens=100, deadline=rank.clock.now() + 0.035)
    rank.steps(8)
    assert rank.finishes() == [("a", 0, FinishReason.DEADLINE)]
    assert len(rank.tokens_of("a")) == 4


def test_an_error_of_the_model_comes_out_of_the_loop_and_its_step_stays_unspoken():
    rank = Rank()
    rank.submit("a", max_tokens=5)
    rank.steps(2)
    rank.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        rank.loop.run()
    tokens, _ = expected_output(make_request("a", [1, 2, 3], max_tokens=5))
    assert rank.tokens_of("a") == tokens[:2]


def test_a_command_wakes_the_group_only_once_it_is_connected():
    rank = Rank()
    rank.submit("a")
    assert rank.journal == []
    rank.inbox.connect(rank.group.notify)
    assert rank.journal == ["notify"]
    rank.submit("b")
    assert rank.journal == ["notify", "notify"]


def test_ranks_learn_the_size_of_a_decode_step_and_the_model_what_was_agreed():
    rank = Rank(max_chunk_tokens=64)
    rank.submit("a", prompt_of(70), max_tokens=3)
    rank.group.agreed = DecodeSize(8, 500)
    rank.steps(5)
    assert rank.group.said == [None, None, DecodeSize(1, 71), DecodeSize(1, 72), NO_ROWS]
    assert rank.told == [DecodeSize(8, 500)] * 4
