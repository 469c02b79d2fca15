"""The golden tokens through router, ranks and Redis, all of them processes: at any expert parallelism of prefill and
decode, cold, cached, moved between ranks by each transport, and after a preemption.
"""

import asyncio
import contextlib
import re
import secrets
import urllib.request
from dataclasses import dataclass

import grpc
import pytest

from baleen.blocks import chain_hashes, root_hash, shareable_blocks
from baleen.clock import SystemClock
from baleen.redis_config import RedisConfig
from baleen.tls_config import TlsConfig
from baleen.v1 import common_pb2, router_pb2, router_pb2_grpc, worker_pb2, worker_pb2_grpc
from baleen.wire.channel import open_channel
from router.breaker import Breaker
from router.index import PrefixIndex, open_client
from tests.support.certificates import Authority, tls_config
from tests.support.cluster_processes import CLUSTER, GroupPlan, running_cluster
from tests.support.golden_client import golden_client
from tests.support.models import golden_cases, make_golden_checkpoint

pytestmark = pytest.mark.slow

NO_SHORT_CUT = {"short_tail_tokens": 0}
BY_PREFIX = {
    **NO_SHORT_CUT,
    "near_tie": 0.0,
    "near_tie_s": 0.0,
    "horizon_tokens": 0,
    "pressure_s": 0.0,
    "transfer_bytes_per_s": 1e6,
}
"""What a rank holds decides, not how fast and how full it happens to be."""
SMALL_POOL = 8
ROUNDS = 5
BLOCK_BYTES = 3 * 64 * (512 + 64 + 128) * 4
"""Of both models: three layers of float32 latents, rotated keys and index keys."""


@dataclass(frozen=True)
class Topology:
    """prefill, decode: EP of each group, no prefill group being a mixed pool. policy: by which a call's ranks follow
    from its number, or from what they hold.
    """

    prefill: int
    decode: int
    policy: str
    golden: str
    tls: bool = False
    transport: str = "tcp"

    @property
    def groups(self):
        moves = {"transfer": {"transport": self.transport}}
        role = "decode" if self.prefill else "mixed"
        decode = GroupPlan(name="tokens", role=role, ep=self.decode, num_blocks=SMALL_POOL, sections=moves)
        if not self.prefill:
            return [decode]
        # chunks of less than a block, so that blocks leave while others are computed
        small = {"engine": {"max_chunk_tokens": 50}, **moves}
        return [GroupPlan(name="prompts", role="prefill", ep=self.prefill, sections=small), decode]


TOPOLOGIES = {
    "1+2": Topology(1, 2, "round_robin", "dev_bf16.golden", transport="nixl"),
    "2+1": Topology(2, 1, "round_robin", "dev_fp8.golden"),
    "2+2": Topology(2, 2, "cost", "dev_bf16.golden", tls=True),
    "mixed": Topology(0, 2, "cost", "dev_fp8.golden"),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    return {name: make_golden_checkpoint(name, directory / name) for name in ("dev_bf16.golden", "dev_fp8.golden")}


@pytest.fixture(scope="module", params=TOPOLOGIES)
def cluster(request, checkpoints, tmp_path_factory):
    topology = TOPOLOGIES[request.param]
    directory = tmp_path_factory.mktemp("cluster")
    tls = tls_config(Authority(directory), "member", "127.0.0.1") if topology.tls else TlsConfig()
    with running_cluster(
        directory,
        checkpoints[topology.golden],
        topology.groups,
        policy=topology.policy,
        parameters=BY_PREFIX,
        tls=tls,
    ) as running:
        yield topology, running


def in_loop(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 200))


def shared_tokens(case):
    return shareable_blocks(len(case["prompt"])) * 64


async def bytes_in(running):
    """What the decode ranks have taken from other ranks so far, by their own count."""
    async with contextlib.aclosing(open_client(RedisConfig(url=running.redis_url))) as client:
        infos = (await PrefixIndex(client, CLUSTER, Breaker(SystemClock())).members()).values()
    total = 0.0
    for address in (info.metrics_address for info in infos if info.role != "prefill"):
        page = await asyncio.to_thread(
            lambda url: urllib.request.urlopen(url, timeout=20).read(), f"http://{address}/metrics"
        )
        (count,) = re.findall(r'kv_transfer_bytes_total\{[^}]*"in"[^}]*\} (\S+)', page.decode())
        total += float(count)
    return total


async def indexed(running, case, salt, num_ranks):
    """Wait until the index credits so many ranks with the whole prompt."""
    fingerprint = bytes.fromhex(running.ready["tokens"][0]["model_fingerprint"])
    num_blocks = shareable_blocks(len(case["prompt"]))
    # the router keeps tenants apart in the salt, and this client names none
    hashes = chain_hashes(root_hash(fingerprint, f"0::{salt}".encode()), case["prompt"])[:num_blocks]
    async with contextlib.aclosing(open_client(RedisConfig(url=running.redis_url))) as client, asyncio.timeout(30):
        index = PrefixIndex(client, CLUSTER, Breaker(SystemClock()), budget_s=1.0)
        while num_blocks and list((await index.prefixes(hashes)).values()).count(num_blocks) < num_ranks:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the index tells nobody when it changes


