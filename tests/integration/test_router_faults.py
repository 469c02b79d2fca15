"""One router and fake ranks over real gRPC on loopback: ranks that die, refuse or stall, calls that end early."""

import asyncio

import grpc
import pytest

from baleen.errors import DrainingError, QueueFull
from baleen.seeds import completion_seed
from baleen.v1 import common_pb2
from baleen.wire.errors import error_from_rpc
from router.proxy import ProxyLimits
from router.session import SessionTimes
from tests.support.fake_rank import FakeRank, fake_tokens
from tests.support.router_client import (
    NO_SHORT_CUT,
    PROMPT,
    at_rest,
    eventually,
    in_turn,
    request,
    router_with,
    run,
    status_of,
)

LENGTH = common_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize("tokens_before", [0, 1, 5])
def test_a_request_goes_on_elsewhere_with_the_same_tokens(tokens_before):
    async def scenario():
        first, second = in_turn([FakeRank(), FakeRank()])
        first.die_after = tokens_before
        async with router_with([first, second], policy="round_robin") as client:
            answer = await client.generate(request(PROMPT, max_tokens=12))
            assert answer.tokens == {0: fake_tokens(PROMPT, 12)}
            assert answer.finish == {0: LENGTH}
            assert answer.usage[0].completion_tokens == 12
            (again,) = second.submits
            assert again.num_delivered == tokens_before
            assert list(again.token_ids) == PROMPT + fake_tokens(PROMPT, tokens_before)
            await at_rest(second)

    run(scenario())


def test_every_completion_goes_on_with_its_own_seed():
    async def scenario():
        first, second = in_turn([FakeRank(), FakeRank()])
        first.die_after = 7
        async with router_with([first, second], policy="round_robin") as client:
            answer = await client.generate(request(PROMPT, max_tokens=6, n=3, seed=5, temperature=1.0))
            assert answer.tokens == {index: fake_tokens(PROMPT, 6, completion_seed(5, index)) for index in range(3)}
            assert [len(submit.token_ids) - len(PROMPT) for submit in second.submits] == [3, 2, 2]
            await at_rest(second)

    run(scenario())


def test_a_rank_that_leaves_hands_its_requests_over():
    async def scenario():
        first, second = in_turn([FakeRank(), FakeRank()])
        first.token_delay_s = 0.02
        async with router_with([first, second], policy="round_robin") as client:
            call = client.generate(request(PROMPT, max_tokens=40))
            task = asyncio.create_task(call)
            await eventually(lambda: first.num_tokens >= 3)
            first.end("drained")
            answer = await task
            assert answer.tokens == {0: fake_tokens(PROMPT, 40)}
            assert second.submits[0].num_delivered >= 3

    run(scenario())


@pytest.mark.parametrize("error", [QueueFull("full"), DrainingError("leaving")], ids=["full", "draining"])
def test_a_refused_reservation_goes_to_another_rank(error):
    async def scenario():
        prefill = FakeRank(role="prefill")
        first, second = in_turn([FakeRank(role="decode"), FakeRank(role="decode")])
        first.refuse_reserve = error
        async with router_with([prefill, first, second], policy="round_robin", parameters=NO_SHORT_CUT) as client:
            answer = await client.generate(request(PROMPT))
            assert answer.tokens == {0: fake_tokens(PROMPT, 8)}
            assert len(first.reserves) == len(second.reserves) == len(prefill.prefills) == 1
            await at_rest(second)

    run(scenario())


def test_a_full_cluster_is_waited_for():
    async def scenario():
        prefill, decode = FakeRank(role="prefill"), FakeRank(role="decode")
        decode.refuse_reserve = QueueFull("full")
        async with router_with([prefill, decode], parameters=NO_SHORT_CUT) as client:
            task = asyncio.create_task(client.generate(request(PROMPT)))
            await eventually(lambda: len(decode.reserves) >= 2)
            assert prefill.prefills == []
            decode.refuse_reserve = None
            assert (await task).tokens == {0: fake_tokens(PROMPT, 8)}

    run(scenario())


