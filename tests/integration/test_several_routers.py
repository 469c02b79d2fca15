"""Two router processes over the same real ranks and one Redis: what they share, and what one loses when it dies."""

import asyncio
import time

import grpc
import pytest

from baleen.v1 import common_pb2, inference_pb2_grpc
from baleen.wire.channel import open_channel
from tests.support.router_client import Answer, Caller, eventually, request
from tests.support.small_cluster import small_cluster
from tests.support.tiny_checkpoint import make_tiny

pytestmark = pytest.mark.slow

NUM_BLOCKS = 48
LENGTH = common_pb2.FINISH_REASON_LENGTH
AFFINE = {"parameters": {"short_tail_tokens": 64, "default_prefill_tokens_per_s": 1000.0}}


def endless(prompt, **options):
    """A request that only its length ends."""
    return request(prompt, ignore_eos=True, **options)


def prompt_of(number, num_tokens):
    return [2 + (number * 37 + place * 11) % 250 for place in range(num_tokens)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    directory = tmp_path_factory.mktemp("routers")
    checkpoint = make_tiny(directory / "tiny")
    with small_cluster(
        checkpoint,
        directory,
        roles=["prefill", "decode", "decode"],
        routers=[AFFINE, AFFINE],
        cache={"num_blocks": NUM_BLOCKS},
        engine={"max_chunk_tokens": 128, "max_running": 6, "audit": "step"},
    ) as cluster:
        yield cluster


def is_at_rest(session):
    """Nothing runs or waits, and every block is free, or kept for its prefix alone."""
    load = session.load
    return load is not None and (load.num_running, load.num_waiting, load.free_blocks) == (0, 0, NUM_BLOCKS)


def test_what_one_router_computed_the_other_finds(cluster):
    async def scenario():
        async with cluster.client(0) as first, cluster.client(1) as second:
            prompt = prompt_of(1, 900)
            before = await first.generate(request(prompt, max_tokens=8, request_id="first"))
            place = (await first.explain("first")).decisions[-1].chosen
            # announced by a thread of the rank: not before the answer, but soon
            deadline = time.monotonic() + 30.0
            for attempt in range(1000):
                again = await second.generate(request(prompt, max_tokens=8, request_id=f"second-{attempt}"))
                explained = await second.explain(f"second-{attempt}")
                [found] = [one for one in explained.decisions[-1].candidates if one.rank == place]
                if found.cached_tokens >= 14 * 64:
                    break
                assert time.monotonic() < deadline
            assert again.tokens == before.tokens
            assert [decision.chosen for decision in explained.decisions] == [place], "no prefill rank is needed"
            assert again.usage[0].cached_tokens >= 14 * 64

    asyncio.run(scenario())


def test_one_client_request_id_through_two_routers_at_once(cluster):
    async def scenario():
        async with cluster.client(0) as first, cluster.client(1) as second:
            alone = await first.generate(endless(prompt_of(2, 300), max_tokens=24))
            answers = await asyncio.gather(
                *(
                    router.generate(endless(prompt_of(2, 300), max_tokens=24, request_id=f"mine-{number}"))
                    for number in range(3)
                    for router in (first, second)
                )
            )
            for answer in answers:
                assert answer.tokens == alone.tokens
                assert answer.finish == {0: LENGTH}

    asyncio.run(scenario())


def test_no_block_is_booked_twice(cluster):
    """More than fits, through both: each rank audits its blocks after every step, and ends if they do not add up."""

    async def scenario():
        async with cluster.client(0) as first, cluster.client(1) as second, cluster.loads() as sessions:
            prompts = [prompt_of(10 + number, 500 + 64 * (number % 8)) for number in range(10)]
            alone = [await first.generate(endless(prompt, max_tokens=6)) for prompt in prompts[:2]]
            answers = await asyncio.gather(
                *(
                    router.generate(endless(prompt, max_tokens=6), timeout=120)
                    for prompt in prompts
                    for router in (first, second)
                )
            )
            for number, answer in enumerate(answers):
                assert answer.finish == {0: LENGTH}
                assert answer.tokens == answers[number ^ 1].tokens
            assert [answers[0].tokens, answers[2].tokens] == [one.tokens for one in alone]
            await eventually(lambda: all(map(is_at_rest, sessions)))
            assert all(rank.process.poll() is None for rank in cluster.ranks)

    asyncio.run(scenario())


@pytest.mark.parametrize("phase", ["prefilling", "decoding"])
def test_a_router_that_is_killed_frees_what_it_had_and_disturbs_nobody(cluster, phase):
    async def scenario():
        async with cluster.loads() as sessions, cluster.client(1) as kept:
            alone = await kept.generate(endless(prompt_of(30, 200), max_tokens=1200))
            with cluster.another_router(AFFINE) as router:
                own_call = asyncio.create_task(kept.generate(endless(prompt_of(30, 200), max_tokens=1200)))
                await eventually(lambda: sum(session.load.num_running for session in sessions) == 1)
                async with open_channel(router.address) as channel:
                    doomed = Caller(inference_pb2_grpc.InferenceServiceStub(channel), router.address)
                    calls = [doomed.call(endless(prompt_of(31 + n, 1400), max_tokens=900)) for n in range(2)]
                    answers = [Answer(), Answer()]
                    readers = [
                        asyncio.create_task(read(call, answer)) for call, answer in zip(calls, answers, strict=True)
                    ]
                    if phase == "decoding":
                        await eventually(lambda: all(answer.tokens for answer in answers))
                    else:
                        await eventually(lambda: any(session.load.arriving_blocks for session in sessions))
                    router.process.kill()
                    killed_at = time.monotonic()
                    for reader in readers:
                        with pytest.raises(grpc.aio.AioRpcError) as caught:
                            await reader
                        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            # its requests are gone while the other's goes on
            await eventually(lambda: held_blocks(sessions) <= NUM_BLOCKS // 2)
            await eventually(lambda: sum(session.load.num_running for session in sessions) <= 1)
            await eventually(lambda: not any(session.load.arriving_blocks for session in sessions))
            assert time.monotonic() - killed_at < 10.0
            assert not own_call.done(), "too short to see it undisturbed"
            again = await kept.generate(endless(prompt_of(31, 1400), max_tokens=4))
            assert again.tokens[0] == answers[0].tokens.get(0, again.tokens[0])[:4]
            assert (await own_call).tokens == alone.tokens
            await eventually(lambda: all(map(is_at_rest, sessions)))

    asyncio.run(asyncio.wait_for(scenario(), 120))


async def read(call, answer):
    async for message in call:
        answer.take(message)


def held_blocks(sessions):
    return sum(NUM_BLOCKS - session.load.free_blocks for session in sessions)
