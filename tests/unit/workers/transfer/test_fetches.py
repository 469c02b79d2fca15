"""Fetches: what leaves, what is lent meanwhile, and how each one ends."""

from __future__ import annotations

import pytest

from baleen.blocks import chain_hashes, root_hash
from baleen.errors import DrainingError, InvalidRequest, NotReady, QueueFull
from tests.support.engine import FINGERPRINT, block_marks, prompt_of
from tests.support.fake_transport import FakeTransport
from tests.support.loop_rank import Rank
from workers.engine.loop import DRAINED
from workers.engine.messages import Drain, FetchDone, Reservation, WithdrawFetch
from workers.transfer.fetches import MOST_FETCHES
from workers.transfer.transport import BlockPushed, PushEnded

PROMPT = prompt_of(300)


def destination(first_block=0, address="10.0.0.1:99"):
    return Reservation("ticket", address, first_block, 9, 60.0)


def holder_of(prompt=PROMPT, *, salt="", **options):
    """A rank that has the prompt in its cache."""
    rank = Rank(make_transport=lambda model: FakeTransport(), **options)
    rank.prefill("warm", prompt, salt=salt)
    rank.step_until(lambda: rank.prefills_done)
    return rank


def acknowledge(rank, push, count):
    for _ in range(count):
        rank.inbox.put(BlockPushed(push.number))
    rank.steps(1)


def end(rank, push, failure=None):
    rank.inbox.put(PushEnded(push.number, failure))
    rank.steps(1)


def test_cached_blocks_are_sent_and_lent_until_the_end_and_nothing_is_computed():
    rank = holder_of()
    computed = rank.model.num_computed
    fetch = rank.fetch(PROMPT, destination(first_block=1))
    (push,) = rank.transport.pushes
    assert (push.first_block, push.num_blocks, push.finished) == (1, 3, True)
    hashes = chain_hashes(root_hash(FINGERPRINT, b""), PROMPT)
    for place, (index, block_id, block_hash) in enumerate(push.blocks):
        assert (index, block_hash) == (place + 1, hashes[place + 1])
        assert b"".join(rank.model.views(block_id)) == block_marks(b"", PROMPT, index)
    acknowledge(rank, push, 2)
    assert rank.blocks.num_lent == 3 and not fetch.reply.done()
    acknowledge(rank, push, 1)
    end(rank, push)
    assert fetch.reply.result(0) == FetchDone(4, 3)
    assert rank.busy_blocks == 0 and rank.blocks.num_cached == 4 and rank.model.num_computed == computed


@pytest.mark.parametrize("prompt", [prompt_of(300, 5), [*PROMPT[:63], 5, *PROMPT[64:]]], ids=["other", "first block"])
def test_what_is_not_here_is_said_at_once(prompt):
    rank = holder_of()
    fetch = rank.fetch(prompt, destination())
    assert fetch.reply.result(0) == FetchDone(0, 0, "of 4 blocks only the first 0 are here")
    assert rank.transport.pushes == [] and rank.busy_blocks == 0


def test_another_tenants_blocks_are_not_here():
    rank = holder_of(salt="mine")
    assert rank.fetch(PROMPT, destination(), salt="yours").reply.result(0).num_blocks == 0
    fetch = rank.fetch(PROMPT, destination(), salt="mine")
    assert len(rank.transport.pushes[0].blocks) == 4 and not fetch.reply.done()


def test_what_was_evicted_in_part_is_sent_in_part():
    rank = holder_of(num_blocks=8)
    rank.prefill("other", prompt_of(350, 9))
    rank.step_until(lambda: len(rank.prefills_done) == 2)
    fetch = rank.fetch(PROMPT, destination())
    (push,) = rank.transport.pushes
    assert push.num_blocks == 4 and [index for index, *_ in push.blocks] == [0, 1, 2] and push.finished
    acknowledge(rank, push, 3)
    end(rank, push)
    assert fetch.reply.result(0) == FetchDone(3, 3, "of 4 blocks only the first 3 are here")


