"""What a router may rely on in the worker service: the same of a real rank process and of FakeRank."""

from contextlib import asynccontextmanager

import grpc
import pytest

from baleen.errors import AlreadyRunning, InvalidRequest
from baleen.reports import FinishReason
from baleen.seeds import completion_seed
from baleen.v1 import worker_pb2
from tests.support.fake_rank import FakeRank
from tests.support.rank_client import rank_processes
from tests.support.rank_grpc_client import RankGrpcClient, async_test
from tests.support.tiny_checkpoint import make_tiny

SERVICE = "baleen.v1.WorkerService"
LONG = 50_000


class Processes:
    """Real ranks: one for all tests that leave it alive."""

    def __init__(self, checkpoint, directory):
        self._checkpoint = checkpoint
        self._directory = directory
        self._started = None

    @asynccontextmanager
    async def rank(self, *, alone=False):
        if alone:
            directory = self._directory / "alone"
            directory.mkdir()
            with self._processes(directory) as (client,):
                yield client.expect("ready")["address"]
        else:
            if self._started is None:
                self._started = self._processes(self._directory)
                (self._client,) = self._started.__enter__()
                self._address = self._client.expect("ready")["address"]
            yield self._address

    def _processes(self, directory):
        sections = {"cache": {"num_blocks": 2000}, "serve": {"listen": "127.0.0.1:0", "pool": "p", "group": "g"}}
        return rank_processes(self._checkpoint, directory, **sections)

    def close(self):
        if self._started is not None:
            self._started.__exit__(None, None, None)


class Fakes:
    """FakeRanks, one for each test."""

    @asynccontextmanager
    async def rank(self, *, alone=False):
        async with FakeRank(pool="p", group="g") as rank:
            rank.token_delay_s = 0.001
            rank.info.max_context = 131072
            yield rank.info.address

    def close(self):
        pass


@pytest.fixture(scope="module", params=["fake", "process"])
def ranks(request, tmp_path_factory):
    if request.param == "fake":
        kind = Fakes()
    else:
        directory = tmp_path_factory.mktemp("ranks")
        kind = Processes(make_tiny(directory / "tiny"), directory)
    yield kind
    kind.close()


@asynccontextmanager
async def connected(ranks, **options):
    async with ranks.rank(**options) as address, RankGrpcClient(address) as client:
        yield client


@async_test
async def test_a_session_begins_with_who_the_rank_is(ranks):
    async with connected(ranks) as client, client.session() as session:
        info = session.seen[0].opened.info
        assert info == await client.info()
        assert info.incarnation and info.epoch and info.address
        assert (info.pool, info.group, info.rank, info.world_size, info.vocab_size) == ("p", "g", 0, 1, 288)
        assert list(info.eos_token_ids) == [1]


@async_test
async def test_tokens_come_in_order_and_end_once(ranks):
    async with connected(ranks) as client, client.session() as session:
        await session.submit("ordered", [5, 6, 7], max_tokens=20)
        tokens, finish = await session.finish("ordered")
        assert len(tokens) == 20 and finish is FinishReason.LENGTH
        assert session.of("ordered")[-1].num_prompt_tokens == 3
        assert session.load is not None and session.load.free_blocks > 0 and not session.load.draining


@async_test
async def test_the_same_request_gives_the_same_tokens_also_continued_elsewhere(ranks):
    async with connected(ranks) as client, client.session() as first, client.session() as second:
        await first.submit("whole", [9, 8], max_tokens=12, temperature=1.0, seed=3)
        whole, _ = await first.finish("whole")
        await second.submit("rest", [9, 8, *whole[:5]], max_tokens=12, temperature=1.0, seed=3, num_delivered=5)
        rest, _ = await second.finish("rest")
        assert rest == whole[5:]
        assert second.of("rest")[0].position == 5
        assert second.of("rest")[-1].num_prompt_tokens == 2


