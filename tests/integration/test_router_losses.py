"""One router and fake ranks over real gRPC on loopback: what real processes showed when parts of a cluster died."""

import asyncio
import time

import grpc

from baleen.errors import QueueFull
from router.proxy import ProxyLimits
from router.session import SessionTimes
from tests.support.fake_rank import FakeRank, fake_tokens
from tests.support.router_client import NO_SHORT_CUT, PROMPT, at_rest, eventually, in_turn, request, router_with, run


class SlowReserve(FakeRank):
    """Answers a reservation when told to."""

    def __init__(self, **options):
        super().__init__(**options)
        self.answer = asyncio.Event()
        self.asked = asyncio.Event()

    async def Reserve(self, request, context):
        self.asked.set()
        await self.answer.wait()
        return await super().Reserve(request, context)


def test_calls_that_come_while_the_router_leaves_are_answered():
    async def scenario():
        async with router_with([FakeRank()]) as client:
            tasks = [asyncio.create_task(client.generate(request(PROMPT), timeout=30)) for _ in range(100)]
            await eventually(lambda: client.router.num_active > 0)
            await client.router.stop(20.0)
            for answer in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(answer, grpc.aio.AioRpcError):
                    # gRPC itself cancels a call that reaches it between its last accept and its GOAWAY
                    assert answer.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                else:
                    assert answer.tokens == {0: fake_tokens(PROMPT, 8)}

    run(scenario())


def test_a_rank_that_is_full_is_none_that_failed():
    async def scenario():
        prefill = FakeRank(role="prefill")
        first, second = in_turn([FakeRank(role="decode"), FakeRank(role="decode")])
        first.refuse_reserve = second.refuse_reserve = QueueFull("full")
        limits = ProxyLimits(most_attempts=2)
        ranks = [prefill, first, second]
        async with router_with(ranks, policy="round_robin", parameters=NO_SHORT_CUT, limits=limits) as client:
            task = asyncio.create_task(client.generate(request(PROMPT, max_tokens=12)))
            await eventually(lambda: len(first.reserves) + len(second.reserves) >= 3)
            first.die_after = second.die_after = 5
            first.refuse_reserve = second.refuse_reserve = None
            await eventually(lambda: bool(first.submits or second.submits))
            (second if first.submits else first).die_after = None
            assert (await task).tokens == {0: fake_tokens(PROMPT, 12)}

    run(scenario())


def test_a_rank_that_is_lost_while_it_reserves_is_left_for_another():
    async def scenario():
        prefill = FakeRank(role="prefill")
        first, second = in_turn([SlowReserve(role="decode"), SlowReserve(role="decode")])
        second.answer.set()
        ranks = [prefill, first, second]
        async with router_with(ranks, policy="round_robin", parameters=NO_SHORT_CUT) as client:
            task = asyncio.create_task(client.generate(request(PROMPT), timeout=30))
            await eventually(first.asked.is_set)
            first.end("cut")
            assert (await task).tokens == {0: fake_tokens(PROMPT, 8)}
            first.answer.set()
            await at_rest(prefill, second)

    run(scenario())


def test_a_router_that_was_stopped_itself_loses_no_rank():
    async def scenario():
        rank = FakeRank()
        rank.token_delay_s = 0.02
        times = SessionTimes(probe_s=0.05, silence_s=0.4, open_s=2.0)
        async with router_with([rank], session=times) as client:
            task = asyncio.create_task(client.generate(request(PROMPT, max_tokens=20)))
            await eventually(lambda: rank.num_tokens >= 3)
            time.sleep(1.0)  # noqa: ASYNC251  (nothing in this process runs meanwhile)
            assert (await task).tokens == {0: fake_tokens(PROMPT, 20)}
            assert len(rank.submits) == 1

    run(scenario())
