"""A long prompt through router, prefill rank, transfer and decode rank, while another request streams on."""

import asyncio

import pytest

from tests.support.router_client import Answer, eventually, request
from tests.support.small_cluster import small_cluster
from tests.support.tiny_checkpoint import make_tiny

pytestmark = pytest.mark.slow

NUM_TOKENS = 4000
CHUNK = 256


def test_a_long_prompt_passes_while_others_get_on(tmp_path):
    """Told by counts: every delta of the other request is a step of the decode rank."""
    prompt = [2 + place * 7919 % 250 for place in range(NUM_TOKENS)]

    async def scenario(cluster):
        async with cluster.client() as client:
            other = Answer()

            async def follow():
                async for message in client.call(request([5] * 100, max_tokens=20_000, ignore_eos=True)):
                    other.take(message)

            stream = asyncio.create_task(follow())
            await eventually(lambda: len(other.deltas) > 10)
            before = len(other.deltas)
            answer = await client.generate(request(prompt, max_tokens=8, ignore_eos=True, request_id="long"))
            meanwhile = len(other.deltas) - before
            assert not stream.done()
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)
            assert len(answer.tokens[0]) == 8
            explained = await client.explain("long")
            assert len(explained.decisions) == 2
            assert not [one.event for one in explained.milestones if "failed" in one.event]
            # the decode rank computes one tail; everything else of the long request goes on elsewhere
            assert meanwhile > NUM_TOKENS // CHUNK

    with small_cluster(
        make_tiny(tmp_path / "tiny", index_n_heads=1),
        tmp_path,
        roles=["prefill", "decode"],
        cache={"num_blocks": 512},
        engine={"max_chunk_tokens": CHUNK, "max_batch_tokens": CHUNK + 64},
    ) as cluster:
        asyncio.run(asyncio.wait_for(scenario(cluster), 120))