@async_test
async def test_one_of_several_completions_continues_alone_with_its_own_seed(ranks):
    async with connected(ranks) as client, client.session() as session:
        options = {"max_tokens": 9, "temperature": 1.0, "seed": 11}
        await session.submit("three", [9, 8], n=3, **options)
        whole, _ = await session.finish("three", 2)
        alone = {**options, "seed": completion_seed(11, 2)}
        await session.submit("third", [9, 8, *whole[:4]], num_delivered=4, **alone)
        rest, _ = await session.finish("third")
        assert rest == whole[4:]


@async_test
async def test_each_of_n_completions_ends(ranks):
    async with connected(ranks) as client, client.session() as session:
        await session.submit("many", [5], n=3, max_tokens=4, temperature=1.0, seed=1)
        ends = [await session.finish("many", index) for index in range(3)]
        assert [len(tokens) for tokens, _ in ends] == [4, 4, 4]
        assert len({tuple(tokens) for tokens, _ in ends}) > 1


@async_test
async def test_logprobs_come_if_asked_for(ranks):
    async with connected(ranks) as client, client.session() as session:
        await session.submit("with", [5], max_tokens=2, logprobs=3)
        await session.submit("without", [5], max_tokens=2)
        await session.finish("with")
        await session.finish("without")
        for output in session.of("with"):
            assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in output.tokens)
        assert all(token.logprob is None for output in session.of("without") for token in output.tokens)


@async_test
async def test_sessions_hear_of_their_own_requests_only(ranks):
    async with connected(ranks) as client, client.session() as first, client.session() as second:
        await first.submit("mine", [5], max_tokens=30)
        await second.submit("yours", [6], max_tokens=30)
        await first.finish("mine")
        await second.finish("yours")
        assert {output.request_id for output in first.outputs} == {"mine"}
        assert {output.request_id for output in second.outputs} == {"yours"}


@async_test
async def test_an_abort_ends_one_request_and_no_other(ranks):
    async with connected(ranks) as client, client.session() as session:
        await session.submit("endless", [5], max_tokens=LONG)
        await session.submit("short", [6], max_tokens=30)
        await session.expect_output("endless")
        await session.abort("endless")
        await session.abort("endless")
        await session.abort("never seen")
        assert (await session.finish("endless"))[1] is FinishReason.CANCELLED
        assert len((await session.finish("short"))[0]) == 30


@async_test
async def test_an_abort_of_one_completion_leaves_the_others(ranks):
    async with connected(ranks) as client, client.session() as session:
        await session.submit("pair", [5], n=2, max_tokens=LONG)
        await session.expect_output("pair")
        await session.abort("pair", 1)
        assert (await session.finish("pair", 1))[1] is FinishReason.CANCELLED
        assert not [output for output in session.of("pair", 0) if output.finish]
        await session.abort("pair")
        assert (await session.finish("pair", 0))[1] is FinishReason.CANCELLED


@pytest.mark.parametrize("how", ["drop", "close"])
@async_test
async def test_a_stream_that_ends_takes_its_requests_with_it(ranks, how):
    async with connected(ranks) as client, client.session() as watching:
        async with client.session() as leaving:
            await leaving.submit(f"orphan {how}", [5], max_tokens=LONG)
            await leaving.expect_output(f"orphan {how}")
            if how == "close":
                await leaving.close()
        while watching.load is None or watching.load.num_running or watching.load.num_waiting:
            # wakes an idle rank, which reports its load
            await watching.submit(f"probe {len(watching.seen)}", [5], max_tokens=1)
            await watching.expect("step_report")


@async_test
async def test_a_deadline_is_kept(ranks):
    async with connected(ranks) as client, client.session() as session:
        await session.submit("late", [5], max_tokens=LONG, remaining_s=0.3)
        assert (await session.finish("late"))[1] is FinishReason.DEADLINE
        await session.submit("too late", [5], remaining_s=-1.0)
        assert (await session.finish("too late"))[1] is FinishReason.DEADLINE


