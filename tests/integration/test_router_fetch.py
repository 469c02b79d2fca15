"""One router and fake ranks over real gRPC: a prefix fetched from a third rank, and every way in which that fails."""

import asyncio
import json

import pytest

from baleen.config import TraceConfig
from baleen.errors import DrainingError, QueueFull
from router.policy.snapshot import Parameters
from router.proxy import ProxyLimits
from tests.support.fake_rank import FakeRank, fake_tokens
from tests.support.fetching_rank import FetchingRank, knows
from tests.support.router_client import PROMPT, at_rest, eventually, request, router_with, run

ALWAYS = Parameters(short_tail_tokens=0, handoff_s=1e-6, transfer_bytes_per_s=1e12)
ALONE = Parameters(short_tail_tokens=300, handoff_s=1e-6, transfer_bytes_per_s=1e12)
HOLDS = 2
"""Blocks of the prompt, which has 3, that the holder has."""


def three(*, prefill=True):
    """A busy rank that holds the prefix, one that computes, and, if that is a prefill rank, one that decodes."""
    holder = FetchingRank(role="decode" if prefill else "mixed", rank=1)
    holder.fetchable, holder.free_blocks = HOLDS, 0
    computes = FakeRank(role="prefill" if prefill else "mixed", rank=2)
    decode = FakeRank(role="decode", rank=3) if prefill else computes
    holder.destination = computes
    return holder, computes, decode


def events(story):
    return [milestone.event for milestone in story.milestones]


def counts(usage):
    return usage.cached_tokens, usage.cached_tokens_decode, usage.cached_tokens_prefill, usage.cached_tokens_fetched


def test_a_prefill_rank_gets_a_prefix_before_it_computes():
    async def scenario():
        holder, prefill, decode = three()
        decode.num_cached_tokens = 192
        async with router_with([holder, prefill, decode], parameters=ALWAYS) as client:
            knows(client, {holder: HOLDS})
            answer = await client.generate(request(PROMPT))
            assert answer.tokens == {0: fake_tokens(PROMPT, 8)}
            (fetch,) = holder.fetches
            assert list(fetch.token_ids) == PROMPT[: 64 * HOLDS + 1]
            assert list(prefill.reserves[0].token_ids) == PROMPT[: 64 * HOLDS + 1]
            assert (fetch.destination.address, fetch.destination.ticket) == (prefill.info.transfer_address, "ticket-1")
            (wanted,) = prefill.prefills
            assert wanted.ticket == "ticket-1" and len(wanted.token_ids) == 200
            assert counts(answer.usage[0]) == (128, 0, 0, 128)
            await at_rest(holder, prefill, decode)
            story = await client.explain(answer.request_id)
            phases = [event for event in events(story) if " " not in event]
            assert phases == ["queued", "reserving", "fetching", "prefilling", "decoding"]
            assert any("fetched 2 blocks in" in event for event in events(story))
            assert client.router._parts.meters.fetches == {("complete",): 1}
            note, terms = story.decisions[0].note, story.decisions[0].candidates[0].terms
            assert "fetches 2 blocks from" in note and terms["fetch_s"] < 0

    run(scenario())


def test_a_fetch_is_part_of_the_trace_with_what_came_of_it(tmp_path):
    file = tmp_path / "spans"

    async def scenario():
        holder, prefill, decode = three()
        traces = TraceConfig(exporter="file", file=str(file), ratio=1.0)
        async with router_with([holder, prefill, decode], parameters=ALWAYS, traces=traces) as client:
            knows(client, {holder: HOLDS})
            await client.generate(request(PROMPT))
            holder.fetchable = 0
            await client.generate(request([*PROMPT[:130], *range(70)]))
            await at_rest(holder, prefill, decode)

    run(scenario())
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    roots = {span["span_id"] for span in spans if span["name"] == "router.request"}
    good, bad = (span for span in spans if span["name"] == "router.fetch")
    assert {good["parent_id"], bad["parent_id"]} == roots
    blocks = [
        (span["attributes"]["baleen.blocks_wanted"], span["attributes"]["baleen.blocks_taken"]) for span in (good, bad)
    ]
    assert blocks == [(2, 2), (2, 0)]
    assert good["status"] != "error" and bad["attributes"].get("baleen.failure", "") == ""


def test_a_rank_that_computes_alone_gets_a_prefix_first():
    async def scenario():
        holder, lone, _ = three(prefill=False)
        async with router_with([holder, lone], parameters=ALONE) as client:
            knows(client, {holder: HOLDS})
            answer = await client.generate(request(PROMPT, n=2))
            assert answer.tokens == {index: answer.tokens[index] for index in range(2)}
            assert len(holder.fetches) == 1 and lone.submits[0].ticket == "ticket-1"
            assert [counts(answer.usage[index]) for index in range(2)] == [(128, 0, 0, 128)] * 2
            await at_rest(holder, lone)

    run(scenario())


