"""Prefills: when blocks leave, what is lent meanwhile, and how each one ends."""

from __future__ import annotations

import pytest

from baleen.blocks import chain_hashes, root_hash
from tests.support.engine import FINGERPRINT, block_marks, expected_output, make_request, prompt_of
from tests.support.fake_transport import FakeTransport
from tests.support.loop_rank import Rank
from workers.engine.loop import DRAINED
from workers.engine.messages import Abort, Drain, Reservation
from workers.transfer.prefills import STALL_TIMEOUT_S
from workers.transfer.transport import BlockPushed, PushEnded

PROMPT = prompt_of(200)


def destination(first_block=0, address="10.0.0.1:99"):
    return Reservation("ticket", address, first_block, 9, 60.0)


@pytest.fixture
def rank():
    return Rank(make_transport=lambda model: FakeTransport(), max_chunk_tokens=70, max_batch_tokens=80)


def acknowledge(rank, push, count):
    for _ in range(count):
        del push.blocks[0]
        rank.inbox.put(BlockPushed(push.number))
    rank.steps(1)


def end(rank, push, failure=None):
    rank.inbox.put(PushEnded(push.number, failure))
    rank.steps(1)


def outcome(rank):
    (done,) = rank.prefills_done
    return done.num_blocks, done.num_pushed, done.num_cached, done.failure


def test_each_block_leaves_with_the_step_that_completes_it(rank):
    rank.prefill("a", PROMPT, destination())
    given = []
    for _ in range(3):
        rank.steps(1)
        (push,) = rank.transport.pushes
        given.append(len(push.blocks))
    assert given == [1, 2, 3] and push.finished and (push.first_block, push.num_blocks) == (0, 3)
    hashes = chain_hashes(root_hash(FINGERPRINT, b""), PROMPT)
    for index, (place, block_id, block_hash) in enumerate(push.blocks):
        assert (place, block_hash) == (index, hashes[index])
        assert b"".join(rank.model.views(block_id)) == block_marks(b"", PROMPT, index)
    assert rank.model.num_computed == 192, "nothing beyond the whole blocks is computed"
    assert rank.outputs == []


def test_blocks_are_lent_until_each_is_acknowledged_and_the_answer_comes_last(rank):
    rank.prefill("a", PROMPT, destination())
    rank.steps(4)
    push = rank.transport.pushes[0]
    assert rank.blocks.num_lent == 3 and rank.blocks.num_held == 0
    acknowledge(rank, push, 2)
    assert (rank.blocks.num_lent, rank.blocks.num_cached) == (1, 2) and not rank.prefills_done
    acknowledge(rank, push, 1)
    assert rank.busy_blocks == 0 and not rank.prefills_done
    end(rank, push)
    assert outcome(rank) == (3, 3, 0, None)


def test_only_what_the_destination_lacks_is_pushed(rank):
    rank.prefill("a", PROMPT, destination(first_block=2))
    rank.steps(4)
    (push,) = rank.transport.pushes
    assert (push.first_block, push.num_blocks) == (2, 1) and [index for index, *_ in push.blocks] == [2]


@pytest.mark.parametrize("first_block", [3, 7])
def test_a_destination_that_has_all_is_not_called(rank, first_block):
    rank.prefill("a", PROMPT, destination(first_block=first_block))
    rank.steps(5)
    assert rank.transport.pushes == [] and outcome(rank) == (3, 0, 0, None)


def test_cached_blocks_leave_at_once(rank):
    rank.submit("warm", PROMPT)
    rank.steps(8)
    computed = rank.model.num_computed
    rank.prefill("a", PROMPT, destination())
    rank.steps(1)
    (push,) = rank.transport.pushes
    assert len(push.blocks) == 3 and push.finished and rank.model.num_computed == computed
    acknowledge(rank, push, 3)
    end(rank, push)
    assert outcome(rank) == (3, 3, 3, None)


def test_lent_blocks_outlive_their_request_and_are_not_evicted():
    rank = Rank(make_transport=lambda model: FakeTransport(), num_blocks=6)
    rank.prefill("a", PROMPT, destination())
    rank.steps(2)
    push = rank.transport.pushes[0]
    rank.submit("b", prompt_of(180, 2), max_tokens=10)
    rank.steps(12)
    assert rank.tokens_of("b") == expected_output(make_request("b", prompt_of(180, 2), max_tokens=10))[0]
    for index, block_id, _ in push.blocks:
        assert b"".join(rank.model.views(block_id)) == block_marks(b"", PROMPT, index)


def test_a_failed_transfer_ends_the_computing(rank):
    rank.prefill("a", prompt_of(900), destination())
    rank.steps(2)
    end(rank, rank.transport.pushes[0], "the peer hung up")
    rank.steps(2)
    assert outcome(rank) == (14, 0, 0, "the peer hung up")
    assert not rank.scheduler.has_work and rank.busy_blocks == 0 and rank.model.num_computed < 300


