"""Two ranks in one process, one computes what the other continues: the tokens are those of one rank alone."""

from __future__ import annotations

import pytest

from tests.support.engine import expected_output, make_request, make_requests, prompt_of
from tests.support.loop_rank import Rank
from tests.support.transfer import cable
from workers.engine.batch import FinishReason
from workers.engine.messages import Abort, Drain
from workers.transfer.tcp import TcpTransport


def tcp(model):
    return TcpTransport("127.0.0.1", model, "ab" * 16)


@pytest.fixture
def pair():
    """A prefill rank with small chunks and a decode rank."""
    ranks = Rank(make_transport=tcp, max_chunk_tokens=50, max_batch_tokens=60), Rank(make_transport=tcp)
    yield ranks
    for rank in ranks:
        rank.transport.close()


def move(prefill, decode, name, prompt, *, salt="", timeout_s=60.0, address=None):
    """Reserve, prefill and push; the reservation and the answer of the prefill rank."""
    reservation = decode.reserve(prompt, salt=salt, timeout_s=timeout_s).result(0)
    if address is not None:
        reservation = type(reservation)(reservation.ticket, address, *_counts(reservation))
    prefill.prefill(f"{name}-prefill", prompt, reservation, salt=salt)
    count = len(prefill.prefills_done)
    prefill.step_until(lambda: len(prefill.prefills_done) > count, decode)
    return reservation, prefill.prefills_done[-1]


def _counts(reservation):
    return reservation.num_held_blocks, reservation.num_reserved_blocks, reservation.expires_in_s


def finish(rank, name):
    rank.step_until(lambda: [end for end in rank.finishes() if end[0] == name])
    return rank.tokens_of(name)


def alone(prompt, max_tokens=3):
    return expected_output(make_request("alone", prompt, max_tokens=max_tokens))[0]


def test_what_one_rank_computed_is_continued_by_the_other(pair):
    prefill, decode = pair
    prompt = prompt_of(300)
    reservation, done = move(prefill, decode, "a", prompt)
    assert (reservation.num_held_blocks, reservation.num_reserved_blocks) == (0, 4)
    assert (done.num_blocks, done.num_pushed, done.num_cached, done.failure) == (4, 4, 0, None)
    computed = decode.model.num_computed
    decode.submit("a", prompt, max_tokens=70, ticket=reservation.ticket)
    assert finish(decode, "a") == alone(prompt, max_tokens=70)
    assert decode.model.num_computed - computed == 300 - 256 + 69
    assert decode.outputs[-1].num_cached_tokens == 256
    assert prefill.busy_blocks == decode.busy_blocks == 0


def test_blocks_leave_before_the_prompt_is_computed(pair):
    prefill, decode = pair
    prompt = prompt_of(400)
    prefill.prefill("a", prompt, decode.reserve(prompt).result(0))
    for num_blocks in (1, 2, 3):
        while prefill.model.num_computed < num_blocks * 64:
            prefill.steps(1)
        decode.step_until(lambda expected=num_blocks: decode.blocks.num_held == expected)
    assert prefill.scheduler.has_work and prefill.model.num_computed < 256


def test_a_prefix_that_the_destination_holds_is_not_sent_again(pair):
    prefill, decode = pair
    first, second = prompt_of(200), prompt_of(200) + prompt_of(150, 3)
    reservation, _ = move(prefill, decode, "a", first)
    decode.submit("a", first, ticket=reservation.ticket)
    finish(decode, "a")
    reservation, done = move(prefill, decode, "b", second)
    assert (reservation.num_held_blocks, reservation.num_reserved_blocks) == (3, 2)
    assert (done.num_blocks, done.num_pushed, done.num_cached) == (5, 2, 3)
    decode.submit("b", second, ticket=reservation.ticket)
    assert finish(decode, "b") == alone(second)


def test_a_cached_prefix_is_fetched_without_computing(pair):
    holder, other = pair
    prompt = prompt_of(200)
    holder.submit("warm", prompt)
    finish(holder, "warm")
    computed = holder.model.num_computed
    reservation, done = move(holder, other, "a", prompt)
    assert holder.model.num_computed == computed
    assert (done.num_pushed, done.num_cached, done.failure) == (3, 3, None)
    other.submit("a", prompt, ticket=reservation.ticket)
    assert finish(other, "a") == alone(prompt)


