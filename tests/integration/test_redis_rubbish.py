"""Real ranks and a router while Redis is filled with rubbish in the form that baleen writes: no answer changes."""

import asyncio
import json
import random
import secrets

import pytest

from baleen import keyspace
from baleen.v1 import inference_pb2_grpc
from baleen.wire.channel import open_channel
from tests.support.redis_server import rank_info, wait_for
from tests.support.router_client import Caller, request
from tests.support.small_cluster import CLUSTER, small_cluster
from tests.support.tiny_checkpoint import make_tiny
from workers.cache.announce import open_client

pytestmark = pytest.mark.slow

PREFIX = keyspace.key_prefix(CLUSTER)
NUM_PROMPTS = 4
NUM_ROUNDS = 6


def prompts():
    """Four that share their first two blocks, in pairs their third and fourth, and then differ."""
    shared = [2 + place * 11 % 250 for place in range(128)]
    return [
        shared + [2 + (number // 2 * 37 + place * 7) % 250 for place in range(128)] + [number + 3] * (30 + number)
        for number in range(NUM_PROMPTS)
    ]


def spoil(client, chance, address):
    """Every block names anyone, whether it holds it, lives, or ever was; and there are ranks that are none."""
    living = client.hkeys(PREFIX + b"ranks")
    ghosts = [secrets.token_bytes(keyspace.TAG_BYTES) for _ in range(3)]
    for number, tag in enumerate(ghosts):
        # one where nobody listens, one in the place of another rank
        info = rank_info(f"ghost{number}", address=chance.choice(["127.0.0.1:1", address]), max_context=1, vocab_size=1)
        client.hset(PREFIX + b"ranks", tag, b"%s %s" % (info.incarnation.encode(), keyspace.encode_info(info)))
        client.zadd(PREFIX + b"leases", {tag: 1e15})
    for tag in living:
        name, _, text = client.hget(PREFIX + b"ranks", tag).partition(b" ")
        if not name.startswith(b"ghost"):
            wrong = {**json.loads(text), "max_context": 1, "model_fingerprint": "rubbish", "role": "mixed"}
            client.hset(PREFIX + b"ranks", tag, name + b" " + json.dumps(wrong).encode())
    blocks = client.keys(PREFIX + b"b*")
    for key in blocks:
        tags = chance.sample(living + ghosts, chance.randrange(len(living + ghosts) + 1))
        if tags:
            client.set(key, b"".join(tags), px=60_000)
        else:
            client.delete(key)
    return len(blocks)


def test_rubbish_changes_no_answer(tmp_path):
    checkpoint = make_tiny(tmp_path / "tiny")
    with small_cluster(
        checkpoint,
        tmp_path,
        roles=["prefill", "decode", "decode"],
        # few enough that ranks drop what Redis goes on to name
        cache={"num_blocks": 16},
        engine={"max_chunk_tokens": 128, "audit": "step"},
    ) as cluster:

        async def answers(address):
            async with open_channel(address) as channel:
                client = Caller(inference_pb2_grpc.InferenceServiceStub(channel), address)
                calls = [client.generate(request(prompt, max_tokens=6, ignore_eos=True)) for prompt in prompts()]
                return [answer.tokens for answer in await asyncio.gather(*calls)]

        first = cluster.routers[0].address
        expected = asyncio.run(answers(first))
        with open_client(cluster.redis_url) as client:
            wait_for(lambda: bool(client.keys(PREFIX + b"b*")))
            for seed in range(NUM_ROUNDS):
                assert spoil(client, random.Random(seed), cluster.rank_addresses[0]) > 0
                assert asyncio.run(answers(first)) == expected, seed
            # one that never saw anything else: what ranks say themselves counts more than their leases
            with cluster.another_router({}) as router:
                assert asyncio.run(answers(router.address)) == expected
        for rank in cluster.ranks:
            assert rank.process.poll() is None
