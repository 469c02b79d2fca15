"""Fetches over gRPC, with the test as the step loop: answered, refused, and withdrawn if nobody waits."""

import asyncio

import grpc
import grpc.aio
import pytest

from baleen.errors import InvalidRequest, QueueFull
from baleen.v1 import worker_pb2
from baleen.wire.errors import error_from_rpc
from tests.support.rank_grpc_client import async_test
from tests.support.served_rank import WAIT_S, serving
from workers.engine.messages import Destination, Fetch, FetchDone, WithdrawFetch


def message(**changes):
    to = worker_pb2.Destination(address="h:1", ticket="t", first_block=2)
    fields = {"token_ids": [5] * 200, "cache_salt": "s", "destination": to, "timeout_s": 3.0, **changes}
    return worker_pb2.FetchRequest(**fields)


@async_test
async def test_a_fetch_is_the_step_loop_s_answer():
    async with serving() as (rank, client):
        call = asyncio.ensure_future(client.stub.Fetch(message(traceparent="00-a"), timeout=WAIT_S))
        (fetch,) = await rank.commands(1)
        assert isinstance(fetch, Fetch)
        assert (fetch.token_ids, fetch.cache_salt, fetch.destination) == ((5,) * 200, "s", Destination("h:1", "t", 2))
        assert (fetch.deadline, fetch.traceparent) == (rank.clock.now() + 3.0, "00-a")
        fetch.reply.set_result(FetchDone(7, 4, "why"))
        reply = await call
        assert (reply.num_blocks, reply.num_pushed, reply.failure) == (7, 4, "why")


@async_test
async def test_a_refused_fetch_has_the_status_of_its_error():
    async with serving() as (rank, client):
        call = asyncio.ensure_future(client.stub.Fetch(message(), timeout=WAIT_S))
        (fetch,) = await rank.commands(1)
        fetch.reply.set_exception(QueueFull("too many"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert type(error_from_rpc(caught.value)) is QueueFull


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
@async_test
async def test_a_fetch_needs_a_time(timeout_s):
    async with serving() as (rank, client):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.Fetch(message(timeout_s=timeout_s), timeout=WAIT_S)
        error = error_from_rpc(caught.value)
        assert isinstance(error, InvalidRequest) and error.field == "timeout_s"
        assert rank.inbox.take() == ()


@pytest.mark.parametrize("timeout_s", [0.3, None], ids=["timeout", "cancel"])
@async_test
async def test_a_fetch_that_nobody_waits_for_is_withdrawn(timeout_s):
    async with serving() as (rank, client):
        call = client.stub.Fetch(message(), timeout=timeout_s)
        waiting = asyncio.ensure_future(call)
        (fetch,) = await rank.commands(1)
        if timeout_s is None:
            call.cancel()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await waiting
        assert await rank.commands(1) == [WithdrawFetch(fetch)]


@async_test
async def test_a_prefill_may_have_a_ticket():
    async with serving() as (rank, client), client.session() as session:
        await session.send(prefill=worker_pb2.Prefill(request_id="a", token_ids=[5], ticket="t"))
        await session.send(prefill=worker_pb2.Prefill(request_id="b", token_ids=[5]))
        assert [command.ticket for command in await rank.commands(2)] == ["t", None]
