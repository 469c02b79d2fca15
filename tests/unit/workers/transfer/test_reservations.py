"""Reservations: what they keep, who gets it, and that all of it comes back without anybody's message."""

from __future__ import annotations

import pytest

from baleen.blocks import BlockHash
from baleen.errors import CapacityError, DrainingError, InvalidRequest, NotReady, QueueFull
from baleen.ids import RequestId
from tests.support.engine import block_marks, expected_output, make_request, prompt_of
from tests.support.fake_transport import FakeTransport
from tests.support.loop_rank import Rank
from workers.cache.blocks import BlockCache
from workers.cache.ledger import Holder, HolderKind
from workers.engine.messages import Drain, Reserve
from workers.transfer.transport import BlockLanded, LandingEnded

PROMPT = prompt_of(200)


@pytest.fixture
def rank():
    return Rank(make_transport=lambda model: FakeTransport())


def small_rank(num_blocks, **options):
    return Rank(make_transport=lambda model: FakeTransport(), num_blocks=num_blocks, **options)


def write(rank, block_id, content):
    for view in rank.model.views(block_id):
        view[:], content = content[: len(view)], content[len(view) :]


def arrive(rank, reservation, prompt, count):
    """The next `count` blocks come, right after those that came before."""
    landing = rank.transport.landings[reservation.ticket]
    rank.transport.connected.add(reservation.ticket)
    for place in range(count):
        index = landing.first_block + place
        write(rank, landing.block_ids[place], block_marks(b"", prompt, index))
        rank.inbox.put(BlockLanded(reservation.ticket, index))
    if count == len(landing.block_ids):
        end(rank, reservation)
    rank.steps(1)


def end(rank, reservation, failure=None):
    rank.transport.end(reservation.ticket)
    rank.inbox.put(LandingEnded(reservation.ticket, failure))


def counts(rank):
    return rank.blocks.num_arriving, rank.blocks.num_held, rank.blocks.num_cached


def test_what_arrived_is_pinned_until_its_request_has_it(rank):
    reservation = rank.reserve(PROMPT).result(0)
    assert counts(rank) == (3, 0, 0)
    arrive(rank, reservation, PROMPT, 3)
    assert counts(rank) == (0, 3, 0)
    rank.submit("a", PROMPT, ticket=reservation.ticket)
    rank.steps(1)
    assert len(rank.moves.reservations) == 0 and not rank.blocks.is_encumbered, "the request alone holds them now"
    assert counts(rank) == (0, 4, 0)
    rank.steps(5)
    assert rank.tokens_of("a") == expected_output(make_request("a", PROMPT, max_tokens=3))[0]
    assert rank.model.num_computed == 200 - 192 + 2 and rank.busy_blocks == 0


def test_a_prefix_at_hand_is_pinned_and_only_the_rest_is_expected(rank):
    rank.submit("a", PROMPT)
    rank.steps(4)
    longer = PROMPT[:192] + prompt_of(100, 5)
    reservation = rank.reserve(longer).result(0)
    assert (reservation.num_held_blocks, reservation.num_reserved_blocks) == (3, 1)
    assert rank.transport.landings[reservation.ticket].first_block == 3
    assert counts(rank) == (1, 3, 0)


def test_a_reservation_of_what_is_all_at_hand_expects_nothing(rank):
    rank.submit("a", PROMPT)
    rank.steps(4)
    reservation = rank.reserve(PROMPT).result(0)
    assert reservation.num_reserved_blocks == 0 and not rank.transport.landings
    rank.release(reservation)
    assert counts(rank) == (0, 0, 3)


def test_blocks_under_a_writer_are_not_given_to_others_until_it_has_gone(rank):
    reservation = rank.reserve(PROMPT).result(0)
    rank.transport.connected.add(reservation.ticket)
    rank.release(reservation)
    assert counts(rank) == (3, 0, 0), "it may still write"
    end(rank, reservation, "cut")
    rank.steps(1)
    assert counts(rank) == (0, 0, 0) and len(rank.moves.reservations) == 0


def test_what_landed_before_the_end_of_a_claimed_reservation_stays_with_its_request(rank):
    reservation = rank.reserve(PROMPT).result(0)
    arrive(rank, reservation, PROMPT, 2)
    rank.submit("a", PROMPT, ticket=reservation.ticket)
    rank.steps(1)
    assert rank.transport.cut == {reservation.ticket} and rank.blocks.num_arriving == 1
    # a late block is nobody's
    rank.inbox.put(BlockLanded(reservation.ticket, 2))
    end(rank, reservation, "cut")
    rank.steps(5)
    assert rank.tokens_of("a") == expected_output(make_request("a", PROMPT, max_tokens=3))[0]
    assert rank.outputs[-1].num_cached_tokens == 128 and rank.busy_blocks == 0


