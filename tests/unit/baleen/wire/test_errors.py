"""Errors across the wire: each has its code and reason, and comes back as itself."""

import grpc
import grpc.aio
import pytest

from baleen import errors
from baleen.errors import (
    BaleenError,
    CapacityError,
    DrainingError,
    EpochEnded,
    InvalidRequest,
    NotReady,
    QueueFull,
    UnknownName,
)
from baleen.tls_config import TlsConfig
from baleen.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from baleen.wire.channel import open_channel
from baleen.wire.errors import (
    TABLE,
    abort,
    error_from_failure,
    error_from_rpc,
    error_to_failure,
    refusal_to_failure,
    wire_error,
)
from baleen.wire.serving import listen, new_server
from tests.support.rank_grpc_client import async_test

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaleenError)]


def make(kind):
    return kind("why", field="size") if issubclass(kind, InvalidRequest) else kind("why")


class Failing(worker_pb2_grpc.WorkerServiceServicer):
    """A service whose GetInfo fails as told."""

    def __init__(self, error):
        self.error = error

    async def GetInfo(self, request, context):
        if isinstance(self.error, BaleenError):
            await abort(context, self.error)
        await context.abort(*self.error)


async def call(error):
    """What a client gets."""
    server, _ = new_server()
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(Failing(error), server)
    address = listen(server, "127.0.0.1:0", TlsConfig())
    await server.start()
    async with open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker_pb2_grpc.WorkerServiceStub(channel).GetInfo(worker_pb2.GetInfoRequest(), timeout=30.0)
    await server.stop(None)
    return caught.value


def test_every_error_has_a_line_of_its_own_in_the_table():
    assert set(CLASSES) == set(TABLE)
    assert len({wire.reason for wire in TABLE.values()}) == len(TABLE)


@pytest.mark.parametrize("kind", CLASSES)
@async_test
async def test_a_failed_call_says_which_error_it_was(kind):
    error = make(kind)
    got = await call(error)
    assert got.code() is wire_error(kind).code
    assert got.details() == str(error)
    back = error_from_rpc(got)
    assert type(back) is kind and str(back) == str(error)
    assert getattr(back, "field", None) == getattr(error, "field", None)
    assert back.retry_after_s == error.retry_after_s


@pytest.mark.parametrize("kind", CLASSES)
def test_a_failure_inside_a_stream_says_the_same(kind):
    error = make(kind)
    back = error_from_failure(common_pb2.Failure.FromString(error_to_failure(error).SerializeToString()))
    assert type(back) is kind and str(back) == str(error)
    assert getattr(back, "field", None) == getattr(error, "field", None)
    assert back.retry_after_s == error.retry_after_s


def test_codes_tell_what_may_be_tried_again():
    again = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert {kind for kind in CLASSES if wire_error(kind).code in again} == {
        DrainingError,
        EpochEnded,
        NotReady,
        QueueFull,
    }


@async_test
async def test_a_delay_before_the_next_try_survives():
    error = QueueFull("full", retry_after_s=2.25)
    got = await call(error)
    assert dict(got.trailing_metadata())["grpc-retry-pushback-ms"] == "2250"
    assert error_from_rpc(got).retry_after_s == 2.25
    assert error_from_failure(error_to_failure(error)).retry_after_s == 2.25


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, NotReady),
        (grpc.StatusCode.NOT_FOUND, UnknownName),
        (grpc.StatusCode.UNIMPLEMENTED, BaleenError),
    ],
)
@async_test
async def test_a_status_of_somebody_else_becomes_the_nearest_of_ours(code, kind):
    assert type(error_from_rpc(await call((code, "text")))) is kind
    broken = (code, "text", (("grpc-status-details-bin", b"\xff\xff"),))
    assert type(error_from_rpc(await call(broken))) is kind


def test_a_class_that_the_table_does_not_know_looks_like_its_base():
    class Special(CapacityError):
        pass

    assert wire_error(Special) == TABLE[CapacityError]
    assert error_to_failure(Special("x")).reason == "NEVER_FITS"


def test_a_reason_of_another_version_is_an_internal_error():
    assert type(error_from_failure(common_pb2.Failure(reason="NEWER", message="m"))) is BaleenError
    assert refusal_to_failure("SomethingElse", None, "m").reason == "INTERNAL"
