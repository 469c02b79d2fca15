"""What /metrics of a real router and two real ranks says after some requests, against what their client saw."""

import asyncio

import grpc
import pytest

from baleen.blocks import BLOCK_TOKENS
from baleen.errors import ConfigError
from baleen.exposition import MetricsServer, Samples
from baleen.metric_table import PHASES
from baleen.metrics import histogram
from cluster.status import router_status
from router.config import RouterProcessConfig
from router.main import Router
from tests.support.router_client import eventually, request
from tests.support.scrape import Scrape, scrape
from tests.support.tiny_checkpoint import make_tiny
from tests.support.watched_cluster import NUM_BLOCKS, watched_cluster

PROMPT = list(range(10, 210))
NUM_MOVED = 3
"""Whole blocks before the last token of PROMPT."""


async def use(cluster):
    """Requests one after the other: cold, repeated, of another tenant, a wrong one; then one that is given up."""
    client, seen = cluster.client, {}
    answers = [await client.generate(request(PROMPT, max_tokens=6, ignore_eos=True)) for _ in range(2)]
    answers.append(
        await client.generate(request(PROMPT, max_tokens=9, ignore_eos=True), metadata=[("x-tenant", "other")])
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await client.generate(request(PROMPT, temperature=-1.0))
    seen["answers"] = answers
    addresses = {name: info.metrics_address for name, info in zip(("prefill", "decode"), cluster.infos, strict=True)}
    addresses["router"] = cluster.client.router.metrics_address
    seen["first"] = {name: await scrape(address) for name, address in addresses.items()}
    seen["status"] = await router_status(client.address)
    call = client.call(request(PROMPT, max_tokens=3_800, ignore_eos=True))
    async for message in call:
        if message.WhichOneof("event") == "delta":
            break
    seen["during"] = await scrape(addresses["router"])
    call.cancel()
    await eventually(lambda: not client.router.num_active)
    while True:
        seen["last"] = {name: await scrape(address) for name, address in addresses.items()}
        if seen["last"]["decode"].value("kv_blocks", "held") == 0:
            return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    directory = tmp_path_factory.mktemp("metrics")

    async def scenario():
        async with watched_cluster(make_tiny(directory / "tiny"), directory, traces={}) as cluster:
            return await use(cluster)

    return asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize(("name", "process"), [("router", "router"), ("prefill", "rank"), ("decode", "rank")])
def test_every_process_exposes_what_the_table_gives_it_and_nothing_else(seen, name, process):
    for when in ("first", "last"):
        assert seen[when][name].differences(process) == []


def test_the_router_counts_what_its_client_saw(seen):
    router, answers = seen["first"]["router"], seen["answers"]
    requests = {labels: count for labels, count in router.series("requests_total").items() if count}
    assert requests == {("finished", "OK"): 3, ("rejected", "INVALID_ARGUMENT"): 1}
    assert router.value("output_tokens_total") == sum(len(answer.tokens[0]) for answer in answers) == 21
    # a message may bring several tokens at once: all but those of the first one follow another
    followed = sum(len(answer.tokens[0]) - len(answer.deltas[0].token_ids) for answer in answers)
    assert router.count("itl_seconds") == followed
    assert router.count("tpot_seconds") == 3
    usages = [answer.usage[0] for answer in answers]
    assert router.value("prompt_tokens_total", "local_cache") == sum(usage.cached_tokens for usage in usages) == 192
    assert router.value("prompt_tokens_total", "computed") == 3 * 200 - 192
    assert router.counts("ttft_seconds") == {("hit",): 1, ("partial",): 0, ("miss",): 2}
    assert router.count("request_duration_seconds", "finished") == router.count("queue_seconds") == 3
    assert router.series("admission_decisions_total")[("admitted", "room")] == 3
    assert router.count("predicted_ttft_error_seconds") == router.count("route_seconds") == 3
    assert sum(router.series("route_decisions_total").values()) == 3
    assert router.series("ready_workers") == {("prefill",): 1, ("decode",): 1}
    assert set(router.series("inflight_requests").values()) == {0}


def test_the_router_tells_the_same_for_the_status_table(seen):
    status, router = seen["status"], seen["first"]["router"]
    figures = status.figures
    assert status.health == "serving" and figures.policy == "cost" and not figures.leaving
    assert (figures.num_ranks, figures.num_queued, figures.num_active, figures.num_admitted) == (2, 0, 0, 3)
    assert (figures.prompt_tokens, figures.cached_prompt_tokens) == (600, 192)
    assert figures.retry_budget == router.value("retry_budget_remaining") == 64


def test_the_ranks_count_what_they_did(seen):
    prefill, decode = seen["first"]["prefill"], seen["first"]["decode"]
    assert decode.value("rank_output_tokens_total") == 21 and prefill.value("rank_output_tokens_total") == 0
    assert decode.value("rank_completions_total", "length") == 3
    assert decode.value("rank_prompt_tokens_total", "cached") == 3 * NUM_MOVED * BLOCK_TOKENS
    assert decode.value("rank_prompt_tokens_total", "computed") == 3 * (200 - NUM_MOVED * BLOCK_TOKENS)
    # of two tenants: the second request of the first one finds all on the decode rank
    assert prefill.value("rank_prompt_tokens_total", "computed") == 2 * NUM_MOVED * BLOCK_TOKENS
    moved = decode.value("kv_transfer_bytes_total", "in")
    assert moved == prefill.value("kv_transfer_bytes_total", "out") > 0 and moved % (2 * NUM_MOVED) == 0
    assert prefill.count("kv_transfer_seconds", "out") == decode.count("kv_transfer_seconds", "in") == 2
    assert decode.count("step_seconds", "compute") == decode.count("step_seconds", "commit") >= 21
    assert decode.series("transport_info") == {("tcp",): 1}
    for rank in (prefill, decode):
        assert sum(rank.series("kv_blocks").values()) == NUM_BLOCKS
        assert rank.value("kv_blocks", "cached") == 2 * NUM_MOVED


def test_a_request_that_is_given_up_is_counted_and_frees_its_blocks(seen):
    during, last = seen["during"], seen["last"]
    assert during.value("inflight_requests", "decoding") == 1
    assert last["router"].value("requests_total", "cancelled", "CANCELLED") == 1
    assert last["router"].series("cancels_total") == {(phase,): float(phase == "decoding") for phase in PHASES}
    assert last["decode"].value("rank_completions_total", "cancelled") == 1
    assert last["decode"].count("cancel_release_seconds") == 1
    assert last["decode"].series("cancel_release_seconds", "_sum")[()] < 1.0
    assert sum(last["decode"].series("kv_blocks").values()) == NUM_BLOCKS


def test_a_port_that_is_taken_is_named():
    async def scenario():
        first = Router(RouterProcessConfig(listen="127.0.0.1:0", listen_metrics="127.0.0.1:0", ranks="127.0.0.1:1"))
        await first.start()
        taken = first.metrics_address
        second = Router(RouterProcessConfig(listen="127.0.0.1:0", listen_metrics=taken, ranks="127.0.0.1:1"))
        try:
            with pytest.raises(ConfigError, match=f"listen_metrics is '{taken}'.*Address already in use"):
                await second.start()
        finally:
            await second.stop(0.0)
            await first.stop(0.0)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_sample_outside_of_the_table_is_no_answer():
    # the mistake is ours, and must not become a series without bound
    for wrong in (("kv_evictions_total", (), 1), ("cancels_total", ("req-1",), 1)):
        server = MetricsServer("127.0.0.1:0", Samples("router", lambda wrong=wrong: [wrong]), key="test")
        try:
            with pytest.raises(AssertionError, match="status 500"):
                asyncio.run(scrape(server.address))
        finally:
            server.close()


def test_histograms_agree_with_the_parser():
    lag = histogram("event_loop_lag_seconds")
    for value, count in ((0.0, 1), (0.0001, 2), (0.3, 3), (99.0, 4)):
        lag.observe(value, count)
    server = MetricsServer("127.0.0.1:0", Samples("rank", lambda: [("event_loop_lag_seconds", (), lag)]), key="test")
    try:
        found: Scrape = asyncio.run(scrape(server.address))
    finally:
        server.close()
    buckets = {
        float(sample.labels["le"]): sample.value
        for sample in found.families["event_loop_lag_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert (buckets[0.00005], buckets[0.0001], buckets[0.25], buckets[1.0], buckets[float("inf")]) == (1, 3, 3, 6, 10)
    assert found.series("event_loop_lag_seconds", "_sum")[()] == pytest.approx(0.0002 + 0.9 + 396)
