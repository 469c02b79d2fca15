"""Streams of the Responses and Messages dialects, read by the official clients' own types and put together by them."""

import json
from itertools import count

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from baleen.text.output_events import Content, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart
from router.gateway.messages.answer import MessageAnswer
from router.gateway.responses.answer import ResponseAnswer

OPENAI_EVENT: TypeAdapter = TypeAdapter(ResponseStreamEvent)
ANTHROPIC_EVENT: TypeAdapter = TypeAdapter(RawMessageStreamEvent)
CALL = [ToolCallStart(0, "f"), ToolCallArguments(0, "{"), ToolCallArguments(0, '"a": 1}'), ToolCallEnd(0)]
BROKEN = [ToolCallStart(1, "g"), ToolCallArguments(1, "{"), Content("<g")]
WHOLE = [[Reasoning("wh")], [Reasoning("y"), Content("s")], [Content("o"), *CALL[:2]], CALL[2:], BROKEN]
OPENAI_USAGE = {
    "input_tokens": 3,
    "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
    "output_tokens": 4,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 7,
}
ANTHROPIC_USAGE = {"input_tokens": 2, "cache_read_input_tokens": 1, "output_tokens": 4}
BASE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "completed_at": None,
    "status": "in_progress",
    "model": "m",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "error": None,
    "incomplete_details": None,
}


def ids():
    numbers = count()
    return lambda prefix: f"{prefix}{next(numbers)}"


def response_events(chunks, reason):
    answer = ResponseAnswer(BASE, ids())
    events = answer.start()
    for chunk in chunks:
        events += answer.feed(chunk)
    return events + answer.finish(reason, OPENAI_USAGE, 9), answer


def message_events(chunks, reason, stop=None):
    answer = MessageAnswer("m", {"input_tokens": 2, "output_tokens": 0}, ids())
    events = answer.start()
    for chunk in chunks:
        events += answer.feed(chunk)
    return events + answer.finish(reason, ANTHROPIC_USAGE, stop), answer


def test_the_events_of_a_response_are_those_of_the_client_and_numbered():
    events, _ = response_events(WHOLE, "tool_calls")
    for event in events:
        OPENAI_EVENT.validate_python(event, strict=False)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        "created",
        "in_progress",
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        "completed",
    ]


def test_deltas_put_together_are_the_response():
    events, answer = response_events(WHOLE, "tool_calls")
    texts: dict[int, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            texts[event["output_index"]] = texts.get(event["output_index"], "") + event["delta"]
    response = Response.model_validate(events[-1]["response"])
    assert events[-1]["response"] == answer.response()
    reasoning, message, call, rest = response.output
    assert reasoning.content[0].text == texts[0] == "why"
    assert message.content[0].text == texts[1] == response.output_text[:2] == "so"
    assert json.loads(call.arguments) == json.loads(texts[2]) == {"a": 1} and call.status == "completed"
    assert rest.content[0].text == texts[4] == "<g"
    assert response.status == "completed" and response.usage.total_tokens == 7


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [
        ("stop", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
        ("insufficient_system_resource", "failed", None),
    ],
)
def test_how_a_response_ends(reason, status, details):
    events, answer = response_events([[Content("x")]], reason)
    last = OPENAI_EVENT.validate_python(events[-1])
    assert last.type == f"response.{status}"
    response = answer.response()
    assert response["incomplete_details"] == details and (response["error"] is None) == (status != "failed")


def test_an_empty_response_is_an_empty_message_and_a_late_error_is_told():
    _, answer = response_events([], "stop")
    assert [item["content"][0]["text"] for item in answer.response()["output"]] == [""]
    failing = ResponseAnswer(BASE, ids())
    failing.feed([Content("x")])
    last = OPENAI_EVENT.validate_python(failing.fail("server_error", "gone")[-1])
    assert last.response.error.message == "gone" and last.response.status == "failed"


@pytest.mark.parametrize("chunks", [WHOLE[:4], WHOLE[:1], [[Content("a")]], []])
def test_the_client_puts_a_message_together_as_it_is_whole(chunks):
    events, answer = message_events(chunks, "tool_calls" if len(chunks) == 4 else "stop")
    snapshot, buffers = None, {}
    for event in events:
        parsed = ANTHROPIC_EVENT.validate_python(event) if event["type"] != "ping" else None
        if parsed is not None:
            snapshot = accumulate_event(event=parsed, current_snapshot=snapshot, json_bufs=buffers)
    whole = Message.model_validate(answer.message())
    shown = [block.model_dump(exclude={"parsed_output"}) for block in snapshot.content]
    assert shown == [block.model_dump() for block in whole.content]
    assert snapshot.stop_reason == whole.stop_reason == ("tool_use" if len(chunks) == 4 else "end_turn")
    assert snapshot.usage.output_tokens == whole.usage.output_tokens == 4


def test_a_malformed_call_is_text_of_the_message():
    events, answer = message_events(WHOLE, "tool_calls")
    blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert blocks == ["thinking", "text", "tool_use", "tool_use", "text"]
    starts = [event["index"] for event in events if event["type"] == "content_block_start"]
    stops = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert starts == stops == [0, 1, 2, 3, 4]
    whole = Message.model_validate(answer.message())
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "text"]
    assert whole.content[2].input == {"a": 1} and whole.content[3].text == "<g"


@pytest.mark.parametrize(
    ("reason", "stop", "expected"),
    [("stop", None, "end_turn"), ("stop", "END", "stop_sequence"), ("length", None, "max_tokens")],
)
def test_why_a_message_stops(reason, stop, expected):
    events, answer = message_events([[Content("x")]], reason, stop)
    assert answer.message()["stop_reason"] == events[-2]["delta"]["stop_reason"] == expected
    assert answer.message()["stop_sequence"] == stop and events[-1] == {"type": "message_stop"}
