"""A rank process with a gRPC server: from its start to every way to end, as a router and a supervisor see it."""

import asyncio
import contextlib
import signal
import socket
import time

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from baleen.blocks import root_hash
from baleen.errors import EpochEnded, NotReady
from baleen.reports import FinishReason
from baleen.v1 import worker_pb2
from baleen.wire.errors import error_from_rpc
from loadtest.fault_proxy import FaultProxy
from tests.support.rank_client import rank_processes, submit
from tests.support.rank_grpc_client import RankGrpcClient, async_test
from tests.support.tiny_checkpoint import make_tiny
from workers.server import SERVICE

LISTEN = {"listen": "127.0.0.1:0", "role": "decode", "pool": "p", "group": "g-0"}
LONG = 100_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@contextlib.contextmanager
def ranks_of(checkpoint, directory, *, world_size=1, **sections):
    """Ranks that are ready, with their addresses."""
    sections = {"serve": LISTEN, "cache": {"num_blocks": 2000}, **sections}
    with rank_processes(checkpoint, directory, world_size=world_size, **sections) as ranks:
        yield ranks, [rank.expect("ready")["address"] for rank in ranks]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@async_test
async def test_a_starting_rank_answers_that_it_is_not_ready(checkpoint, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    # the second rank comes later, so that the first has to wait for it
    with rank_processes(checkpoint, tmp_path, serve={**LISTEN, "listen": address}, parallel={"world_size": 2}) as (
        rank,
    ):
        async with RankGrpcClient(address) as client:
            deadline = time.monotonic() + 60.0
            while True:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await client.info()
                if "is starting" in str(caught.value.details()):
                    break
                assert time.monotonic() < deadline and rank.process.poll() is None, rank.log
                await asyncio.sleep(0.05)
            error = error_from_rpc(caught.value)
            assert isinstance(error, NotReady) and "rank 0 is starting (" in str(error)
            assert await client.health() == "SERVING"
            assert await client.health(SERVICE) == "NOT_SERVING"


@async_test
async def test_a_ready_rank_says_who_it_is(checkpoint, tmp_path):
    with ranks_of(checkpoint, tmp_path) as ((rank,), (address,)):
        async with RankGrpcClient(address) as client:
            info = await client.info()
            assert info.address == address and not address.endswith(":0")
            assert (info.role, info.pool, info.group) == (2, "p", "g-0")
            assert info.pid == rank.process.pid
            assert (info.vocab_size, info.num_blocks, info.max_running) == (288, 2000, 64)
            assert info.transfer_address.startswith("127.0.0.1:") and info.transfer_address != address
            # what routers look for in the index must be what ranks announce
            fingerprint = bytes.fromhex(info.model_fingerprint)
            assert fingerprint.endswith(b"|float32|float32|hadamard=False")
            assert len(root_hash(fingerprint, b"salt")) == 16
            await client.await_health(SERVICE, "SERVING")


@async_test
async def test_a_rank_is_found_where_it_advertises_itself(checkpoint, tmp_path):
    listens, takes = (f"127.0.0.1:{free_port()}" for _ in range(2))
    async with FaultProxy("127.0.0.1:0", listens) as door, FaultProxy("127.0.0.1:0", takes) as dock:
        addresses = {"advertise": door.address, "transfer_listen": takes, "transfer_advertise": dock.address}
        serve = {**LISTEN, "listen": listens, **addresses}
        with rank_processes(checkpoint, tmp_path, serve=serve) as (rank,):
            ready = await asyncio.to_thread(rank.expect, "ready")
            assert (ready["address"], ready["transfer_address"]) == (door.address, dock.address)
            async with RankGrpcClient(door.address) as client:
                info = await client.info()
                assert (info.address, info.transfer_address) == (door.address, dock.address)
                reserve = worker_pb2.ReserveRequest(token_ids=range(2, 202), timeout_s=60.0)
                assert (await client.stub.Reserve(reserve, timeout=60.0)).transfer_address == dock.address
            host, _, port = dock.address.rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            await dock.until(lambda counts: counts.connections == 1, 60.0)
            writer.close()


@async_test
async def test_tokens_are_those_that_stdin_gives(checkpoint, tmp_path):
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 5, "logprobs": 2}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with rank_processes(checkpoint, tmp_path / "a") as (rank,):
        submit(rank, "r", [5, 6, 7], **options)
        rank.expect_finish("r")
        wanted = [o for event in rank.events for o in event.get("outputs", ())]
    with ranks_of(checkpoint, tmp_path / "b") as (_, (address,)):
        async with RankGrpcClient(address) as client, client.session() as session:
            await session.submit("r", [5, 6, 7], **options)
            tokens, _ = await session.finish("r")
    assert tokens == [token for output in wanted for token in output["token_ids"]]
    scored = [token for output in session.of("r") for token in output.tokens]
    assert [token.logprob for token in scored] == [value for output in wanted for value in output["logprobs"]]


