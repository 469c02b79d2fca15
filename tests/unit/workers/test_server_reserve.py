"""Reservations over gRPC, with the test as the step loop: answered, refused, and given back if nobody waits."""

import asyncio

import grpc
import grpc.aio
import pytest

from baleen.errors import DrainingError, InvalidRequest, QueueFull
from baleen.v1 import worker_pb2
from baleen.wire.errors import error_from_rpc
from tests.support.rank_grpc_client import async_test
from tests.support.served_rank import WAIT_S, serving
from workers.engine.messages import (
    ReleaseReservation,
    Reservation,
    Reserve,
)


@async_test
async def test_a_reservation_is_the_step_loop_s_answer():
    async with serving() as (rank, client):
        request = worker_pb2.ReserveRequest(token_ids=[5] * 128, cache_salt="s", timeout_s=3.0)
        call = asyncio.ensure_future(client.stub.Reserve(request, timeout=WAIT_S))
        (reserve,) = await rank.commands(1)
        assert (reserve.token_ids, reserve.cache_salt, reserve.timeout_s) == ((5,) * 128, "s", 3.0)
        reserve.reply.set_result(Reservation("t", "h:1", 1, 1, 2.5))
        reply = await call
        assert (reply.ticket, reply.transfer_address, reply.num_held_blocks) == ("t", "h:1", 1)
        assert (reply.num_reserved_blocks, reply.expires_in_s) == (1, 2.5)
        await client.stub.ReleaseReservation(worker_pb2.ReleaseReservationRequest(ticket="t"), timeout=WAIT_S)
        assert await rank.commands(1) == [ReleaseReservation("t")]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DrainingError("leaving"), grpc.StatusCode.UNAVAILABLE),
        (QueueFull("no blocks"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
@async_test
async def test_a_refused_reservation_has_the_status_of_its_error(error, code):
    async with serving() as (rank, client):
        call = asyncio.ensure_future(
            client.stub.Reserve(worker_pb2.ReserveRequest(token_ids=[5] * 64, timeout_s=3.0), timeout=WAIT_S)
        )
        (reserve,) = await rank.commands(1)
        reserve.reply.set_exception(error)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is code
        assert type(error_from_rpc(caught.value)) is type(error)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
@async_test
async def test_a_reservation_needs_a_time(timeout_s):
    async with serving() as (rank, client):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.Reserve(
                worker_pb2.ReserveRequest(token_ids=[5] * 64, timeout_s=timeout_s), timeout=WAIT_S
            )
        error = error_from_rpc(caught.value)
        assert isinstance(error, InvalidRequest) and error.field == "timeout_s"
        assert rank.inbox.take() == ()


@pytest.mark.parametrize("how", ["cancel", "timeout"])
@async_test
async def test_a_reservation_that_nobody_waits_for_is_given_back(how):
    async with serving() as (rank, client):
        request = worker_pb2.ReserveRequest(token_ids=[5] * 64, timeout_s=0.2 if how == "timeout" else 60.0)
        call = client.stub.Reserve(request, timeout=WAIT_S)
        waiting = asyncio.ensure_future(call)
        (reserve,) = await rank.commands(1)
        assert isinstance(reserve, Reserve)
        if how == "cancel":
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            # the server learns of it before it answers this
            await client.info()
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await waiting
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        reserve.reply.set_result(Reservation("late", "h:1", 0, 1, 2.5))
        assert await rank.commands(1) == [ReleaseReservation("late")]