def test_a_prefill_without_destination_warms_the_cache(pair):
    rank, _ = pair
    rank.prefill("warm", prompt_of(200))
    rank.step_until(lambda: rank.prefills_done)
    (done,) = rank.prefills_done
    assert (done.num_blocks, done.num_pushed, done.num_cached, done.failure) == (3, 0, 0, None)
    assert rank.outputs == [] and rank.blocks.num_cached == 3
    rank.prefill("again", prompt_of(200))
    rank.step_until(lambda: len(rank.prefills_done) == 2)
    assert rank.prefills_done[1].num_cached == 3 and rank.model.num_computed == 192


def test_a_prompt_without_a_whole_block_is_done_at_once(pair):
    prefill, decode = pair
    reservation, done = move(prefill, decode, "a", prompt_of(64))
    assert (reservation.num_reserved_blocks, done.num_blocks, done.failure) == (0, 0, None)
    decode.submit("a", prompt_of(64), ticket=reservation.ticket)
    assert finish(decode, "a") == alone(prompt_of(64))


def test_other_salts_do_not_match(pair):
    prefill, decode = pair
    prompt = prompt_of(200)
    reservation, _ = move(prefill, decode, "a", prompt, salt="one")
    decode.submit("b", prompt, salt="two")
    finish(decode, "b")
    assert decode.outputs[-1].num_cached_tokens == 0
    decode.submit("wrong", prompt, salt="two", ticket=reservation.ticket)
    decode.steps(1)
    assert decode.refused[-1].field == "ticket"
    decode.submit("a", prompt, salt="one", ticket=reservation.ticket)
    assert finish(decode, "a") == expected_output(make_requests("a", prompt, salt=b"one", max_tokens=3)[0])[0]
    assert decode.outputs[-1].num_cached_tokens == 192


def test_without_a_prefix_cache_blocks_still_move_and_nobody_else_finds_them():
    prefill = Rank(make_transport=tcp, prefix_cache=False)
    decode = Rank(make_transport=tcp, prefix_cache=False)
    prompt = prompt_of(200)
    _, done = move(prefill, decode, "a", prompt, salt="s")
    assert done.num_pushed == 3
    decode.submit("b", prompt, salt="s")
    finish(decode, "b")
    assert decode.outputs[-1].num_cached_tokens == 0
    # the fake model marks what it computes with the salt, which is secret here, so tokens are not looked at
    assert decode.reserve(prompt, salt="s").result(0).num_held_blocks == 0
    for rank in (prefill, decode):
        rank.transport.close()


@pytest.mark.parametrize("cut_at", [10, 500, 900, 2000])
def test_a_cut_connection_costs_work_and_nothing_else(pair, cut_at):
    prefill, decode = pair
    prompt = prompt_of(300)
    with cable(decode.transport.address, cut_at=cut_at) as address:
        reservation, done = move(prefill, decode, "a", prompt, address=address)
    assert done.failure and done.num_pushed < 4
    assert prefill.busy_blocks == 0
    decode.submit("a", prompt, max_tokens=70, ticket=reservation.ticket)
    assert finish(decode, "a") == alone(prompt, max_tokens=70)
    decode.step_until(lambda: decode.busy_blocks == 0)


@pytest.mark.parametrize("flip_at", [800, 1500, 2100])
def test_a_damaged_block_is_computed_again(pair, flip_at):
    prefill, decode = pair
    prompt = prompt_of(300)
    with cable(decode.transport.address, flip_at=flip_at) as address:
        reservation, done = move(prefill, decode, "a", prompt, address=address)
    assert done.failure
    decode.submit("a", prompt, max_tokens=70, ticket=reservation.ticket)
    assert finish(decode, "a") == alone(prompt, max_tokens=70)
    decode.step_until(lambda: decode.busy_blocks == 0)