async def all_known(client, running):
    """Wait until the router has heard of every rank."""
    seen = set()
    sampling = common_pb2.SamplingParams(max_tokens=1)
    async with asyncio.timeout(30):
        while len(seen) < sum(len(ranks) for ranks in running.ranks.values()):
            # more than a block, so that it is prefilled elsewhere, and new to every rank
            seen |= (await client.generate([5] * 70, sampling, cache_salt=secrets.token_hex(4))).seen


def test_cold_then_moved_or_cached(cluster):
    """Each case several times: what the first call left is used by the others, and changes no token."""
    topology, running = cluster

    async def scenario():
        async with golden_client(running.address) as client:
            await all_known(client, running)
            for place, case in enumerate(golden_cases(topology.golden)):
                salt, shared = f"salt-{place}", shared_tokens(case)
                served, moved = [], [await bytes_in(running)]
                # with a decode rank for each turn the second call is the first on its rank
                for _ in range(topology.decode + 1 if topology.policy == "round_robin" else 2):
                    served.append(await client.case(case, cache_salt=salt))
                    served[-1].require_golden(case)
                    await indexed(running, case, salt, 2 if topology.prefill else 1)
                    moved.append(await bytes_in(running))
                cold, warm = served[0], served[-1]
                whole = shared // 64 * BLOCK_BYTES if topology.prefill else 0
                assert (cold.cached, moved[1] - moved[0]) == (0, whole)
                assert (warm.on_decode, warm.cached, moved[-1] - moved[-2]) == (shared, shared, 0)
                if len(served) == 3:
                    # another decode rank, to which the prefill rank pushes what it has in its cache
                    assert served[1].chosen[-1] != cold.chosen[-1]
                    assert (served[1].on_prefill, served[1].cached, moved[2] - moved[1]) == (shared, shared, whole)
                assert {one.attempts for one in served} == {1}

    in_loop(scenario())


def test_a_cluster_with_tls_answers_nobody_in_the_clear(cluster):
    topology, running = cluster
    (address,) = {ready["address"] for ready in running.ready["tokens"][:1]}

    async def ask():
        async with open_channel(address) as channel:
            return await worker_pb2_grpc.WorkerServiceStub(channel).GetInfo(worker_pb2.GetInfoRequest(), timeout=20)

    if topology.tls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            in_loop(ask())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    else:
        assert in_loop(ask()).info.transport == topology.transport


def test_several_at_once_preempt_each_other(cluster):
    """Requests that grow take the blocks of golden ones, which are more than fit and come after them in order; those
    compute again what they lost. Again, should the golden ones have had room or none, until it was so.
    """
    topology, running = cluster
    sampling = common_pb2.SamplingParams(max_tokens=200, temperature=1.0, seed=1, ignore_eos=True)

    async def scenario(salt):
        cases = golden_cases(topology.golden)
        async with golden_client(running.address) as client, asyncio.TaskGroup() as tasks:
            for place in range(2 * topology.decode):
                prompt, begun = [place + 2, *range(20, 29)], asyncio.Event()
                tasks.create_task(client.generate(prompt, sampling, request_id=f"growing-{place}", begun=begun))
                await begun.wait()
            golden = [
                tasks.create_task(client.case(case, copies=4, request_id=f"golden-{place}", cache_salt=salt))
                for place, case in enumerate(cases)
            ]
        for case, task in zip(cases, golden, strict=True):
            task.result().require_golden(case)

    for number in range(ROUNDS):
        in_loop(scenario(f"several-{number}"))
        if any(name.startswith("golden") for name in running.preempted()):
            return
    pytest.fail(f"no golden request was preempted, but {running.preempted()}")


def test_between_caches_of_different_formats_nothing_is_moved_and_the_request_is_served_all_the_same(
    checkpoints, tmp_path
):
    """What ranks themselves say of it when asked: tests/contract/test_transfer.py."""
    name = "dev_fp8.golden"
    groups = [
        GroupPlan(name="prompts", role="prefill", sections={"cache": {"dtype": "bfloat16"}}),
        GroupPlan(name="tokens", role="decode"),
    ]
    case = max(golden_cases(name), key=shared_tokens)

    async def scenario(running):
        async with open_channel(running.address) as channel, asyncio.timeout(30):
            status = router_pb2_grpc.RouterServiceStub(channel)
            while (await status.GetStatus(router_pb2.GetStatusRequest())).num_ranks < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # nothing announces a session
        async with golden_client(running.address) as client:
            served = await client.case(case)
        served.require_golden(case)
        assert (served.attempts, served.cached) == (1, 0)
        assert not [event for event in served.story if "failed" in event]
        assert [place.split("/")[0] for place in served.chosen] == ["decode"]

    with running_cluster(tmp_path, checkpoints[name], groups, parameters=NO_SHORT_CUT) as running:
        in_loop(scenario(running))
