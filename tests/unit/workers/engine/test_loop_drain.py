"""How a rank drains: what runs finishes, what comes is refused, and the group leaves together."""

from baleen.ids import RequestId
from tests.support.engine import expected_output, make_request
from tests.support.loop_rank import Rank
from workers.engine.batch import FinishReason
from workers.engine.loop import DRAINED
from workers.engine.messages import Abort, Drain


def test_a_draining_rank_finishes_what_runs_and_refuses_what_comes():
    rank = Rank()
    rank.submit("a", max_tokens=4)
    rank.steps(1)
    rank.inbox.put(Drain("SIGTERM received"))
    rank.submit("late")
    assert rank.loop.run() == "SIGTERM received"
    assert rank.finishes() == [("a", 0, FinishReason.LENGTH)]
    (refused,) = rank.refused
    assert (refused.request_id, refused.error) == ("late", "DrainingError")
    assert "SIGTERM received" in refused.message


def test_what_is_left_when_the_time_to_drain_is_over_fails_and_can_continue_elsewhere():
    rank = Rank(max_running=1)
    rank.submit("running", max_tokens=500)
    rank.submit("waiting", n=2)
    rank.steps(3)
    rank.inbox.put(Drain("SIGTERM received", 0.05))
    rank.loop.run()
    ends = [(o.request_id, o.index, o.finish, o.detail) for o in rank.outputs if o.finish]
    assert sorted(ends) == [
        ("running", 0, FinishReason.FAILED, DRAINED),
        ("waiting", 0, FinishReason.FAILED, DRAINED),
        ("waiting", 1, FinishReason.FAILED, DRAINED),
    ]
    tokens, _ = expected_output(make_request("running", [1, 2, 3], max_tokens=500))
    assert rank.tokens_of("running") == tokens[:8], "three steps, and five of 0.01 s until the time was over"
    assert rank.blocks.num_held == 0


def test_a_client_s_abort_while_draining_stays_cancelled():
    rank = Rank()
    rank.submit("a", max_tokens=500)
    rank.steps(2)
    rank.inbox.put(Drain("SIGTERM received"))
    rank.inbox.put(Abort(RequestId("a")))
    rank.loop.run()
    assert rank.finishes() == [("a", 0, FinishReason.CANCELLED)]


def test_a_second_drain_shortens_the_time_and_never_lengthens_it():
    rank = Rank()
    rank.submit("a", max_tokens=500)
    rank.steps(2)
    rank.inbox.put(Drain("first", 0.0))
    rank.inbox.put(Drain("second", 1000.0))
    assert rank.loop.run() == "first"
    assert len(rank.tokens_of("a")) == 2
    rank = Rank()
    rank.submit("a", max_tokens=500)
    rank.steps(2)
    rank.inbox.put(Drain("first", 1000.0))
    rank.inbox.put(Drain("second", 0.0))
    rank.loop.run()
    assert len(rank.tokens_of("a")) == 2


def test_draining_spreads_through_the_group_and_all_leave_together():
    rank = Rank(world_size=2)
    rank.submit("a", max_tokens=5)
    rank.steps(1)
    rank.group.peer_draining = True
    rank.group.peer_tokens = [1] * 6
    rank.steps(1)
    rank.submit("late")
    reason = rank.loop.run()
    assert "rank 1 of the group drains" in reason
    assert [r.error for r in rank.refused] == ["DrainingError"]
    assert rank.finishes() == [("a", 0, FinishReason.LENGTH)]
    assert rank.group.peer_tokens == [], "it left while the peer still had tokens to compute"


def test_a_drained_rank_waits_for_a_peer_that_does_not_drain_yet():
    rank = Rank(world_size=2)
    rank.inbox.put(Drain("SIGTERM received"))
    waits = []

    def wait(timeout_s):
        waits.append(timeout_s)
        rank.group.peer_draining = len(waits) == 3
        return False

    rank.group.on_wait = wait
    rank.loop.run()
    assert len(waits) == 3 and max(waits) < 0.1


def test_a_request_that_comes_with_the_leaving_is_answered():
    rank = Rank()
    rank.inbox.put(Drain("SIGTERM received"))
    exchange = rank.group.exchange

    def late(step, num_tokens, **said):
        rank.submit("late")
        return exchange(step, num_tokens, **said)

    rank.group.exchange = late
    rank.loop.run()
    assert [(r.request_id, r.error) for r in rank.refused] == [("late", "DrainingError")]
    assert not rank.inbox.put(Abort(RequestId("x"))), "whoever comes later is told that nobody reads"
