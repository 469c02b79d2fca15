"""Evaluation of a served model: graders, the file of instances, and a run against a service with known answers."""

import asyncio
import json
import math

import grpc.aio
import pytest

from baleen.errors import BaleenError, ConfigError
from baleen.text.encoding_v32 import Message, ToolCall, encode_messages, encode_pieces
from baleen.text.parsing_v32 import MalformedCompletion, parse_completion
from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from baleen.wire.channel import open_channel
from cluster.commands.eval import as_dict, table
from cluster.evaluation.instances import Instance, bundled_instances, read_instances, write_instances
from cluster.evaluation.over_grpc import OverGrpc
from cluster.evaluation.over_http import OverHttp, body_of
from cluster.evaluation.runner import Answer, evaluate

USER = Message(role="user", content="?")


def instance(family: str, expected: Message, thinking: bool = False) -> Instance:
    return Instance(family=family, thinking=thinking, messages=(USER,), expected=expected)


def says(content: str, reasoning: str = "") -> Message:
    return Message(role="assistant", content=content, reasoning=reasoning)


def calls(*pairs: tuple[str, str]) -> Message:
    return Message(role="assistant", tool_calls=tuple(ToolCall(*pair) for pair in pairs))


def written(message: Message, thinking: bool = False) -> str:
    return encode_pieces([USER, message], thinking=thinking)[1].removesuffix("<｜end▁of▁sentence｜>")


def is_right(asked: Instance, text: str) -> bool:
    """Whether a completion's text is a right answer; one that is not of the format never is."""
    try:
        got = parse_completion(text, thinking=asked.thinking)
    except MalformedCompletion:
        got = None
    return Answer(asked, text, got, True).right


@pytest.mark.parametrize(
    ("family", "expected", "text", "right"),
    [
        ("arithmetic", says("7 + 5 = 12"), "so 7 + 5 = 12", True),
        ("arithmetic", says("7 + 5 = 12"), "7 + 5 = 121", False),
        ("json", says('{"a": 1, "b": true}'), '{"b": true, "a": 1}', True),
        ("json", says('{"a": 1}'), '{"a": true}', False),
        ("json", says('{"a": 1}'), '{"a": 1', False),
        ("recall", says("The code is elm."), "The code is elm.", True),
        ("recall", says("The code is elm."), "The code is fern.", False),
        ("tools", calls(("f", '{"x": 1}')), written(calls(("f", '{"x": 1}'))), True),
        ("tools", calls(("f", '{"x": 1}')), written(calls(("f", '{"x": "1"}'))), False),
        ("tools", calls(("f", '{"x": 1}')), written(calls(("g", '{"x": 1}'))), False),
        ("tools", calls(("f", '{"x": 1}')), "f(1)", False),
        ("talk", says("Hello!"), "Hello!" + written(calls(("f", "{}"))), False),
    ],
)
def test_graders(family, expected, text, right):
    assert is_right(instance(family, expected), text) is right


def test_thinking_must_end_and_is_no_part_of_the_answer():
    asked = instance("talk", says("Hello!"), thinking=True)
    assert is_right(asked, "A greeting.</think>Hello!")
    assert not is_right(asked, "Hello!")


def test_the_file_of_instances_comes_back_and_a_bad_line_is_named(tmp_path):
    path = tmp_path / "instances.jsonl"
    system = Message(role="system", content="s", tools=[{"name": "f"}])
    given = [
        Instance(family="tools", thinking=True, messages=(system, USER), expected=calls(("f", "{}"))),
        instance("talk", says("Hi")),
    ]
    write_instances(path, given)
    assert read_instances(path) == given
    path.write_text(path.read_text() + '{"family": "talk"}\n')
    with pytest.raises(ConfigError, match=r"instances\.jsonl:3: not an instance"):
        read_instances(path)


def test_the_instances_that_ship_can_be_encoded_and_their_answers_are_right():
    found = read_instances(bundled_instances())
    assert {one.family for one in found} == {"arithmetic", "tools", "json", "recall", "talk", "text"}
    for one in found:
        if one.family != "text":
            *_, answer = encode_pieces([*one.messages, one.expected], thinking=one.thinking)
            assert is_right(one, answer.removesuffix("<｜end▁of▁sentence｜>")), one


