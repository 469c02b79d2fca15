"""Completions that a client continues from tokens that it has, at any router: exactly the rest, and clear refusals."""

import grpc
import pytest

from baleen.seeds import completion_seed
from baleen.text.tokenizer_files import tokenizer_files
from baleen.v1 import common_pb2, inference_pb2
from router.proxy import ProxyLimits
from tests.support.fake_rank import FakeRank, fake_tokens
from tests.support.router_client import PROMPT, at_rest, request, router_with, run, status_of

LENGTH = common_pb2.FINISH_REASON_LENGTH
STOP = common_pb2.FINISH_REASON_STOP


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    (directory / "tokenizer.json").write_text(tokenizer_files("bytes", max_length=4096).tokenizer_json)
    return directory


def rest_of(message, delivered, index=0, **changes):
    """The request for what comes after `delivered` of completion `index`."""
    rest = inference_pb2.GenerateRequest()
    rest.CopyFrom(message)
    rest.token_ids.ids.extend(delivered)
    rest.num_delivered = len(delivered)
    rest.sampling.n = 1
    rest.sampling.seed = completion_seed(message.sampling.seed, index)
    for name, value in changes.items():
        setattr(rest, name, value)
    return rest


def text_after(answer, index, count):
    """Text of a completion that came with tokens after the first `count`. Every delta has one token."""
    text, seen = "", 0
    for delta in answer.deltas:
        if delta.index == index:
            seen += len(delta.token_ids)
            text += delta.text if seen > count else ""
    return text


def test_the_rest_is_what_would_have_come(model):
    async def scenario():
        rank = FakeRank()
        rank.token_delay_s = 0.001
        async with router_with([rank], model=model) as client:
            message = request(PROMPT, max_tokens=40, n=2, temperature=1.0, seed=7, logprobs=1, prompt_logprobs=1)
            whole = await client.generate(message)
            for index, count in [(0, 1), (0, 17), (1, 0), (1, 20), (1, 39)]:
                delivered = whole.tokens[index][:count]
                rest = await client.generate(rest_of(message, delivered, index))
                assert rest.tokens[0] == whole.tokens[index][count:]
                assert rest.finish == {0: LENGTH}
                assert bool(rest.prompt.logprobs) == (not count), "the client has those of the prompt"
                assert rest.usage[0].prompt_tokens == len(PROMPT)
                assert rest.usage[0].completion_tokens == 40
                assert rest.deltas[-1].fingerprint == "fa4e"
            await at_rest(rank)

    run(scenario())


@pytest.mark.parametrize("max_tokens", [60, 25])
def test_text_and_stop_strings_go_on_where_they_were(model, max_tokens):
    async def scenario():
        rank = FakeRank()
        rank.token_delay_s = 0.002
        async with router_with([rank], model=model) as client:
            plain = await client.generate(request(PROMPT, max_tokens=60))
            stop = plain.text[0][30:36]
            message = request(PROMPT, max_tokens=max_tokens, stop=[stop, stop[:3] + "\x00"], min_tokens=5)
            whole = await client.generate(message)
            assert whole.finish[0] == (STOP if max_tokens == 60 else LENGTH)
            for count in range(1, len(whole.tokens[0]), 3):
                rest = await client.generate(rest_of(message, whole.tokens[0][:count]))
                assert rest.tokens == {0: whole.tokens[0][count:]}
                assert rest.finish == whole.finish
                assert whole.text[0].endswith(rest.text[0])
                assert rest.text[0] == text_after(whole, 0, count), count
            if max_tokens == 60:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await client.generate(rest_of(message, whole.tokens[0]))
                assert status_of(refused.value) == (grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequest")
                assert repr(stop) in refused.value.details()

    run(scenario())


def test_what_cannot_be_continued_is_refused_by_name(model):
    async def scenario():
        async with router_with([FakeRank()], model=model) as client:
            message = request(PROMPT, max_tokens=8)
            cases = [
                ("max_tokens is 8", rest_of(message, [5] * 8)),
                ("at least one of them is the prompt", rest_of(request([], max_tokens=300), [5] * 3)),
                ("the prompt is text", rest_of(message, [5], text="hello")),
            ]
            several = rest_of(message, [5])
            several.sampling.n = 2
            unseeded = rest_of(message, [5])
            unseeded.sampling.temperature = 1.0
            unseeded.sampling.ClearField("seed")
            cases += [("n is 2", several), ("seed is absent", unseeded)]
            for words, wrong in cases:
                with pytest.raises(grpc.aio.AioRpcError, match=words) as refused:
                    await client.generate(wrong)
                assert status_of(refused.value) == (grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequest")
                assert refused.value.details().startswith(f"num_delivered is {wrong.num_delivered}, but ")

    run(scenario())


def test_whoever_has_tokens_is_not_refused_for_coming_late():
    async def scenario():
        rank = FakeRank()
        rank.prefill_tokens_per_s = 10.0
        async with router_with([rank], slo_first_token_s=1.0) as client:
            message = request(PROMPT, max_tokens=8)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.generate(message)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            tokens = fake_tokens(PROMPT, 8)
            assert (await client.generate(rest_of(message, tokens[:1]))).tokens == {0: tokens[1:]}

    run(scenario())


def test_only_the_model_that_began_continues():
    async def scenario():
        old, new = FakeRank(group="old"), FakeRank(group="new")
        new.info.model_fingerprint = "fa4f"
        limits = ProxyLimits(rank_wait_s=0.2)
        async with router_with([old, new], limits=limits) as client:
            message = request(PROMPT, max_tokens=8)
            for _ in range(3):
                rest = await client.generate(rest_of(message, [5], fingerprint="fa4f"))
                assert rest.deltas[-1].fingerprint == "fa4f"
            assert not old.submits
            with pytest.raises(grpc.aio.AioRpcError, match="no rank serves the model") as refused:
                await client.generate(rest_of(message, [5], fingerprint="fa50"))
            assert status_of(refused.value) == (grpc.StatusCode.UNAVAILABLE, "NotReady")

    run(scenario())