@pytest.mark.parametrize("prefill", [True, False], ids=["prefill", "alone"])
@pytest.mark.parametrize("fault", ["gone", "unknown", "refuses", "draining", "evicted", "half", "destination", "full"])
def test_a_fetch_that_fails_costs_nothing_but_time(fault, prefill):
    async def scenario():
        holder, computes, decode = three(prefill=prefill)
        ranks = [holder, computes, decode] if prefill else [holder, computes]
        match fault:
            case "unknown":
                holder.__class__ = type("Old", (FakeRank,), {})
            case "refuses":
                holder.refuse_fetch = QueueFull("too many")
            case "draining":
                holder.refuse_fetch = DrainingError("leaving")
            case "evicted":
                holder.fetchable = 0
            case "half":
                holder.most_pushed = 1
            case "destination" | "full":
                error = QueueFull("no room") if fault == "full" else DrainingError("leaving")
                computes.refuse_reserve = error
        async with router_with(ranks, parameters=ALWAYS if prefill else ALONE) as client:
            knows(client, {holder: HOLDS})
            if fault == "gone":
                kill = holder.kill

                async def fetch(*_):
                    asyncio.get_running_loop().create_task(kill())
                    await asyncio.Event().wait()

                holder.Fetch = fetch
            answer = await client.generate(request(PROMPT))
            assert answer.tokens == {0: fake_tokens(PROMPT, 8)}
            assert len(computes.prefills) == prefill and len(decode.submits) == 1
            await at_rest(*(rank for rank in ranks if rank.refuse_reserve is None))
            story = await client.explain(answer.request_id)
            assert any(event.startswith("fetched ") for event in events(story))
            assert story.outcome.startswith("finished") and "1 attempts" in story.outcome

    run(scenario())


def test_a_holder_that_hangs_is_given_up_and_not_asked_again():
    async def scenario():
        holder, prefill, decode = three()
        holder.hang_fetch = True
        limits = ProxyLimits(least_fetch_s=0.1)
        async with router_with([holder, prefill, decode], parameters=ALWAYS, limits=limits) as client:
            knows(client, {holder: HOLDS})
            async with asyncio.timeout(20):
                for _ in range(2):
                    assert (await client.generate(request(PROMPT))).tokens == {0: fake_tokens(PROMPT, 8)}
            assert len(holder.fetches) == 1
            await eventually(lambda: holder.withdrawn == 1)
            await at_rest(holder, prefill, decode)

    run(scenario())


@pytest.mark.parametrize("prefill", [True, False], ids=["prefill", "alone"])
def test_a_call_that_is_cancelled_while_it_fetches_frees_everything(prefill):
    async def scenario():
        holder, computes, decode = three(prefill=prefill)
        holder.hang_fetch = True
        ranks = [holder, computes, decode] if prefill else [holder, computes]
        limits = ProxyLimits(least_fetch_s=60.0)
        async with router_with(ranks, parameters=ALWAYS if prefill else ALONE, limits=limits) as client:
            knows(client, {holder: HOLDS})
            call = client.call(request(PROMPT, request_id="mine"))
            reader = asyncio.create_task(anext(aiter(call)))
            await eventually(lambda: bool(holder.fetches))
            call.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await eventually(lambda: client.router.num_active == 0 and holder.withdrawn == 1)
            await at_rest(*ranks)
            assert computes.released == ["ticket-1"]

    run(scenario())


def test_what_was_fetched_is_given_back_when_the_rank_then_refuses_to_compute():
    async def scenario():
        holder, prefill, decode = three()
        prefill.refuse = DrainingError("leaving")
        async with router_with([holder, prefill, decode], parameters=ALWAYS) as client:
            knows(client, {holder: HOLDS})
            assert (await client.generate(request(PROMPT))).tokens == {0: fake_tokens(PROMPT, 8)}
            assert len(holder.fetches) == len(prefill.prefills) == 1
            await eventually(lambda: prefill.released == ["ticket-1"])
            await at_rest(holder, decode)

    run(scenario())


@pytest.mark.parametrize("policy", ["least_loaded", "round_robin"])
def test_other_policies_do_not_fetch(policy):
    async def scenario():
        holder, prefill, decode = three()
        async with router_with([holder, prefill, decode], parameters=ALWAYS, policy=policy) as client:
            knows(client, {holder: HOLDS})
            await client.generate(request(PROMPT))
            assert holder.fetches == []

    run(scenario())