def test_the_decode_rank_computes_all_when_the_prefill_fails():
    async def scenario():
        prefill, decode = FakeRank(role="prefill"), FakeRank(role="decode")
        prefill.fail_prefill = "the transfer broke"
        async with router_with([prefill, decode], parameters=NO_SHORT_CUT) as client:
            answer = await client.generate(request(PROMPT))
            assert answer.tokens == {0: fake_tokens(PROMPT, 8)}
            assert len(decode.submits) == 1
            await at_rest(prefill, decode)
            story = await client.explain(answer.request_id)
            assert any("the transfer broke" in milestone.event for milestone in story.milestones)

    run(scenario())


def test_a_lost_prefill_rank_costs_one_more_try():
    async def scenario():
        first, second = in_turn([FakeRank(role="prefill"), FakeRank(role="prefill")])
        decode = FakeRank(role="decode")
        first.hold_prefill = True
        async with router_with([first, second, decode], policy="round_robin", parameters=NO_SHORT_CUT) as client:
            task = asyncio.create_task(client.generate(request(PROMPT)))
            await eventually(lambda: bool(first.prefills))
            await first.kill()
            assert (await task).tokens == {0: fake_tokens(PROMPT, 8)}
            assert len(second.prefills) == 1
            await at_rest(decode, second)

    run(scenario())


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


async def stuck_in(phase):
    """A prefill and a decode rank where a request gets as far as `phase`, and a condition that says that it has."""
    prefill, decode = FakeRank(role="prefill"), SlowReserve(role="decode")
    if phase != "reserving":
        decode.answer.set()
    if phase == "queued":
        decode.free_blocks = 0
        return prefill, decode, None
    if phase == "reserving":
        return prefill, decode, decode.asked.is_set
    if phase == "prefilling":
        prefill.hold_prefill = True
        return prefill, decode, lambda: bool(prefill.prefills)
    decode.token_delay_s = 0.05
    return prefill, decode, lambda: decode.num_tokens >= 2


PHASES = ["queued", "reserving", "prefilling", "decoding"]


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancelled_call_frees_everything(phase):
    async def scenario():
        prefill, decode, reached = await stuck_in(phase)
        async with router_with([prefill, decode], parameters=NO_SHORT_CUT) as client:
            call = client.call(request(PROMPT, max_tokens=1000, request_id="mine"))
            reader = asyncio.create_task(anext(aiter(call)))
            await eventually(reached or (lambda: client.router.num_active == 1))
            call.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await eventually(lambda: client.router.num_active == 0)
            decode.answer.set()
            if phase != "queued":
                await eventually(lambda: bool(decode.reserves))
            await at_rest(prefill, decode)
            story = await client.explain("mine")
            assert story.outcome.startswith("cancelled")

    run(scenario())


@pytest.mark.parametrize("phase", PHASES)
def test_the_deadline_ends_every_phase(phase):
    async def scenario():
        prefill, decode, _ = await stuck_in(phase)
        async with router_with([prefill, decode], parameters=NO_SHORT_CUT, max_deadline_s=0.5) as client:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await client.generate(request(PROMPT, max_tokens=1000))
            assert status_of(failed.value) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DeadlineExceeded")
            await eventually(lambda: client.router.num_active == 0)
            decode.answer.set()
            await at_rest(prefill, decode)

    run(scenario())


def test_the_callers_own_deadline_counts():
    async def scenario():
        rank = FakeRank()
        rank.pause()
        async with router_with([rank]) as client:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await client.generate(request(PROMPT), timeout=0.3)
            assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await eventually(lambda: client.router.num_active == 0)
            await at_rest(rank)

    run(scenario())


def test_a_request_that_kills_ranks_is_kept_out():
    async def scenario():
        ranks = [FakeRank() for _ in range(3)]
        for rank in ranks:
            rank.die_after = 1
        async with router_with(ranks, policy="round_robin") as client:
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await client.generate(request(PROMPT, max_tokens=20))
                assert status_of(failed.value) == (grpc.StatusCode.ABORTED, "PoisonRequest")
            assert sum(len(rank.submits) for rank in ranks) == 2
            other = next(rank for rank in ranks if not rank.submits)
            other.die_after = None
            answer = await client.generate(request(PROMPT[1:]))
            assert answer.tokens == {0: fake_tokens(PROMPT[1:], 8)}

    run(scenario())


