"""The gRPC server of a rank, with the test as its step loop."""

import asyncio

import grpc
import grpc.aio
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from baleen.errors import ConfigError, DrainingError, InvalidRequest, QueueFull
from baleen.ids import RequestId
from baleen.reports import FinishReason
from baleen.telemetry import Log
from baleen.v1 import worker_pb2
from baleen.wire.channel import MAX_MESSAGE_BYTES
from baleen.wire.errors import error_from_failure, error_from_rpc
from tests.support.rank_grpc_client import RankGrpcClient, async_test
from tests.support.served_rank import WAIT_S, load, output, serving
from workers import server_thread
from workers.engine.inbox import Inbox
from workers.engine.messages import (
    Abort,
    Destination,
    Drain,
    Ended,
    HealthReport,
    Prefill,
    PrefillDone,
    Refused,
    StepReport,
    Submit,
)
from workers.server import SERVICE
from workers.server_thread import RankServer


@async_test
async def test_commands_become_what_the_step_loop_obeys():
    async with serving() as (rank, client), client.session(traceparent="00-of-the-session") as session:
        await session.submit(
            "a",
            [5, 6, 7],
            seed=9,
            remaining_s=2.5,
            num_delivered=1,
            ticket="t",
            cache_salt="salt",
            stop=("end",),
        )
        (submit,) = await rank.commands(1)
        assert isinstance(submit, Submit)
        assert (submit.request_id, submit.token_ids, submit.sampling.seed) == ("a", (5, 6, 7), 9)
        assert (submit.deadline, submit.num_delivered, submit.ticket) == (1002.5, 1, "t")
        assert (submit.cache_salt, submit.traceparent, submit.sampling.stop) == ("salt", "00-of-the-session", ("end",))
        await session.send(
            prefill=worker_pb2.Prefill(
                request_id="b",
                token_ids=[8] * 64,
                cache_salt="salt",
                priority=-2,
                remaining_s=1.0,
                destination=worker_pb2.Destination(address="h:1", ticket="u", first_block=3),
                traceparent="00-of-the-request",
            )
        )
        assert await rank.commands(1) == [
            Prefill(
                request_id=RequestId("b"),
                token_ids=(8,) * 64,
                cache_salt="salt",
                priority=-2,
                deadline=1001.0,
                destination=Destination("h:1", "u", 3),
                traceparent="00-of-the-request",
            )
        ]
        await session.abort("a", 0)
        await session.abort("b")
        assert await rank.commands(2) == [Abort(RequestId("a"), 0, 1000.0), Abort(RequestId("b"), None, 1000.0)]


@async_test
async def test_events_reach_the_session_that_they_are_for():
    async with serving() as (rank, client), client.session() as first, client.session() as second:
        await first.submit("a", [5])
        await second.submit("b", [5])
        await second.send(prefill=worker_pb2.Prefill(request_id="c", token_ids=[5] * 64))
        await rank.commands(3)
        rank.server.emit(StepReport(1, (output("a"), output("b", finish=FinishReason.STOP)), load()))
        rank.server.emit(PrefillDone(RequestId("c"), 1, 0, 1, "cut"))
        rank.server.emit(Refused(RequestId("a"), "QueueFull", None, "full"))
        assert [o.request_id for o in (await first.expect("step_report")).outputs] == ["a"]
        refused = await first.expect("refused")
        error = error_from_failure(refused.failure)
        assert (refused.request_id, type(error), error.retry_after_s) == ("a", QueueFull, 1.0)
        assert [o.request_id for o in (await second.expect("step_report")).outputs] == ["b"]
        done = await second.expect("prefill_done")
        assert (done.request_id, done.num_blocks, done.num_cached, done.failure) == ("c", 1, 1, "cut")
        assert first.load == load()


@async_test
async def test_another_session_s_request_cannot_be_aborted_or_taken():
    async with serving() as (rank, client), client.session() as owner, client.session() as other:
        await owner.submit("a", [5])
        await rank.commands(1)
        await other.abort("a")
        await other.submit("a", [5])
        assert "'a'" in str(await other.refusal())
        await owner.abort("a")
        assert await rank.commands(1) == [Abort(RequestId("a"), None, 1000.0)]


@async_test
async def test_a_dropped_stream_aborts_what_it_started():
    async with serving() as (rank, client):
        async with client.session() as session:
            await session.submit("a", [5])
            await session.submit("b", [5])
            await rank.commands(2)
        assert set(await rank.commands(2)) == {Abort(RequestId("a")), Abort(RequestId("b"))}


@async_test
async def test_a_lost_connection_aborts_what_came_over_it():
    async with serving() as (rank, client):
        async with RankGrpcClient(rank.address) as doomed:
            context = doomed.session()
            session = await context.__aenter__()
            await session.submit("a", [5])
            await rank.commands(1)
            await doomed.channel.close(None)
            assert await rank.commands(1) == [Abort(RequestId("a"))]
        async with client.session() as session:
            rank.server.emit(StepReport(1, (output("a", finish=FinishReason.CANCELLED),), load()))
            await session.expect("step_report")
            await session.submit("a", [5])
            assert len(await rank.commands(1)) == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "x" * 257}, "request_id"),
        ({"request_id": "a", "remaining_s": float("nan")}, "remaining_s"),
        ({"request_id": "a", "remaining_s": float("inf")}, "remaining_s"),
    ],
)
@pytest.mark.parametrize("kind", ["submit", "prefill"])
@async_test
async def test_a_wrong_field_is_refused_before_the_step_loop(kind, fields, field):
    async with serving() as (rank, client), client.session() as session:
        message = {"submit": worker_pb2.Submit, "prefill": worker_pb2.Prefill}[kind](token_ids=[5], **fields)
        await session.send(**{kind: message})
        error = await session.refusal()
        assert isinstance(error, InvalidRequest) and error.field == field
        assert rank.inbox.take() == ()