@pytest.mark.parametrize("first_block", [4, 7])
def test_a_destination_that_has_all_is_not_called(first_block):
    rank = holder_of()
    fetch = rank.fetch(PROMPT, destination(first_block=first_block))
    assert fetch.reply.result(0) == FetchDone(4, 0) and rank.transport.pushes == []


def test_lent_blocks_are_not_evicted():
    rank = holder_of(num_blocks=9)
    fetch = rank.fetch(PROMPT, destination())
    rank.prefill("other", prompt_of(350, 9))
    rank.step_until(lambda: len(rank.prefills_done) == 2)
    (push,) = rank.transport.pushes
    for index, block_id, _ in push.blocks:
        assert b"".join(rank.model.views(block_id)) == block_marks(b"", PROMPT, index)
    end(rank, push, "the peer hung up")
    assert fetch.reply.result(0) == FetchDone(4, 0, "the peer hung up") and rank.busy_blocks == 0


def test_the_deadline_ends_a_fetch():
    rank = holder_of()
    fetch = rank.fetch(PROMPT, destination(), timeout_s=5.0)
    (push,) = rank.transport.pushes
    assert rank.moves.next_deadline == fetch.deadline
    rank.clock.advance(5.0)
    rank.steps(1)
    assert push.cancelled == "deadline" and not fetch.reply.done() and rank.blocks.num_lent == 4
    assert rank.moves.next_deadline is None, "the end of the transfer is all there is to wait for"
    end(rank, push, "deadline")
    assert fetch.reply.result(0) == FetchDone(4, 0, "deadline") and rank.busy_blocks == 0


def test_a_fetch_that_nobody_waits_for_is_ended_and_no_other():
    rank = holder_of()
    first, second = rank.fetch(PROMPT, destination()), rank.fetch(PROMPT, destination())
    first.reply.cancel()
    rank.inbox.put(WithdrawFetch(first))
    rank.steps(1)
    pushes = rank.transport.pushes
    assert [push.cancelled for push in pushes] == ["cancelled", None]
    for push in pushes:
        end(rank, push, push.cancelled)
    assert second.reply.result(0).failure is None and rank.busy_blocks == 0
    rank.inbox.put(WithdrawFetch(first))
    rank.steps(1)


def test_fetches_are_bounded():
    rank = holder_of()
    for _ in range(MOST_FETCHES):
        rank.fetch(PROMPT, destination())
    with pytest.raises(QueueFull, match="16 fetches"):
        rank.fetch(PROMPT, destination()).reply.result(0)


def test_a_fetch_that_cannot_be_is_refused():
    rank = holder_of()
    with pytest.raises(InvalidRequest, match="nowhere"):
        rank.fetch(PROMPT, destination(address="nowhere")).reply.result(0)
    with pytest.raises(NotReady, match="sends no transfers"):
        Rank().fetch(PROMPT, destination()).reply.result(0)
    rank.inbox.put(Drain("test"))
    with pytest.raises(DrainingError):
        rank.fetch(PROMPT, destination()).reply.result(0)


def test_a_rank_that_leaves_answers_for_its_fetches():
    rank = holder_of()
    fetch = rank.fetch(PROMPT, destination())
    rank.inbox.put(Drain("test", 0.0))
    assert rank.loop.run() == "test"
    assert fetch.reply.result(0) == FetchDone(4, 0, DRAINED)


def test_prefills_and_fetches_do_not_take_each_others_news():
    rank = holder_of()
    rank.fetch(PROMPT, destination())
    end(rank, rank.transport.pushes[0])
    rank.prefill("a", PROMPT, destination())
    rank.steps(1)
    fetch = rank.fetch(PROMPT, destination())
    _, prefill, fetched = rank.transport.pushes
    acknowledge(rank, fetched, 4)
    end(rank, fetched)
    assert fetch.reply.result(0) == FetchDone(4, 4) and len(rank.prefills_done) == 1
    acknowledge(rank, prefill, 4)
    end(rank, prefill)
    assert rank.prefills_done[1].num_pushed == 4 and rank.busy_blocks == 0