def test_a_connection_that_ends_early_frees_what_did_not_come(rank):
    reservation = rank.reserve(PROMPT).result(0)
    arrive(rank, reservation, PROMPT, 1)
    end(rank, reservation, "cut")
    rank.steps(1)
    assert counts(rank) == (0, 1, 0)


def test_content_that_was_computed_here_meanwhile_is_taken_from_the_cache(rank):
    reservation = rank.reserve(PROMPT).result(0)
    rank.submit("a", PROMPT)
    rank.steps(4)
    assert counts(rank) == (3, 0, 3)
    free = rank.blocks.num_free
    arrive(rank, reservation, PROMPT, 3)
    assert counts(rank) == (0, 3, 0) and rank.blocks.num_free == free + 3
    rank.release(reservation)
    assert counts(rank) == (0, 0, 3)


def test_a_block_whose_name_is_taken_ends_the_landing():
    def same_name(parent: BlockHash, packed: bytes) -> BlockHash:
        return BlockHash(b"n" * 16)

    blocks = BlockCache(8, b"model", hash_block=same_name)
    arrival = blocks.expect(Holder(RequestId("1"), 0, HolderKind.RESERVATION), b"", PROMPT, reserve=0)
    assert arrival is not None and blocks.land(arrival)
    assert not blocks.land(arrival)
    assert (blocks.num_arriving, blocks.num_held, blocks.num_free) == (1, 1, 6)
    blocks.give_up(arrival)
    blocks.unpin(arrival.holder)
    blocks.check({})
    assert (blocks.num_cached, blocks.num_free) == (1, 7)


def test_an_expired_reservation_is_reaped_by_an_idle_rank(rank):
    rank.reserve(PROMPT, timeout_s=3.0).result(0)
    waits = []

    def sleep(timeout_s):
        waits.append(timeout_s)
        rank.clock.advance(timeout_s)
        return False

    rank.group.on_wait = sleep
    rank.steps(1)
    assert rank.busy_blocks == 0 and sum(waits) == pytest.approx(3.0)


def test_each_block_that_lands_puts_the_deadline_off(rank):
    reservation = rank.reserve(PROMPT, timeout_s=3.0).result(0)
    landing, reservations = rank.transport.landings[reservation.ticket], rank.moves.reservations
    for place in range(3):
        rank.clock.advance(2.9)
        reservations.landed(BlockLanded(reservation.ticket, landing.first_block + place))
        assert not reservations.reap()
    rank.clock.advance(3.0)
    assert reservations.reap(), "nothing has come for as long as it may"


def test_an_expired_ticket_costs_the_blocks_only(rank):
    reservation = rank.reserve(PROMPT, timeout_s=3.0).result(0)
    arrive(rank, reservation, PROMPT, 3)
    rank.clock.advance(3.0)
    rank.steps(1)
    assert counts(rank) == (0, 0, 3)
    rank.submit("a", PROMPT, ticket=reservation.ticket)
    rank.steps(5)
    assert rank.outputs[-1].num_cached_tokens == 192 and not rank.refused


def test_pins_end_with_a_request_that_never_ran(rank):
    reservation = rank.reserve(PROMPT).result(0)
    arrive(rank, reservation, PROMPT, 3)
    rank.submit("a", PROMPT, ticket=reservation.ticket, deadline=rank.clock.now() - 1)
    rank.steps(1)
    assert rank.busy_blocks == 0 and len(rank.moves.reservations) == 0


def test_pins_end_with_a_request_that_is_refused(rank):
    reservation = rank.reserve(PROMPT).result(0)
    arrive(rank, reservation, PROMPT, 3)
    rank.submit("a", PROMPT, ticket=reservation.ticket, max_tokens=5000)
    rank.steps(1)
    assert rank.refused[0].field == "max_tokens"
    assert rank.busy_blocks == 0 and len(rank.moves.reservations) == 0


def pinned_pair(rank):
    """Two prompts of three blocks, of which two each have arrived: name to prompt, and name to ticket."""
    prompts = {"a": prompt_of(130, 1), "b": prompt_of(130, 2)}
    tickets = {}
    for name, prompt in prompts.items():
        reservation = rank.reserve(prompt).result(0)
        arrive(rank, reservation, prompt, 2)
        tickets[name] = reservation.ticket
    assert rank.blocks.num_held == 4
    return prompts, tickets


def test_pins_of_those_behind_do_not_keep_the_first_from_starting():
    rank = small_rank(6)
    prompts, tickets = pinned_pair(rank)
    prompts = {"first": prompt_of(180, 3), **prompts}
    for name, prompt in prompts.items():
        rank.submit(name, prompt, ticket=tickets.get(name))
    rank.steps(20)
    for name, prompt in prompts.items():
        assert rank.tokens_of(name) == expected_output(make_request(name, prompt, max_tokens=3))[0]
    assert rank.busy_blocks == 0


