"""What a real router and two real ranks write about requests: one line for each that ends, and nothing of its text."""

import asyncio
import json

import grpc
import pytest

from baleen.v1 import inference_pb2
from tests.support.router_client import eventually, request
from tests.support.scrape import scrape
from tests.support.tiny_checkpoint import make_tiny
from tests.support.watched_cluster import watched_cluster

MARKER = "Call me Ishmael."
PROMPT = MARKER * 12
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
TRACED = [("traceparent", f"00-{TRACE}-{CALLER}-01")]


async def use(cluster):
    client = cluster.client

    async def refused(message):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.generate(message)
        return caught.value.details()

    answers = [
        await client.generate(request(PROMPT, max_tokens=6, ignore_eos=True, request_id="cold"), metadata=TRACED),
        await client.generate(request(PROMPT, max_tokens=6, ignore_eos=True, request_id="warm")),
        await client.generate(request(PROMPT, max_tokens=4, ignore_eos=True, n=3, request_id="three")),
    ]
    details = [
        await refused(request(PROMPT, temperature=-1.0, request_id="wrong")),
        await refused(request([5, 4242], request_id="no-token")),
        await refused(inference_pb2.GenerateRequest(text=PROMPT, model=MARKER[:4], request_id="no-model")),
    ]
    call = client.call(request(PROMPT, max_tokens=3_000, ignore_eos=True, request_id="given-up"))
    async for message in call:
        if message.WhichOneof("event") == "delta":
            break
    call.cancel()
    await eventually(lambda: not client.router.num_active)
    decode = cluster.infos[1].metrics_address
    while (await scrape(decode)).value("rank_completions_total", "cancelled") == 0:
        pass
    metrics = [info.metrics_address for info in cluster.infos] + [client.router.metrics_address]
    return {
        "answers": answers,
        "details": details,
        "router": cluster.lines,
        "ranks": [rank.log for rank in cluster.ranks],
        "metrics": [(await scrape(address)).text for address in metrics],
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    directory = tmp_path_factory.mktemp("logs")
    file = directory / "spans.jsonl"

    def of(service):
        text = file.read_text() if file.exists() else ""
        return [span for span in map(json.loads, text.splitlines()) if span["service"] == service]

    async def scenario():
        traces = {"exporter": "file", "file": str(file), "ratio": 1.0}
        async with watched_cluster(
            make_tiny(directory / "tiny", tokenizer="bytes"), directory, traces=traces
        ) as cluster:
            seen = await use(cluster)
            # ranks have a prefill and a decode half of each of three, and the one that was given up
            await eventually(lambda: sum(span["name"] == "worker.decode" for span in of("baleen-rank")) == 4)
        return {**seen, "spans": of("baleen-router") + of("baleen-rank"), "traces": file.read_text()}

    return asyncio.run(asyncio.wait_for(scenario(), 120))


def ends(lines):
    """The last line of each request, of which there is one."""
    parsed = [json.loads(line) for line in lines if '"event":"request ended"' in line]
    names = [line["request"] for line in parsed]
    assert len(set(names)) == len(names), names
    return dict(zip(names, parsed, strict=True))


def test_the_router_writes_one_line_for_each_call(seen):
    lines = ends(seen["router"])
    assert {name: (line["outcome"], line["code"]) for name, line in lines.items()} == {
        "cold": ("finished", "OK"),
        "warm": ("finished", "OK"),
        "three": ("finished", "OK"),
        "wrong": ("rejected", "INVALID_ARGUMENT"),
        "no-token": ("failed", "INVALID_ARGUMENT"),
        "no-model": ("rejected", "NOT_FOUND"),
        "given-up": ("cancelled", "CANCELLED"),
    }
    cold, warm = lines["cold"], lines["warm"]
    assert (cold["prompt_tokens"], cold["completion_tokens"], cold["cached_decode"]) == (192, 6, 0)
    assert (warm["prompt_tokens"], warm["completion_tokens"], warm["cached_decode"]) == (192, 6, 128)
    assert lines["three"]["completion_tokens"] == 12
    assert cold["trace"] == TRACE and len(warm["trace"]) == 32 and warm["trace"] != TRACE
    assert cold["prefill"] and cold["decode"] and cold["prefill"] != cold["decode"]
    phases = [cold[f"{phase}_s"] for phase in ("queued", "reserving", "prefilling", "decoding")]
    assert all(seconds >= 0 for seconds in phases) and sum(phases) <= cold["seconds"] * 1.001
    assert 0 < cold["first_token_s"] <= cold["seconds"]


def test_each_rank_writes_one_line_for_what_it_did(seen):
    prefill, decode = (ends(log.splitlines()) for log in seen["ranks"])

    def of(lines, name):
        return [line for request_id, line in lines.items() if request_id.startswith(f"{name}/")]

    (cold,) = of(prefill, "cold")
    assert (cold["outcome"], cold["prompt_tokens"], cold["blocks_pushed"], cold["trace"]) == (
        "prefilled",
        128,
        2,
        TRACE,
    )
    (cold,) = of(decode, "cold")
    assert (cold["outcome"], cold["cached_tokens"], cold["output_tokens"], cold["trace"]) == ("length", 128, 6, TRACE)
    assert 0 <= cold["queued_s"] <= cold["first_token_s"] <= cold["seconds"] and cold["preemptions"] == 0
    (three,) = of(decode, "three")
    assert (three["outcome"], three["output_tokens"]) == ("length", 12)
    (given_up,) = of(decode, "given-up")
    assert given_up["outcome"] == "cancelled" and given_up["output_tokens"] >= 1
    (wrong,) = of(decode, "no-token")
    assert (wrong["outcome"], wrong["error"]) == ("refused", "InvalidRequest")
    assert not of(decode, "wrong") and not of(decode, "no-model")


def tree(spans, request):
    """(name, children), of the trace that holds this request; children in the order of their names."""
    (root,) = [s for s in spans if s["name"] == "router.request" and s["attributes"]["baleen.request_id"] == request]
    members = [span for span in spans if span["trace_id"] == root["trace_id"]]

    def below(span):
        inner = sorted((s for s in members if s["parent_id"] == span["span_id"]), key=lambda s: s["name"])
        assert all(span["start_ns"] <= s["end_ns"] and s["start_ns"] <= s["end_ns"] for s in inner)
        return span["name"], [below(s) for s in inner]

    found = below(root)
    assert str(found).count("(") == len(members), "every span of the trace hangs on its root"
    return root, found


LEAF = {name: (name, []) for name in ("router.admit", "router.route", "worker.decode", "worker.prefill")}


def test_a_request_is_one_trace_across_router_and_ranks(seen):
    root, found = tree(seen["spans"], "cold")
    assert (root["trace_id"], root["parent_id"], root["status"]) == (TRACE, CALLER, "unset")
    pushed = ("worker.prefill", [("kv.transfer", [])])
    assert found == (
        "router.request",
        [LEAF["router.admit"], LEAF["router.route"], LEAF["worker.decode"], pushed],
    )
    assert [event["name"] for event in root["events"]] == ["first token"]
    assert root["attributes"]["gen_ai.usage.output_tokens"] == 6
    decode = next(s for s in seen["spans"] if s["name"] == "worker.decode" and s["trace_id"] == TRACE)
    assert [event["name"] for event in decode["events"]] == ["first token"]
    assert decode["attributes"]["gen_ai.usage.cache_read.input_tokens"] == 128
    assert decode["attributes"]["baleen.group"] == "decode/0"


def test_requests_that_do_not_finish_have_their_traces_too(seen):
    root, found = tree(seen["spans"], "given-up")
    assert root["status"] == "error" and root["attributes"]["error.type"] == "CANCELLED"
    assert found[1][:3] == [LEAF["router.admit"], LEAF["router.route"], LEAF["worker.decode"]]
    decode = next(s for s in seen["spans"] if s["name"] == "worker.decode" and s["trace_id"] == root["trace_id"])
    assert decode["attributes"]["error.type"] == "cancelled"
    root, found = tree(seen["spans"], "no-token")
    assert root["attributes"]["error.type"] == "InvalidRequest" and root["attributes"]["baleen.outcome"] == "failed"
    assert found == ("router.request", [LEAF["router.admit"], LEAF["router.route"]])


def test_nothing_of_a_prompt_or_an_answer_is_written_anywhere(seen):
    # the client itself is told which token is wrong, so that the absence below proves something
    assert "4242" in seen["details"][1]
    answer = seen["answers"][0]
    needles = [MARKER, MARKER[:6], "4242", json.dumps(list(MARKER.encode()))[1:12], *_spelled(answer.tokens[0][:4])]
    if answer.text[0].strip():
        needles.append(answer.text[0])
    for place in (*seen["router"], *seen["ranks"], *seen["metrics"], seen["traces"]):
        found = [needle for needle in needles if needle in place]
        assert not found, (found, place[:300])


def _spelled(token_ids):
    return [separator.join(map(str, token_ids)) for separator in (",", ", ")]