@async_test
async def test_what_is_wrong_is_refused_and_harms_nothing(ranks):
    async with connected(ranks) as client, client.session() as session:
        await session.submit("running", [5], max_tokens=LONG)
        await session.expect_output("running")
        await session.submit("outside", [5, 999])
        error = await session.refusal()
        assert isinstance(error, InvalidRequest) and error.field == "prompt" and "999" in str(error)
        await session.submit("running", [5])
        error = await session.refusal()
        assert isinstance(error, AlreadyRunning) and "running" in str(error)
        await session.submit("", [5])
        assert isinstance(await session.refusal(), InvalidRequest)
        hot = worker_pb2.Submit(request_id="hot", token_ids=[5])
        hot.sampling.temperature = 1e9
        await session.send(submit=hot)
        error = await session.refusal()
        assert isinstance(error, InvalidRequest) and error.field == "temperature" and "1000000000.0" in str(error)
        assert session.seen[-1].refused.request_id == "hot"
        await session.send()
        assert "message" in str(await session.refusal())
        await session.abort("running")
        assert (await session.finish("running"))[1] is FinishReason.CANCELLED


@async_test
async def test_a_prefill_without_destination_is_answered(ranks):
    async with connected(ranks) as client, client.session() as session:
        prompt = [2 + place % 200 for place in range(129)]
        await session.send(prefill=worker_pb2.Prefill(request_id="prefill", token_ids=prompt))
        done = await session.expect("prefill_done")
        assert (done.request_id, done.num_blocks, done.num_pushed, done.failure) == ("prefill", 2, 0, "")


@async_test
async def test_a_reservation_is_made_and_given_back(ranks):
    async with connected(ranks) as client:
        prompt = [2 + place % 199 for place in range(193)]
        request = worker_pb2.ReserveRequest(token_ids=prompt, cache_salt="reserve", timeout_s=20.0)
        reply = await client.stub.Reserve(request, timeout=20.0)
        assert reply.ticket and reply.transfer_address
        assert (reply.num_held_blocks, reply.num_reserved_blocks) == (0, 3)
        for ticket in (reply.ticket, reply.ticket, "never given"):
            await client.stub.ReleaseReservation(worker_pb2.ReleaseReservationRequest(ticket=ticket), timeout=20.0)


@async_test
async def test_health_is_answered_on_the_session(ranks):
    async with connected(ranks) as client, client.session() as session:
        await session.send(health_query=worker_pb2.HealthQuery())
        report = await session.expect("health_report")
        assert report.phase and report.seconds_in_phase >= 0 and not report.HasField("ended")


@async_test
async def test_a_draining_rank_refuses_the_new_and_finishes_the_old(ranks):
    async with connected(ranks, alone=True) as client, client.session() as session:
        await session.submit("old", [5], max_tokens=300)
        await session.expect_output("old")
        answer = await client.stub.Drain(worker_pb2.DrainRequest(reason="test", timeout_s=30.0), timeout=20.0)
        assert answer.num_requests == 1
        for number in range(1000):
            await session.submit(f"new {number}", [5], max_tokens=1)
            # the drain and the session are two ways in, so that a few may still be taken
            if (await session.next()).HasField("refused"):
                break
        refused = [message.refused for message in session.seen if message.HasField("refused")] or [
            await session.expect("refused")
        ]
        assert refused[-1].failure.reason == "DRAINING"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.Reserve(worker_pb2.ReserveRequest(token_ids=[2] * 64, timeout_s=5.0), timeout=20.0)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert len((await session.finish("old"))[0]) == 300
        assert session.load is not None and session.load.draining


@async_test
async def test_many_requests_at_once(ranks):
    async with connected(ranks) as client, client.session() as session:
        for number in range(40):
            await session.submit(f"busy {number}", [2 + number], max_tokens=10)
        ends = [await session.finish(f"busy {number}") for number in range(40)]
        assert {len(tokens) for tokens, _ in ends} == {10}