def test_an_abort_cancels_the_transfer_and_frees_once_it_has_ended(rank):
    rank.prefill("a", prompt_of(900), destination())
    rank.steps(2)
    push = rank.transport.pushes[0]
    rank.inbox.put(Abort("a"))
    rank.steps(2)
    assert push.cancelled and not rank.prefills_done and rank.busy_blocks == rank.blocks.num_lent == len(push.blocks)
    end(rank, push, "cancelled")
    assert outcome(rank) == (14, 0, 0, "cancelled") and rank.busy_blocks == 0


def test_a_transfer_without_progress_is_given_up(rank):
    rank.prefill("a", PROMPT, destination())
    rank.steps(4)
    push = rank.transport.pushes[0]
    rank.clock.advance(STALL_TIMEOUT_S - 1)
    acknowledge(rank, push, 1)
    rank.clock.advance(STALL_TIMEOUT_S - 1)
    rank.steps(1)
    assert push.cancelled is None
    rank.clock.advance(1)
    rank.steps(1)
    assert "acknowledged within" in push.cancelled
    end(rank, push, push.cancelled)
    assert outcome(rank)[1] == 1 and "acknowledged within" in outcome(rank)[3]


def test_the_deadline_of_a_request_ends_its_transfer_too(rank):
    rank.prefill("a", PROMPT, destination(), deadline=rank.clock.now() + 5)
    rank.steps(4)
    push = rank.transport.pushes[0]
    rank.clock.advance(5)
    rank.steps(1)
    assert push.cancelled == "deadline"


def test_a_preempted_prefill_sends_each_block_once():
    rank = Rank(make_transport=lambda model: FakeTransport(), num_blocks=6, max_chunk_tokens=2)
    rank.submit("first", prompt_of(60, 4), max_tokens=100)
    rank.steps(30)
    rank.prefill("a", prompt_of(300), destination())
    for _ in range(300):
        rank.steps(1)
        for push in rank.transport.pushes:
            acknowledge(rank, push, len(push.blocks[:1]))
    assert rank.scheduler.tallies.preemptions > 0 and rank.finishes()
    (push,) = rank.transport.pushes
    end(rank, push)
    assert outcome(rank) == (4, 4, 0, None)


@pytest.mark.parametrize(
    ("address", "first_block"),
    [("nowhere", 0), (":5", 0), ("10.0.0.1:", 0), ("10.0.0.1:x", 0), ("10.0.0.1:70000", 0), ("10.0.0.1:9", -1)],
)
def test_a_destination_that_cannot_be_is_refused(rank, address, first_block):
    rank.prefill("a", PROMPT, destination(first_block, address))
    rank.steps(1)
    assert [(refused.request_id, refused.field) for refused in rank.refused] == [("a", "destination")]
    assert rank.prefills_done == []


def test_a_prefill_is_refused_for_the_reasons_of_any_request(rank):
    rank.prefill("empty", [])
    rank.prefill("long", prompt_of(2000))
    rank.prefill("twice", PROMPT)
    rank.prefill("twice", PROMPT)
    rank.submit("twice", PROMPT)
    rank.steps(1)
    assert [(refused.request_id, refused.error, refused.field) for refused in rank.refused] == [
        ("empty", "InvalidRequest", "prompt"),
        ("long", "InvalidRequest", "max_tokens"),
        ("twice", "AlreadyRunning", None),
        ("twice", "AlreadyRunning", None),
    ]


def test_without_a_transport_nothing_is_pushed_but_caches_can_be_warmed():
    rank = Rank()
    rank.prefill("push", PROMPT, destination())
    rank.prefill("warm", PROMPT)
    rank.steps(4)
    assert [refused.error for refused in rank.refused] == ["NotReady"]
    assert outcome(rank) == (3, 0, 0, None) and rank.blocks.num_cached == 3


def test_a_rank_out_of_time_to_drain_answers_for_its_prefills(rank):
    rank.prefill("a", prompt_of(900), destination())
    rank.steps(2)
    rank.inbox.put(Drain("test", 0.0))
    assert rank.loop.run() == "test"
    assert outcome(rank)[3] == DRAINED


def test_whole_prompts_fit_a_pool_of_exactly_their_blocks():
    rank = Rank(make_transport=lambda model: FakeTransport(), num_blocks=3)
    rank.prefill("a", prompt_of(193))
    rank.steps(3)
    assert outcome(rank) == (3, 0, 0, None)


def test_chunks_that_leave_one_token_sample_nothing():
    for chunk in (1, 63, 64, 65, 127):
        rank = Rank(max_chunk_tokens=chunk, max_batch_tokens=130)
        rank.prefill("a", prompt_of(140))
        rank.steps(130)
        assert outcome(rank) == (2, 0, 0, None) and rank.model.num_computed == 128 and rank.outputs == []