def test_a_running_request_takes_pinned_room_before_it_gives_way():
    rank = small_rank(6)
    prompts, tickets = pinned_pair(rank)
    rank.submit("runs", prompt_of(120, 3), max_tokens=100)
    rank.steps(1)
    for name, prompt in prompts.items():
        rank.submit(name, prompt, ticket=tickets[name])
    rank.steps(130)
    assert len(rank.finishes()) == 3 and rank.scheduler.tallies.preemptions == 0 and rank.busy_blocks == 0


def test_a_request_waits_until_reservations_give_blocks_back():
    rank = small_rank(4)
    reservation = rank.reserve(PROMPT, timeout_s=3.0).result(0)
    rank.submit("a", prompt_of(100, 2))
    rank.group.on_wait = lambda timeout_s: rank.clock.advance(timeout_s) or not rank.scheduler.has_work
    rank.steps(1)
    assert rank.scheduler.num_waiting == 1
    rank.release(reservation)
    rank.steps(5)
    assert rank.finishes() and rank.busy_blocks == 0


def test_a_stalled_request_still_meets_its_deadline():
    rank = small_rank(4)
    rank.reserve(PROMPT, timeout_s=60.0).result(0)
    rank.submit("a", prompt_of(100, 2), deadline=rank.clock.now() + 1.0)
    rank.group.on_wait = lambda timeout_s: rank.clock.advance(timeout_s) or not rank.scheduler.has_work
    rank.steps(40)
    assert [finish.value for _, _, finish in rank.finishes()] == ["deadline"]


def test_a_reservation_leaves_room_for_what_waits_and_for_its_own_tail():
    rank = small_rank(4)
    with pytest.raises(CapacityError, match="5 cache blocks, the whole pool has 4"):
        rank.reserve(prompt_of(257)).result(0)
    rank.reserve(PROMPT).result(0)
    with pytest.raises(QueueFull, match="1 must stay available"):
        rank.reserve(prompt_of(65, 2)).result(0)
    rank = small_rank(8, max_running=1)
    rank.submit("runs", prompt_of(60), max_tokens=60)
    rank.submit("waits", prompt_of(120, 2))
    rank.steps(1)
    assert rank.scheduler.num_waiting == 1 and rank.scheduler.num_spoken_for == 1 + 2 + 1
    with pytest.raises(QueueFull):
        rank.reserve(prompt_of(300, 3)).result(0)
    assert rank.reserve(prompt_of(200, 3)).result(0).num_reserved_blocks == 3


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 601.0, float("nan")])
def test_a_reservation_has_a_bounded_time(rank, timeout_s):
    with pytest.raises(InvalidRequest, match="timeout"):
        rank.reserve(PROMPT, timeout_s=timeout_s).result(0)


def test_a_rank_without_a_transport_reserves_nothing():
    with pytest.raises(NotReady):
        Rank().reserve(PROMPT).result(0)


def test_a_reservation_that_nobody_waits_for_is_given_back(rank):
    reply = rank.reserve(PROMPT)
    assert rank.blocks.num_arriving == 3
    rank.release(reply.result(0))
    rank.group.on_wait = lambda timeout_s: True
    reply = type(reply)()
    reply.cancel()
    rank.loop._obey(_reserve_with(reply))
    assert rank.busy_blocks == 0


def _reserve_with(reply):
    return Reserve(token_ids=tuple(PROMPT), cache_salt="", timeout_s=9.0, reply=reply)


def test_a_draining_rank_gives_all_reservations_back_and_takes_no_more(rank):
    reservation = rank.reserve(PROMPT).result(0)
    arrive(rank, reservation, PROMPT, 1)
    rank.submit("a", prompt_of(5), max_tokens=30)
    rank.steps(1)
    rank.inbox.put(Drain("test"))
    rank.steps(1)
    end(rank, reservation, "cut")
    rank.steps(1)
    assert rank.blocks.num_arriving == 0 and len(rank.moves.reservations) == 0
    with pytest.raises(DrainingError):
        rank.reserve(PROMPT).result(0)


def test_a_ticket_says_nothing_and_is_never_the_same(rank):
    tickets = {rank.reserve(prompt_of(65, start)).result(0).ticket for start in range(8)}
    assert len(tickets) == 8 and all(len(ticket) >= 20 for ticket in tickets)


def test_the_audit_names_a_leaking_reservation(rank):
    rank.reserve(PROMPT).result(0)
    rank.moves.reservations._by_ticket.clear()
    rank.blocks._arrivals.clear()
    with pytest.raises(Exception, match=r"reservation 0\[0\] leaks"):
        rank.scheduler.check()
