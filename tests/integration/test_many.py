"""Many requests on one stream of a real router: the same answers and failures as calls of their own."""

import asyncio
import contextlib

import grpc
import pytest

from baleen.clock import SystemClock
from baleen.errors import BaleenError, InvalidRequest, NotReady
from baleen.telemetry import Log
from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from baleen.wire.channel import SERVER_OPTIONS, open_channel
from baleen.wire.errors import TABLE, error_from_failure, error_from_rpc
from router.gateway.line import Line
from router.record import Records
from router.service import InferenceService
from tests.support.fake_rank import FakeRank, fake_tokens
from tests.support.router_client import PROMPT, Answer, at_rest, eventually, request, router_with, run

LENGTH = common_pb2.FINISH_REASON_LENGTH


@contextlib.asynccontextmanager
async def line_to(address):
    """A line of a gateway, and what starts a request on it."""
    channel = open_channel(address)
    line = Line(inference_pb2_grpc.InferenceServiceStub(channel))

    def start(message, *, deadline_s=60.0, tenant=""):
        return line.start(message, tenant=tenant, traceparent="", deadline_s=deadline_s)

    try:
        yield start
    finally:
        await line.close()
        await channel.close(None)


async def answer_of(strand):
    """All of an answer, as a call of its own gives it."""
    answer = Answer()
    await strand.admitted()
    answer.request_id = "admitted"
    while deltas := await strand.deltas():
        for delta in deltas:
            answer.take(inference_pb2.GenerateResponse(delta=delta))
    return answer


def test_answers_are_those_of_calls_of_their_own():
    async def scenario():
        async with router_with([FakeRank(), FakeRank()]) as client, line_to(client.address) as start:
            wanted = [
                request([*PROMPT, number], max_tokens=5 + number, n=1 + number % 3, logprobs=number % 2)
                for number in range(12)
            ]
            alone = [await client.generate(message) for message in wanted]
            together = await asyncio.gather(*(answer_of(start(message)) for message in wanted))
            for one, other in zip(alone, together, strict=True):
                assert (one.tokens, one.finish, one.usage) == (other.tokens, other.finish, other.usage)

    run(scenario())


class FailingProxy:
    """Ends each request with the error that its tenant names."""

    def __init__(self, errors):
        self._errors = errors

    async def run(self, job, on_admitted, emit):
        raise self._errors[int(job.tenant)]


def facts(error):
    """Everything that a client can see of it."""
    return type(error), str(error), error.retry_after_s, getattr(error, "field", None)


def test_every_failure_has_the_facts_of_the_status_of_a_call():
    kinds = [kind for kind in TABLE if not issubclass(kind, InvalidRequest)]
    errors = [kind(f"what {kind.__name__} says, größe") for kind in kinds]
    for kind in TABLE:
        if issubclass(kind, InvalidRequest):
            errors += [kind("wrong", field="sampling.top_p")]
    for seconds in (0.25, 30.0):
        late = NotReady("later")
        late.retry_after_s = seconds
        errors.append(late)

    async def scenario():
        proxy = FailingProxy(errors)
        service = InferenceService(
            proxy,
            None,
            None,
            Records(),
            None,
            model_name="m",
            max_deadline_s=60.0,
            clock=SystemClock(),
            log=Log("off"),
        )
        server = grpc.aio.server(options=SERVER_OPTIONS)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        async with open_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            starts = [
                inference_pb2.Start(number=number, request=request(PROMPT), tenant=str(number))
                for number in range(len(errors))
            ]
            call = stub.GenerateMany(iter([inference_pb2.GenerateManyRequest(start=start) for start in starts]))
            failures = {event.number: event.failure async for message in call for event in message.events}
            for number, error in enumerate(errors):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    async for _ in stub.Generate(request(PROMPT), metadata=(("x-tenant", str(number)),)):
                        pass
                alone, together = error_from_rpc(raised.value), error_from_failure(failures[number])
                assert facts(alone) == facts(together) == facts(error)
                assert failures[number].code == raised.value.code().value[0]
        await server.stop(0.0)

    run(scenario())


def test_wrong_requests_and_wrong_messages():
    async def scenario():
        async with router_with([FakeRank()]) as client, line_to(client.address) as start:
            with pytest.raises(InvalidRequest) as wrong:
                await start(request(PROMPT, top_p=2.0)).admitted()
            assert wrong.value.field == "top_p"
            kept, twice = start(request(PROMPT, request_id="one")), start(request(PROMPT, request_id="one"))
            with pytest.raises(BaleenError, match="running already"):
                await twice.admitted()
            assert (await answer_of(kept)).finish == {0: LENGTH}
            call = client.stub.GenerateMany(iter([inference_pb2.GenerateManyRequest()]))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario())


@pytest.mark.parametrize("way", ["cancel", "gone", "deadline"])
def test_what_ends_at_the_client_ends_at_the_ranks(way):
    async def scenario():
        rank = FakeRank()
        rank.token_delay_s = 0.01
        async with router_with([rank]) as client:
            async with line_to(client.address) as start:
                deadline_s = 0.5 if way == "deadline" else 60.0
                strands = [start(request(PROMPT, max_tokens=4000), deadline_s=deadline_s) for _ in range(3)]
                assert await strands[0].deltas()
                if way == "cancel":
                    for strand in strands:
                        strand.close()
                elif way == "deadline":
                    with pytest.raises(BaleenError, match="the deadline passed"):
                        while await strands[0].deltas():
                            pass
                if way != "gone":
                    await eventually(lambda: client.router.num_active == 0)
            # where nothing else ended them, the end of the line did
            await eventually(lambda: client.router.num_active == 0)
            await at_rest(rank)

    run(scenario())


def test_a_leaving_router_finishes_what_runs_and_the_stream_ends():
    async def scenario():
        rank = FakeRank()
        async with router_with([rank]) as client, line_to(client.address) as start:
            rank.pause()
            running = start(request(PROMPT, max_tokens=20))
            await running.admitted()
            leaving = asyncio.create_task(client.router.stop(20.0))
            with pytest.raises(BaleenError):
                while True:
                    late = start(request(PROMPT))
                    await late.admitted()
                    late.close()
            rank.resume()
            assert (await answer_of(running)).tokens == {0: fake_tokens(PROMPT, 20)}
            await leaving

    run(scenario())


def test_a_line_is_up_again_when_its_router_is():
    async def scenario():
        ranks = [FakeRank()]
        async with router_with(ranks) as first, line_to(first.address) as start:
            ranks[0].pause()
            lost = [start(request(PROMPT)) for _ in range(3)]
            await lost[0].admitted()
            await first.router.stop(0.0)
            for strand in lost:
                with pytest.raises(BaleenError):
                    await answer_of(strand)
            with pytest.raises(NotReady):
                await start(request(PROMPT)).admitted()
            ranks[0].resume()
            async with router_with([FakeRank()], listen=first.address):
                async with asyncio.timeout(30):
                    while True:
                        try:
                            answer = await answer_of(start(request(PROMPT)))
                            break
                        except NotReady:
                            await asyncio.sleep(0.02)
                assert answer.tokens == {0: fake_tokens(PROMPT, 8)}

    run(scenario())