@async_test
async def test_stdin_of_a_rank_that_listens_is_for_its_supervisor(checkpoint, tmp_path):
    with ranks_of(checkpoint, tmp_path) as ((rank,), (address,)):
        submit(rank, "a", [5])
        refused = rank.expect("refused")
        assert refused["request_id"] == "a" and "gRPC" in refused["message"]
        rank.send(type="health")
        assert rank.expect("health")["rank"] == 0
        async with RankGrpcClient(address) as client, client.session() as session:
            await session.submit("b", [5], max_tokens=20)
            await session.finish("b")
        rank.send(type="drain", reason="enough")
        assert rank.wait() == 0
        assert [event["type"] for event in rank.events] == ["ready", "refused", "health", "ended"]


@async_test
async def test_sigterm_finishes_the_running_and_says_goodbye(checkpoint, tmp_path):
    with ranks_of(checkpoint, tmp_path) as ((rank,), (address,)):
        async with RankGrpcClient(address) as client, client.session() as session:
            await session.submit("running", [5], max_tokens=200)
            await session.expect_output("running")
            rank.signal(signal.SIGTERM)
            tokens, finish = await session.finish("running")
            assert len(tokens) == 200 and finish is FinishReason.LENGTH
            assert (await session.expect("ended")).cause == "SIGTERM received"
            assert await session.next() is None
        assert rank.wait() == 0


@async_test
async def test_a_drain_call_ends_the_rank(checkpoint, tmp_path):
    with ranks_of(checkpoint, tmp_path) as ((rank,), (address,)):
        async with RankGrpcClient(address) as client, client.session() as session:
            await session.submit("endless", [5], max_tokens=LONG)
            await session.expect_output("endless")
            await client.stub.Drain(worker_pb2.DrainRequest(reason="roll", timeout_s=0.1), timeout=20.0)
            tokens, finish = await session.finish("endless")
            assert tokens and finish is FinishReason.FAILED and "draining" in session.of("endless")[-1].detail
            assert (await session.expect("ended")).cause == "roll"
        assert rank.wait() == 0


@async_test
async def test_a_killed_rank_breaks_its_streams_and_ends_those_of_its_group(checkpoint, tmp_path):
    with ranks_of(checkpoint, tmp_path, world_size=2) as ((first, second), addresses):
        clients = [RankGrpcClient(address) for address in addresses]
        async with clients[0], clients[1], clients[0].session() as dying, clients[1].session() as surviving:
            await surviving.submit("endless", [5], max_tokens=LONG)
            await surviving.expect_output("endless")
            first.signal(signal.SIGKILL)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while True:
                    await dying.next()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert isinstance(error_from_rpc(caught.value), NotReady)
            assert "rank 0" in (await surviving.expect("ended")).cause
        assert second.wait() == EpochEnded.exit_code


@async_test
async def test_many_sessions_share_a_rank(checkpoint, tmp_path):
    with ranks_of(checkpoint, tmp_path) as (_, (address,)):
        async with RankGrpcClient(address) as client, contextlib.AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(client.session()) for _ in range(6)]
            for number, session in enumerate(sessions):
                await session.submit(f"r{number}", [5 + number], max_tokens=15)
            tokens = [(await session.finish(f"r{number}"))[0] for number, session in enumerate(sessions)]
            assert {len(found) for found in tokens} == {15}


@async_test
async def test_reflection_describes_the_messages(checkpoint, tmp_path):
    with ranks_of(checkpoint, tmp_path) as (_, (address,)):
        async with RankGrpcClient(address) as client:
            stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
            call = stub.ServerReflectionInfo(iter([request]))
            (raw, *_) = (await call.read()).file_descriptor_response.file_descriptor_proto
            assert descriptor_pb2.FileDescriptorProto.FromString(raw).name == "baleen/v1/worker.proto"
            call.cancel()


def test_an_address_that_cannot_be_had_is_a_mistake_in_the_configuration(checkpoint, tmp_path):
    with rank_processes(checkpoint, tmp_path, serve={"listen": "203.0.113.1:1"}) as (rank,):
        assert rank.wait() == 2
        assert "203.0.113.1:1 cannot be listened on" in rank.log
        (ended,) = rank.events
        assert "203.0.113.1:1" in ended["cause"]