def test_a_group_dies_once():
    async def scenario():
        first, second, third = in_turn([FakeRank(), FakeRank(), FakeRank()])
        second.info.epoch = first.info.epoch
        first.die_after, second.die_after = 2, 0
        async with router_with([first, second, third], policy="round_robin") as client:
            answer = await client.generate(request(PROMPT, max_tokens=20))
            assert answer.tokens == {0: fake_tokens(PROMPT, 20)}
            assert second.submits == []

    run(scenario())


@pytest.mark.parametrize("count", [1, 2])
def test_connections_that_break_are_no_poison(count):
    async def scenario():
        ranks = [FakeRank() for _ in range(count)]
        for rank in ranks:
            rank.token_delay_s = 0.02
        async with router_with(ranks) as client:
            task = asyncio.create_task(client.generate(request(PROMPT, max_tokens=60)))
            for number in (5, 20, 35):
                await eventually(lambda number=number: sum(rank.num_tokens for rank in ranks) >= number)
                await eventually(lambda: len(client.router.members.snapshot().ranks) == count)
                for rank in ranks:
                    if rank.num_running:
                        rank.end("cut")
            assert (await task).tokens == {0: fake_tokens(PROMPT, 60)}
            assert sum(len(rank.submits) for rank in ranks) == 4

    run(scenario())


def test_a_silent_rank_is_lost():
    class Silent(FakeRank):
        """Says nothing more once told to, as a stopped process."""

        silent = False

        def _report(self, news):
            if not self.silent:
                super()._report(news)

        async def _read(self, session, requests):
            async for message in requests:
                if not self.silent and message.WhichOneof("message") == "submit":
                    self._submit(session, message.submit)
            session.out.put_nowait(None)

    async def scenario():
        first, second = in_turn([Silent(), FakeRank()])
        silent = first if isinstance(first, Silent) else second
        silent.token_delay_s = 0.02
        times = SessionTimes(probe_s=0.05, silence_s=0.4, open_s=2.0)
        async with router_with([first, second], policy="round_robin", session=times) as client:
            tasks = [asyncio.create_task(client.generate(request(PROMPT, max_tokens=20))) for _ in range(2)]
            await eventually(lambda: silent.num_tokens >= 3)
            silent.silent = True
            for answer in await asyncio.gather(*tasks):
                assert answer.tokens == {0: fake_tokens(PROMPT, 20)}

    run(scenario())


def test_retries_before_the_first_token_are_limited():
    async def scenario():
        ranks = [FakeRank() for _ in range(3)]
        for rank in ranks:
            rank.refuse = DrainingError("leaving")
        async with router_with(ranks, retry_share=0.0, retry_reserve=2) as client:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await client.generate(request(PROMPT))
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            assert sum(len(rank.submits) for rank in ranks) == 3

    run(scenario())


def test_a_request_that_no_rank_can_serve_waits_for_one_and_is_told_what_is_missing():
    async def scenario():
        limits = ProxyLimits(rank_wait_s=0.3)
        async with router_with([FakeRank(role="prefill")], limits=limits) as client:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await client.generate(request(PROMPT, request_id="mine"))
            assert status_of(failed.value) == (grpc.StatusCode.UNAVAILABLE, "NotReady")
            assert "no rank is there to decode; there are 1 that only prefill" in failed.value.details()
            assert error_from_rpc(failed.value).retry_after_s == 1.0
            assert (await client.explain("mine")).outcome.startswith("failed: NotReady")

    run(scenario())


def test_no_rank_for_too_long_is_said():
    async def scenario():
        rank = FakeRank()
        limits = ProxyLimits(rank_wait_s=0.3)
        async with router_with([rank], limits=limits) as client:
            rank.die_after = 0
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await client.generate(request(PROMPT))
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE

    run(scenario())