@async_test
async def test_bytes_that_are_no_message_end_their_own_stream_only():
    async with serving() as (rank, client), client.session() as session:
        await session.submit("a", [5])
        await rank.commands(1)
        raw = client.channel.stream_stream(f"/{SERVICE}/Session")
        call = raw(iter([b"\xff\xff\xff"]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        rank.server.emit(StepReport(1, (output("a"),), load()))
        await session.expect_output("a")


@async_test
async def test_a_long_prompt_passes_whole():
    async with serving() as (rank, client), client.session() as session:
        prompt = [129_279] * 2_000_000
        await session.submit("a", prompt)
        (submit,) = await rank.commands(1)
        assert len(submit.token_ids) == 2_000_000 and set(submit.token_ids) == {129_279}
        assert MAX_MESSAGE_BYTES == 64 << 20


@async_test
async def test_health_is_answered_without_the_step_loop():
    async with serving() as (rank, client), client.session() as session:
        rank.phase, rank.seconds_in_phase = "compute", 99.0
        await session.send(health_query=worker_pb2.HealthQuery())
        report = await session.expect("health_report")
        assert (report.rank, report.step, report.phase, report.seconds_in_phase) == (1, 41, "compute", 99.0)
        assert not report.HasField("ended")
        assert rank.inbox.take() == ()


@async_test
async def test_a_rank_that_is_not_ready_says_so():
    async with serving(ready=False) as (_, client):
        for call in (client.info, client.session().__aenter__):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "rank 1 is starting (idle since 0.5 s)" in str(error_from_rpc(caught.value))
        await client.await_health("", "SERVING")
        await client.await_health(SERVICE, "NOT_SERVING")


@async_test
async def test_standard_health_follows_the_step_loop(monkeypatch):
    monkeypatch.setattr(server_thread, "HEALTH_INTERVAL_S", 0.01)
    async with serving() as (rank, client):
        await client.await_health(SERVICE, "SERVING")
        rank.phase, rank.seconds_in_phase = "exchange", 31.0
        await client.await_health("", "NOT_SERVING")
        await client.await_health(SERVICE, "NOT_SERVING")
        rank.seconds_in_phase = 0.0
        await client.await_health(SERVICE, "SERVING")
        rank.server.emit(StepReport(1, (), load(draining=True)))
        await client.await_health(SERVICE, "NOT_SERVING")
        assert await client.health() == "SERVING"


@async_test
async def test_drain_is_passed_on_and_answered():
    async with serving() as (rank, client), client.session() as session:
        await session.submit("a", [5], n=3)
        await rank.commands(1)
        reply = await client.stub.Drain(worker_pb2.DrainRequest(reason="update", timeout_s=1.5), timeout=WAIT_S)
        assert reply.num_requests == 1
        await asyncio.to_thread(rank.drained.wait, WAIT_S)
        assert rank.drains == [Drain("update", 1.5)]


@async_test
async def test_requests_after_the_step_loop_has_ended_are_refused():
    async with serving() as (rank, client), client.session() as session:
        rank.inbox.close()
        await session.submit("a", [5])
        assert isinstance(await session.refusal(), DrainingError)
        await session.submit("a", [5])
        assert isinstance(await session.refusal(), DrainingError)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.Reserve(worker_pb2.ReserveRequest(token_ids=[5] * 64, timeout_s=3.0), timeout=WAIT_S)
        assert isinstance(error_from_rpc(caught.value), DrainingError)


@async_test
async def test_the_end_is_told_to_everyone_and_closes_every_stream():
    async with serving() as (rank, client), client.session() as first, client.session() as second:
        await first.submit("a", [5])
        await rank.commands(1)
        rank.server.emit(StepReport(1, (output("a"),), load()))
        rank.server.emit(Ended("epoch ended: rank 0 was lost"))
        for session in (first, second):
            assert (await session.expect("ended")).cause == "epoch ended: rank 0 was lost"
            assert await session.next() is None
        assert [o.request_id for o in first.outputs] == ["a"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.info()
        assert "rank 0 was lost" in str(error_from_rpc(caught.value))


@async_test
async def test_closing_writes_what_is_queued_first():
    async with serving() as (rank, client), client.session() as session:
        await session.submit("a", [5])
        await rank.commands(1)
        rank.server.emit(StepReport(1, (output("a", finish=FinishReason.STOP),), load()))
        rank.server.emit(Ended("drained"))
        rank.server.close(WAIT_S)
        assert (await session.expect("ended")).cause == "drained"
        assert await session.finish("a") == ([7], FinishReason.STOP)
        # nobody listens any more: neither fails nor waits
        rank.server.emit(StepReport(2, (), load()))
        rank.server.close(WAIT_S)


@async_test
async def test_reflection_names_the_services():
    async with serving() as (_, client):
        stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names
        call.cancel()


@async_test
async def test_a_port_in_use_is_a_mistake_in_the_configuration():
    async with serving() as (rank, _):
        second = RankServer(
            rank.address,
            Inbox(),
            health=lambda: HealthReport(0, 0, "", 0.0, None),
            drain=lambda drain: None,
            clock=rank.clock,
            log=Log("off"),
            stall_s=1.0,
        )
        with pytest.raises(ConfigError, match=rank.address):
            await asyncio.to_thread(second.start)
