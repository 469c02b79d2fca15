"""Traces of a router over ranks that fail, and what an exporter that is down costs: nothing but its spans."""

import json

import grpc
import pytest
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from baleen.clock import SystemClock
from baleen.config import TraceConfig
from baleen.errors import ConfigError
from baleen.telemetry import Log
from baleen.trace_context import trace_id_of
from baleen.tracing import MOST_WAITING, Moment, Tracing, traceparent_of
from tests.support.fake_rank import FakeRank
from tests.support.router_client import PROMPT, in_turn, request, router_with, run

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def spans_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_request_that_moves_has_one_trace_with_both_choices(tmp_path):
    file = tmp_path / "spans"

    async def scenario():
        ranks = [FakeRank(), FakeRank()]
        traces = TraceConfig(exporter="file", file=str(file), ratio=0.0)
        async with router_with(ranks, policy="round_robin", traces=traces) as client:
            first, second = in_turn(ranks)
            first.die_after = 3
            answer = await client.generate(request(PROMPT, max_tokens=8), metadata=[("traceparent", CALLER)])
            assert len(answer.tokens[0]) == 8
            # nobody decided for this one, and chance takes none
            await client.generate(request(PROMPT, max_tokens=2))
        return [rank.submits[0].traceparent for rank in (first, second)]

    told = []

    async def main():
        told.extend(await scenario())

    run(main())
    spans = spans_in(file)
    (root,) = [span for span in spans if span["name"] == "router.request"]
    assert sorted(span["name"] for span in spans) == ["router.admit", "router.request", *["router.route"] * 2]
    assert {span["parent_id"] for span in spans if span is not root} == {root["span_id"]}
    assert [event["name"] for event in root["events"]] == ["first token", "migration"]
    assert root["events"][1]["attributes"]["baleen.cause"] == "lost"
    # both ranks go on from the request's own span
    assert told == [f"00-{root['trace_id']}-{root['span_id']}-01"] * 2


def test_a_request_that_is_refused_has_its_reason(tmp_path):
    file = tmp_path / "spans"

    async def scenario():
        rank = FakeRank()
        rank.prefill_tokens_per_s = 1.0
        traces = TraceConfig(exporter="file", file=str(file), ratio=1.0)
        async with router_with([rank], traces=traces, slo_first_token_s=0.001) as client:
            with pytest.raises(grpc.aio.AioRpcError):
                await client.generate(request(PROMPT))

    run(scenario())
    spans = {span["name"]: span for span in spans_in(file)}
    assert set(spans) == {"router.request", "router.admit"}
    for span in spans.values():
        assert (span["status"], span["attributes"]["error.type"]) == ("error", "ShedError")
    assert spans["router.request"]["attributes"]["baleen.outcome"] == "rejected"


class Down(SpanExporter):
    """Takes nothing, and not quickly."""

    def export(self, spans):
        raise ConnectionError("nobody is there")


def test_an_exporter_that_is_down_costs_its_spans_only():
    lines = []
    tracing = Tracing(TraceConfig(ratio=1.0), "test", clock=SystemClock(), log=Log(write=lines.append), exporter=Down())
    for _ in range(3 * MOST_WAITING):
        tracing.record("router.request", "", (0.0, 1.0), {})
        assert len(tracing._processor._batch_processor._queue) <= MOST_WAITING
    tracing.close()
    assert lines and json.loads(lines[0])["cause"] == "ConnectionError: nobody is there"


def test_an_endpoint_that_nobody_serves_delays_no_end():
    log = []
    traces = TraceConfig(exporter="otlp", endpoint="http://127.0.0.1:9", ratio=1.0)
    tracing = Tracing(traces, "test", clock=SystemClock(), log=Log(write=log.append))
    clock, begin = SystemClock(), SystemClock().now()
    tracing.record("router.request", "", (begin, begin), {})
    tracing.close(0.2)
    assert clock.now() - begin < 20


def test_times_sampling_and_parents():
    memory, clock = InMemorySpanExporter(), SystemClock()
    tracing = Tracing(TraceConfig(ratio=0.0), "test", clock=clock, log=Log("off"), exporter=memory)
    assert not int(tracing.record("none", "", (0.0, 1.0), {})[-2:], 16) & 1
    now = clock.now()
    parent = tracing.begin("outer", CALLER, now - 2.0)
    told = traceparent_of(parent)
    assert trace_id_of(told) == trace_id_of(CALLER)
    tracing.record("inner", told, (now - 1.5, now - 1.0), {"a": 1, "b": None}, [Moment("x", now - 1.2)], error="Bad")
    tracing.end(parent, now, {})
    tracing.close()
    inner, outer = memory.get_finished_spans()
    assert (inner.name, outer.name, inner.parent.span_id) == ("inner", "outer", outer.context.span_id)
    assert outer.end_time - outer.start_time == pytest.approx(2e9, rel=0.05)
    assert inner.end_time - inner.start_time == pytest.approx(0.5e9, rel=0.2)
    assert dict(inner.attributes) == {"a": 1, "error.type": "Bad"} and inner.events[0].name == "x"


@pytest.mark.parametrize(
    "text", ["", "x", "00-0-0-01", f"00-{'0' * 32}-00f067aa0ba902b7-01", CALLER.upper(), CALLER + "-more"]
)
def test_what_is_no_trace_context_names_no_trace(text):
    assert trace_id_of(text) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exporter": "otlp", "endpoint": "collector:4317"}, "traces.endpoint is 'collector:4317'"),
        ({"exporter": "file", "file": "spans"}, "traces.file is 'spans'"),
        ({"ratio": 1.5}, "traces.ratio is 1.5"),
    ],
)
def test_settings_that_lead_nowhere_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TraceConfig(**fields)
