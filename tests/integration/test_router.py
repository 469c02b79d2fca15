"""One router and fake ranks over real gRPC on loopback: what clients ask and get."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from baleen.errors import InvalidRequest
from baleen.seeds import completion_seed
from baleen.text.tokenizer_files import tokenizer_files
from baleen.v1 import common_pb2, inference_pb2
from baleen.wire.channel import open_channel
from baleen.wire.errors import error_from_rpc
from tests.support.fake_rank import FakeRank, fake_tokens
from tests.support.router_client import (
    NO_SHORT_CUT,
    PROMPT,
    at_rest,
    eventually,
    request,
    router_with,
    run,
    status_of,
)

LENGTH = common_pb2.FINISH_REASON_LENGTH
STOP = common_pb2.FINISH_REASON_STOP


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    (directory / "tokenizer.json").write_text(tokenizer_files("bytes", max_length=4096).tokenizer_json)
    return directory


def test_prefill_and_decode_share_a_request():
    async def scenario():
        prefill, decode = FakeRank(role="prefill"), FakeRank(role="decode")
        async with router_with([prefill, decode], parameters=NO_SHORT_CUT) as client:
            answer = await client.generate(request(PROMPT))
            assert answer.tokens == {0: fake_tokens(PROMPT, 8)}
            assert answer.finish == {0: LENGTH}
            assert answer.usage[0].prompt_tokens == 200 and answer.usage[0].completion_tokens == 8
            (wanted,) = prefill.prefills
            assert list(wanted.token_ids) == PROMPT
            assert wanted.destination.ticket == decode.submits[0].ticket == "ticket-1"
            assert wanted.destination.address == decode.info.transfer_address
            assert not prefill.submits and not decode.prefills
            await at_rest(prefill, decode)
            story = await client.explain(answer.request_id)
            assert story.outcome.startswith("finished")
            assert [decision.role for decision in story.decisions] == [
                common_pb2.ROLE_PREFILL,
                common_pb2.ROLE_DECODE,
            ]
            events = [milestone.event for milestone in story.milestones]
            assert [event for event in events if " " not in event] == [
                "queued",
                "reserving",
                "prefilling",
                "decoding",
            ]
            assert set(story.decisions[0].alternatives) == {"least_loaded", "round_robin"}

    run(scenario())


def test_prefill_is_skipped_when_the_decode_rank_holds_the_prompt():
    async def scenario():
        prefill, decode = FakeRank(role="prefill"), FakeRank(role="decode")
        decode.num_held = 3
        async with router_with([prefill, decode], parameters=NO_SHORT_CUT) as client:
            answer = await client.generate(request(PROMPT))
            assert answer.tokens == {0: fake_tokens(PROMPT, 8)}
            assert prefill.prefills == []
            await at_rest(prefill, decode)

    run(scenario())


def test_only_the_missing_blocks_are_pushed():
    async def scenario():
        prefill, decode = FakeRank(role="prefill"), FakeRank(role="decode")
        decode.num_held = 2
        async with router_with([prefill, decode], parameters=NO_SHORT_CUT) as client:
            await client.generate(request(PROMPT))
            assert prefill.prefills[0].destination.first_block == 2

    run(scenario())


def test_a_mixed_rank_does_it_all():
    async def scenario():
        rank = FakeRank(role="mixed")
        async with router_with([rank]) as client:
            answer = await client.generate(request(PROMPT))
            assert answer.tokens == {0: fake_tokens(PROMPT, 8)}
            assert rank.reserves == [] and rank.prefills == []

    run(scenario())


def test_a_stop_string_over_several_tokens(text_model):
    async def scenario():
        rank = FakeRank()
        rank.token_delay_s = 0.005
        # ids of the bundled byte tokenizer are 3 + the byte
        tokens = fake_tokens(PROMPT, 200)
        letters = "".join(chr(token - 3) if 3 + 0x20 <= token < 3 + 0x7F else "\0" for token in tokens)
        place = next(at for at in range(20, 190) if "\0" not in letters[at : at + 2])
        stop = letters[place : place + 2]
        assert stop not in letters[:place]
        async with router_with([rank], model=text_model) as client:
            answer = await client.generate(request(PROMPT, max_tokens=1000, stop=[stop]))
            assert answer.tokens[0] == tokens[: place + 2]
            assert answer.finish == {0: STOP}
            assert not answer.text[0].endswith(stop[0])
            await at_rest(rank)
            assert len(rank.aborts) == 1
            assert list(rank.submits[0].sampling.stop) == []

    run(scenario())


def test_text_in_and_out(text_model):
    async def scenario():
        rank = FakeRank()
        async with router_with([rank], model=text_model) as client:
            answer = await client.generate(request("hello", max_tokens=4))
            prompt = [3 + byte for byte in b"hello"]
            assert list(rank.submits[0].token_ids) == prompt
            assert answer.tokens == {0: fake_tokens(prompt, 4)}
            reply = await client.stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=answer.tokens[0]))
            assert reply.text == answer.text[0]
            ids = await client.stub.Tokenize(inference_pb2.TokenizeRequest(text="hello"))
            assert list(ids.token_ids) == prompt
            quiet = request("hello", max_tokens=4)
            quiet.omit_text = True
            assert (await client.generate(quiet)).text == {0: ""}
            models = await client.stub.ListModels(inference_pb2.ListModelsRequest())
            assert [(model.id, model.max_context, model.has_tokenizer) for model in models.models] == [
                ("baleen", 4096, True)
            ]

    run(scenario())


def test_logprobs_and_completions():
    async def scenario():
        rank = FakeRank()
        async with router_with([rank]) as client:
            answer = await client.generate(request(PROMPT, max_tokens=3, n=2, logprobs=2))
            assert answer.tokens == {index: fake_tokens(PROMPT, 3, completion_seed(0, index)) for index in (0, 1)}
            for delta in answer.deltas:
                assert [len(entry.top) for entry in delta.logprobs] == [2] * len(delta.token_ids)
            assert len(rank.submits) == 1

    run(scenario())


def wrong(change):
    message = request(PROMPT)
    change(message)
    return message


@pytest.mark.parametrize(
    ("message", "code", "field"),
    [
        (wrong(lambda m: m.ClearField("prompt")), grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        (wrong(lambda m: m.token_ids.ClearField("ids")), grpc.StatusCode.INVALID_ARGUMENT, "token_ids"),
        (request("text"), grpc.StatusCode.INVALID_ARGUMENT, "text"),
        (request(PROMPT, stop=["x"]), grpc.StatusCode.INVALID_ARGUMENT, "stop"),
        (request(PROMPT, top_p=2.0), grpc.StatusCode.INVALID_ARGUMENT, "top_p"),
        (request([5000]), grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        (wrong(lambda m: setattr(m, "model", "other")), grpc.StatusCode.NOT_FOUND, None),
    ],
    ids=["no prompt", "empty", "text", "stop", "top_p", "vocabulary", "model"],
)
def test_a_wrong_request_names_its_field(message, code, field):
    async def scenario():
        rank = FakeRank()
        async with router_with([rank]) as client:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await client.generate(message)
            assert failed.value.code() is code
            error = error_from_rpc(failed.value)
            assert (error.field if isinstance(error, InvalidRequest) else None) == field
            await at_rest(rank)

    run(scenario())


def test_a_request_that_would_be_late_is_refused_with_a_time():
    async def scenario():
        rank = FakeRank()
        rank.prefill_tokens_per_s = 10.0
        async with router_with([rank], slo_first_token_s=1.0) as client:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await client.generate(request(PROMPT))
            assert status_of(failed.value) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QueueFull")
            assert error_from_rpc(failed.value).retry_after_s > 0
            assert rank.submits == []

    run(scenario())


def test_one_id_runs_once():
    async def scenario():
        rank = FakeRank()
        rank.pause()
        async with router_with([rank]) as client:
            task = asyncio.create_task(client.generate(request(PROMPT, request_id="same")))
            await eventually(lambda: bool(rank.submits))
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await client.generate(request(PROMPT, request_id="same"))
            assert status_of(failed.value) == (grpc.StatusCode.ALREADY_EXISTS, "AlreadyRunning")
            rank.resume()
            await task
            assert (await client.generate(request(PROMPT, request_id="same"))).tokens == {0: fake_tokens(PROMPT, 8)}

    run(scenario())


def test_health_and_reflection():
    async def scenario():
        async with router_with([FakeRank()]) as client:
            channel = open_channel(client.address)
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "baleen.v1.InferenceService"):
                reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert reply.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            wanted = reflection_pb2.ServerReflectionRequest(list_services="")
            async for reply in reflection.ServerReflectionInfo(iter([wanted])):
                names = [service.name for service in reply.list_services_response.service]
            assert "baleen.v1.InferenceService" in names
            await channel.close(None)

    run(scenario())


def test_a_leaving_router_finishes_what_runs():
    async def scenario():
        rank = FakeRank()
        rank.token_delay_s = 0.01
        async with router_with([rank]) as client:
            task = asyncio.create_task(client.generate(request(PROMPT, max_tokens=30)))
            await eventually(lambda: rank.num_tokens >= 2)
            await client.router.stop(20.0)
            assert (await task).tokens == {0: fake_tokens(PROMPT, 30)}

    run(scenario())
