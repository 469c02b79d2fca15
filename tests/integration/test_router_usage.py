"""Usage as clients get it from one router and fake ranks: cached tokens by source, each counted once."""

import asyncio

from baleen.v1 import worker_pb2
from tests.support.fake_rank import FakeRank, fake_tokens
from tests.support.router_client import NO_SHORT_CUT, PROMPT, eventually, in_turn, request, router_with, run


def cached_of(usage):
    return (
        usage.cached_tokens,
        usage.cached_tokens_decode,
        usage.cached_tokens_prefill,
        usage.cached_tokens_fetched,
    )


def pair(held_by_decode, held_by_prefill):
    prefill, decode = FakeRank(role="prefill"), FakeRank(role="decode")
    decode.num_held, prefill.num_held = held_by_decode, held_by_prefill
    decode.num_cached_tokens = 192
    return prefill, decode


def test_what_the_prefill_rank_computes_is_not_cached():
    async def scenario():
        prefill, decode = pair(1, 2)
        async with router_with([prefill, decode], parameters=NO_SHORT_CUT) as client:
            answer = await client.generate(request(PROMPT, n=3))
            assert [cached_of(answer.usage[index]) for index in range(3)] == [(128, 64, 64, 0)] * 3
            story = await client.explain(answer.request_id)
            assert "64 cached on the decode rank, 64 on the prefill rank, 0 fetched" in story.outcome

    run(scenario())


def test_usage_comes_with_the_first_delta_and_the_last():
    async def scenario():
        rank = FakeRank()
        rank.num_cached_tokens = 128
        rank.token_delay_s = 0.01
        async with router_with([rank]) as client:
            answer = await client.generate(request(PROMPT, ignore_eos=True))
            told = [delta for delta in answer.deltas if delta.HasField("usage")]
            assert told == [answer.deltas[0], answer.deltas[-1]] and len(answer.deltas) > 2
            assert [cached_of(delta.usage) for delta in told] == [(128, 128, 0, 0)] * 2
            assert told[0].usage.completion_tokens == len(told[0].token_ids) < told[1].usage.completion_tokens == 8

    run(scenario())


def test_the_decode_rank_s_own_prefix():
    async def scenario():
        rank = FakeRank()
        rank.num_cached_tokens = 128
        async with router_with([rank]) as client:
            assert cached_of((await client.generate(request(PROMPT))).usage[0]) == (128, 128, 0, 0)

    run(scenario())


def test_a_move_does_not_make_computed_tokens_cached():
    """Before the first token: what the first try had computed is found cached by the second, and is not counted."""

    async def scenario():
        prefill = FakeRank(role="prefill")
        first, second = in_turn([FakeRank(role="decode"), FakeRank(role="decode")])
        prefill.num_held, first.die_after, second.num_cached_tokens = 1, 0, 192
        async with router_with([prefill, first, second], policy="round_robin", parameters=NO_SHORT_CUT) as client:
            task = asyncio.create_task(client.generate(request(PROMPT)))
            await eventually(lambda: len(prefill.prefills) == 1)
            prefill.num_held = 3
            answer = await task
            assert answer.tokens == {0: fake_tokens(PROMPT, 8)}
            assert cached_of(answer.usage[0]) == (64, 0, 64, 0)

    run(scenario())


def test_a_move_after_the_first_token_changes_nothing():
    async def scenario():
        first, second = in_turn([FakeRank(), FakeRank()])
        first.die_after, first.num_cached_tokens, second.num_cached_tokens = 3, 64, 192
        async with router_with([first, second], policy="round_robin") as client:
            answer = await client.generate(request(PROMPT))
            assert answer.usage[0].completion_tokens == 8
            assert cached_of(answer.usage[0]) == (64, 64, 0, 0)

    run(scenario())


def test_a_rank_that_ends_a_request_before_its_first_token_has_not_counted():
    async def scenario():
        first, second = in_turn([FakeRank(), FakeRank()])
        first.pause()
        second.num_cached_tokens = 128
        async with router_with([first, second], policy="round_robin") as client:
            task = asyncio.create_task(client.generate(request(PROMPT)))
            await eventually(lambda: first.num_running == 1)
            first._abort(worker_pb2.Abort(request_id=first.submits[0].request_id))
            assert cached_of((await task).usage[0]) == (128, 128, 0, 0)

    run(scenario())
