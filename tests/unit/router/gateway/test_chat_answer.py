"""Chunks and completions of the chat dialect, put together as the official client does it."""

import json

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from baleen.sampling import SamplingParams
from baleen.text.output_events import Content, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart
from baleen.text.tokenizer import Tokenizer
from baleen.v1 import common_pb2
from router.gateway.ask import Ask, Piece, TokenUsage
from router.gateway.chat.answer import ChatShape, ChunkOptions
from router.gateway.frames import DONE
from tests.support.tiny_tokenizer import tiny_tokenizer

CALL = [ToolCallStart(0, "f"), ToolCallArguments(0, "{"), ToolCallArguments(0, '"a": 1}'), ToolCallEnd(0)]
USAGE = TokenUsage(3, 1, 4, 2)


def shape_of(options=ChunkOptions(), *, thinking=False, stream=True, **sampling):  # noqa: B008  (it is frozen)
    ask = Ask(model="m", prompt=[1, 2, 3], sampling=SamplingParams(**sampling), thinking=thinking, tools=True)
    tokenizer = Tokenizer(tiny_tokenizer())
    head = {"answer_id": "chatcmpl-1", "created": 1, "fingerprint": "fp"}
    return ChatShape(ask, tokenizer, **head, options=options, stream=stream)


def piece(events=(), finish=None, *, index=0, tokens=(5,), logprobs=()):
    return Piece(index=index, events=events, token_ids=tokens, logprobs=logprobs, finish=finish, usage=USAGE)


def chunks_of(shape, pieces):
    frames = shape.start() + [frame for one in pieces for frame in shape.take(one)] + shape.end(USAGE)
    assert frames[-1] == DONE
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames[:-1]]


PIECES = [piece([Reasoning("why")]), piece([Content("so")]), piece(CALL[:2]), piece(CALL[2:]), piece((), "tool_calls")]


def test_the_client_puts_chunks_together_as_the_completion_is_whole():
    chunks = chunks_of(shape_of(thinking=True), PIECES)
    state = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    streamed = state.get_final_completion().choices[0]
    shape = shape_of(thinking=True, stream=False)
    for one in PIECES:
        shape.take(one)
    whole = ChatCompletion.model_validate(shape.whole(USAGE)).choices[0]
    assert streamed.message.content == whole.message.content == "so"
    assert whole.message.reasoning_content == "why"
    assert "".join(c["choices"][0]["delta"].get("reasoning_content") or "" for c in chunks) == "why"
    assert streamed.message.tool_calls[0].function.arguments == whole.message.tool_calls[0].function.arguments
    assert whole.message.tool_calls[0].function.name == "f"
    assert streamed.finish_reason == whole.finish_reason == "tool_calls"


@pytest.mark.parametrize("thinking", [True, False])
def test_chunks_of_text_alone_are_those_that_are_made_the_long_way(thinking):
    texts = ["a", '"\\\n\x00\x1f\x7f', "größe 🐳", "\ud800", "</script>", "\u2028", " ", "\\u0000"]
    pieces = [piece([kind(text)]) for text in texts for kind in (Reasoning, Content)]
    short, long = shape_of(thinking=thinking, n=2), shape_of(thinking=thinking, n=2)
    long._is_plain = False
    for one in (*pieces, *(piece(p.events, index=1) for p in pieces), piece((), "stop")):
        assert short.take(one) == long.take(one)
    # and so are those that have something else
    for options in (ChunkOptions(usage=True), ChunkOptions(usage_everywhere=True), ChunkOptions(token_ids=True)):
        shape = shape_of(options)
        first, second = (json.loads(shape.take(p)[-1].removeprefix(b"data: ")) for p in (pieces[1], pieces[3]))
        assert first.keys() - {"prompt_token_ids"} == second.keys()
        assert first["choices"][0].keys() == second["choices"][0].keys()


def test_chunks_are_those_of_deepseek():
    chunks = chunks_of(shape_of(thinking=True), PIECES)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[:3] == [
        {"role": "assistant", "content": None, "reasoning_content": ""},
        {"content": None, "reasoning_content": "why"},
        {"content": "so", "reasoning_content": None},
    ]
    start = deltas[3]["tool_calls"][0]
    assert (start["index"], start["type"], start["function"]) == (0, "function", {"name": "f", "arguments": ""})
    assert start["id"].startswith("call_00_") and len(start["id"]) == 32
    assert deltas[4] == {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}
    assert deltas[-1] == {"content": "", "reasoning_content": None}
    assert chunks[-1]["usage"]["prompt_cache_hit_tokens"] == 1 and "usage" not in chunks[0]


def test_usage_comes_as_it_is_asked_for():
    apart = chunks_of(shape_of(ChunkOptions(usage=True)), [piece([Content("x")]), piece((), "stop")])
    assert [chunk["usage"] for chunk in apart[:-1]] == [None] * (len(apart) - 1)
    assert apart[-1]["choices"] == [] and apart[-1]["usage"]["total_tokens"] == 7
    each = chunks_of(shape_of(ChunkOptions(usage_everywhere=True)), [piece([Content("x")]), piece((), "stop")])
    assert all(chunk["usage"]["completion_tokens"] == 4 for chunk in each)
    several = chunks_of(shape_of(n=2), [piece((), "stop"), piece((), "length", index=1)])
    assert ["usage" in chunk for chunk in several] == [False, False, False, True]


def test_a_call_that_was_malformed_is_left_out_of_the_completion():
    broken = [ToolCallStart(1, "g"), ToolCallArguments(1, "{"), Content("<g")]
    shape = shape_of(stream=False)
    shape.take(piece([*CALL, *broken], "tool_calls"))
    message = shape.whole(USAGE)["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["f"] and message["content"] == "<g"


@pytest.mark.parametrize("text_first", [True, False])
def test_token_ids_and_logprobs_of_every_token_come_once(text_first):
    entry = common_pb2.PositionLogprobs(logprob=-0.5, top=[common_pb2.TokenLogprob(token_id=6, logprob=float("-inf"))])
    pieces = [
        piece([Content("x")] if text_first else [], tokens=(5,), logprobs=[entry]),
        piece([Content("y"), Content("z")], tokens=(7, 8), logprobs=[entry, entry]),
        piece((), "stop", tokens=()),
    ]
    chunks = chunks_of(shape_of(ChunkOptions(token_ids=True), logprobs=1), pieces)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [[1, 2, 3]] + [None] * (len(chunks) - 1)
    assert [token for choice in choices for token in choice.get("token_ids", ())] == [5, 7, 8]
    shown = [one for choice in choices if choice["logprobs"] for one in choice["logprobs"]["content"]]
    assert len(shown) == 3 and shown[0]["logprob"] == -0.5 and shown[0]["top_logprobs"][0]["logprob"] == -9999.0
    shape = shape_of(ChunkOptions(token_ids=True), stream=False, logprobs=1)
    assert [shape.take(one) for one in pieces] == [[], [], []]
    whole = shape.whole(USAGE)
    assert whole["prompt_token_ids"] == [1, 2, 3] and whole["choices"][0]["token_ids"] == [5, 7, 8]
    assert whole["choices"][0]["logprobs"]["content"] == shown