def test_a_reservation_that_expires_frees_everything_on_both_ranks(pair):
    prefill, decode = pair
    prompt = prompt_of(300)
    reservation = decode.reserve(prompt, timeout_s=5.0).result(0)
    assert decode.blocks.num_arriving == 4
    prefill.prefill("a", prompt, reservation)
    prefill.step_until(lambda: decode.blocks.num_held >= 1, decode)
    decode.clock.advance(6.0)
    prefill.step_until(lambda: prefill.prefills_done and not decode.busy_blocks, decode)
    assert prefill.busy_blocks == 0
    counts = decode.moves.counts
    assert (counts.expired, counts.failures_in, prefill.moves.counts.failures_out) == (1, 1, 1)
    assert decode.moves.counts.blocks_in <= prefill.moves.counts.blocks_out + 1
    # late, but the request is served all the same
    decode.submit("a", prompt, ticket=reservation.ticket)
    assert finish(decode, "a") == alone(prompt)


def test_a_ticket_is_used_once(pair):
    prefill, decode = pair
    prompt = prompt_of(300)
    reservation, _ = move(prefill, decode, "a", prompt)
    decode.submit("a", prompt, ticket=reservation.ticket)
    finish(decode, "a")
    prefill.prefill("late", prompt, reservation)
    prefill.step_until(lambda: len(prefill.prefills_done) == 2, decode)
    assert "no such ticket" in prefill.prefills_done[1].failure
    assert prefill.busy_blocks == decode.busy_blocks == 0


def test_an_aborted_prefill_stops_its_transfer(pair):
    prefill, decode = pair
    prompt = prompt_of(900)
    reservation = decode.reserve(prompt).result(0)
    prefill.prefill("a", prompt, reservation)
    prefill.step_until(lambda: decode.blocks.num_held >= 1, decode)
    prefill.inbox.put(Abort("a"))
    prefill.step_until(lambda: prefill.prefills_done, decode)
    assert prefill.prefills_done[0].failure == "cancelled" and prefill.busy_blocks == 0
    decode.step_until(lambda: decode.blocks.num_arriving == 0)
    decode.release(reservation)
    assert decode.busy_blocks == 0


def test_a_prefill_past_its_deadline_says_so(pair):
    prefill, decode = pair
    prompt = prompt_of(900)
    reservation = decode.reserve(prompt).result(0)
    prefill.prefill("a", prompt, reservation, deadline=prefill.clock.now() + 0.035)
    prefill.step_until(lambda: prefill.prefills_done, decode)
    assert "deadline" in prefill.prefills_done[0].failure and prefill.busy_blocks == 0


def test_a_rank_that_drains_finishes_its_transfer(pair):
    prefill, decode = pair
    prompt = prompt_of(300)
    reservation = decode.reserve(prompt).result(0)
    prefill.prefill("a", prompt, reservation)
    prefill.steps(1)
    prefill.inbox.put(Drain("test"))
    assert prefill.loop.run() == "test"
    assert prefill.prefills_done[0].failure is None and prefill.prefills_done[0].num_pushed == 4
    decode.submit("a", prompt, ticket=reservation.ticket)
    assert finish(decode, "a") == alone(prompt)
    assert decode.outputs[-1].num_cached_tokens == 256


def test_many_transfers_at_once_balance(pair):
    prefill, decode = pair
    prompts = {f"r{place}": prompt_of(100 + 17 * place, place) for place in range(8)}
    reservations = {}
    for name, prompt in prompts.items():
        reservations[name] = decode.reserve(prompt).result(0)
        prefill.prefill(name, prompt, reservations[name])
    prefill.step_until(lambda: len(prefill.prefills_done) == len(prompts), decode)
    assert [done.failure for done in prefill.prefills_done] == [None] * len(prompts)
    for name, prompt in prompts.items():
        decode.submit(name, prompt, max_tokens=30, ticket=reservations[name].ticket)
    decode.step_until(lambda: len(decode.finishes()) == len(prompts))
    for name, prompt in prompts.items():
        assert decode.tokens_of(name) == alone(prompt, max_tokens=30)
    assert prefill.busy_blocks == decode.busy_blocks == 0
    assert all(finish is FinishReason.LENGTH for _, _, finish in decode.finishes())