class KnownAnswers(inference_pb2_grpc.InferenceServiceServicer):
    """Answers prompts from a table, and gives each forced token a log-probability of its own id."""

    def __init__(self, answers: dict[str, tuple[str, int]]) -> None:
        self.answers = answers
        self.salts: list[str] = []

    async def Tokenize(self, request, context):
        return inference_pb2.TokenizeResponse(token_ids=request.text.encode())

    async def Generate(self, request, context):
        yield inference_pb2.GenerateResponse(admitted=inference_pb2.Admitted(request_id="r"))
        if request.WhichOneof("prompt") == "text":
            text, reason = self.answers[request.text]
            for piece in (text[:3], text[3:]):
                yield inference_pb2.GenerateResponse(delta=inference_pb2.Delta(text=piece))
            yield inference_pb2.GenerateResponse(delta=inference_pb2.Delta(finish_reason=reason))
            return
        (token,) = request.sampling.logit_bias
        self.salts.append(request.cache_salt)
        delta = inference_pb2.Delta(
            token_ids=[token], logprobs=[common_pb2.PositionLogprobs(logprob=-token / 100)], finish_reason=2
        )
        yield inference_pb2.GenerateResponse(delta=delta)


def test_a_run_counts_right_answers_ends_and_perplexity():
    stop, length = common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH
    asked = [
        Instance(
            family="talk",
            thinking=False,
            messages=(Message(role="user", content=str(number)),),
            expected=says("Hello!"),
        )
        for number in range(4)
    ]
    texts = [encode_messages(one.messages, thinking=False) for one in asked]
    ways = [("Hello!", stop), ("Hello!", length), ("Bye", stop), ("Hello!", stop)]
    service = KnownAnswers(dict(zip(texts, ways, strict=True)))
    text = Instance(family="text", thinking=False, messages=(), expected=says("abc"))

    async def run():
        server = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with open_channel(f"127.0.0.1:{port}") as channel:
                return await asyncio.wait_for(evaluate(OverGrpc(channel, concurrency=2), [*asked, text]), 30)
        finally:
            await server.stop(0)

    results = asyncio.run(run())
    found = as_dict(results)
    assert found["tasks"] == {
        "talk": {"right": 2, "of": 4, "percent": 50.0},
        "end of turn": {"right": 3, "of": 4, "percent": 75.0},
    }
    perplexity = math.exp((98 + 99) / 200)
    assert found["perplexity"] == {"cold": pytest.approx(perplexity), "warm": pytest.approx(perplexity)}
    # cold: no two requests share a prefix; warm: all do
    assert len(set(service.salts[:2])) == 2 and len(set(service.salts[2:])) == 1
    assert json.dumps(found) and "talk                2     4     50.0      -" in table(results)


def test_over_http_an_instance_is_asked_as_a_client_would_and_graded_the_same():
    tool = {"name": "f", "parameters": {"type": "object"}}
    messages = (
        Message(role="system", content="", tools=[tool]),
        USER,
        calls(("f", '{"x": 1}')),
        Message(role="tool", content="2"),
    )
    asked = Instance(family="tools", thinking=True, messages=messages, expected=calls(("f", '{"x": 2}')))
    body = body_of(asked, "m")
    assert body["tools"] == [{"type": "function", "function": tool}] and body["thinking"] == {"type": "enabled"}
    call = body["messages"][2]["tool_calls"][0]
    assert call["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert body["messages"][3] == {"role": "tool", "content": "2", "tool_call_id": call["id"]}
    shaped = Message(role="system", content="", response_format={"type": "object"})
    schema = body_of(Instance(family="json", thinking=False, messages=(shaped, USER), expected=says("{}")), "m")
    assert schema["response_format"]["json_schema"]["schema"] == {"type": "object"}

    way = OverHttp("http://127.0.0.1:1/v1", key="", model="m", concurrency=1)
    said = {
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"function": {"name": "f", "arguments": '{"x":2}'}}],
    }
    for reason, right in (("tool_calls", 1), ("length", 0)):
        way._post = lambda body, reason=reason: {"message": said, "finish_reason": reason}
        assert asyncio.run(evaluate(way, [asked])).right["tools"] == right
    with pytest.raises(BaleenError, match="gives no answer"):
        asyncio.run(evaluate(OverHttp("http://127.0.0.1:1/v1", key="", model="m", concurrency=1), [asked]))
