"""A reservation whose release never reaches the rank: the rank learns from the session what the router still wants."""

import asyncio

import pytest

from baleen.clock import SystemClock
from baleen.errors import BaleenError
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from baleen.v1 import worker_pb2_grpc
from baleen.wire.channel import open_channel
from loadtest.fault_proxy import FaultProxy
from router.messages import Mailbox, RankPrefill, RankSubmission
from router.session import RankSession, SessionTimes
from tests.support.router_client import eventually
from tests.support.served_rank import INFO, ServedRank
from workers.engine.messages import ReleaseReservation, Reservation, Reserve

PROMPT = (5,) * 100
TIMES = SessionTimes(probe_s=0.05)
DEADLINE_S = 600.0


async def probes(session, count):
    """Wait until the session has asked so many times from now on how the rank is."""
    asked = 0
    query = session._wanted.query

    def counted():
        nonlocal asked
        asked += 1
        return query()

    session._wanted.query = counted
    await eventually(lambda: asked >= count)
    session._wanted.query = query


class Lines:
    """A rank, a router's session to it, and a line of their own for all calls beside the session's stream."""

    def __init__(self, rank, session, proxy):
        self.rank, self.session, self.proxy = rank, session, proxy

    async def reserve(self, name):
        """A reservation, of the ticket `name`."""
        asked = asyncio.create_task(self.session.reserve(PROMPT, cache_salt="", timeout_s=DEADLINE_S, wait_s=10.0))
        [command] = await self.rank.commands(1)
        assert isinstance(command, Reserve) and command.timeout_s == DEADLINE_S
        command.reply.set_result(Reservation(name, "127.0.0.1:1", 0, 1, DEADLINE_S))
        return await asked

    async def released(self):
        """The ticket of the next command, which is a release."""
        [command] = await self.rank.commands(1)
        assert isinstance(command, ReleaseReservation), command
        return command.ticket

    async def nothing_comes(self):
        await probes(self.session, 4)
        assert self.rank.inbox.take() == ()


def scenario(test):
    async def run():
        rank = ServedRank()
        rank.server.ready(INFO)
        session = RankSession(
            rank.address, expected=None, clock=SystemClock(), times=TIMES, on_load=lambda info, load: None
        )
        opened = asyncio.Event()
        running = asyncio.create_task(session.run(opened.set))
        try:
            async with FaultProxy("127.0.0.1:0", rank.address) as proxy, open_channel(proxy.address) as channel:
                await opened.wait()
                session._stub = worker_pb2_grpc.WorkerServiceStub(channel)
                await test(Lines(rank, session, proxy))
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await asyncio.to_thread(rank.server.close, 10.0)

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("fault", ["reset", "hold"])
def test_a_lost_release_is_made_up_for_within_a_probe(fault):
    async def test(lines):
        await lines.reserve("kept")
        lost = await lines.reserve("lost")
        await lines.nothing_comes()
        if fault == "reset":
            await lines.proxy.refuse()
            lines.proxy.reset()
        else:
            lines.proxy.hold()
        lines.session.release(lost.ticket)
        assert await lines.released() == "lost"
        await eventually(lambda: lines.proxy.counts.faults[fault] >= 1)
        await lines.nothing_comes()
        assert lines.session.is_open

    scenario(test)


def test_an_answer_that_is_lost_leaves_nothing_reserved():
    async def test(lines):
        asked = asyncio.create_task(lines.session.reserve(PROMPT, cache_salt="", timeout_s=DEADLINE_S, wait_s=0.5))
        [command] = await lines.rank.commands(1)
        lines.proxy.hold()
        command.reply.set_result(Reservation("unheard", "127.0.0.1:1", 0, 1, DEADLINE_S))
        with pytest.raises(BaleenError):
            await asked
        assert await lines.released() == "unheard"

    scenario(test)


def test_what_a_request_came_for_is_its_own():
    async def test(lines):
        submitted = await lines.reserve("submitted")
        prefilled = await lines.reserve("prefilled")
        lines.session.submit(
            RankSubmission(
                request_id=RequestId("s"),
                token_ids=PROMPT,
                sampling=SamplingParams(max_tokens=1, seed=0),
                deadline=SystemClock().now() + 30,
                ticket=submitted.ticket,
            ),
            Mailbox(),
        )
        lines.session.prefill(
            RankPrefill(
                request_id=RequestId("p"),
                token_ids=PROMPT,
                deadline=SystemClock().now() + 30,
                reservation=submitted,
                ticket=prefilled.ticket,
            ),
            Mailbox(),
        )
        commands = await lines.rank.commands(2)
        assert [command.ticket for command in commands] == ["submitted", "prefilled"]
        await lines.nothing_comes()

    scenario(test)


def test_a_reservation_that_is_being_asked_for_is_wanted():
    async def test(lines):
        asked = asyncio.create_task(lines.session.reserve(PROMPT, cache_salt="", timeout_s=DEADLINE_S, wait_s=10.0))
        [command] = await lines.rank.commands(1)
        # the rank has made it, and its answer takes its time
        lines.proxy.hold()
        command.reply.set_result(Reservation("slow", "127.0.0.1:1", 0, 1, DEADLINE_S))
        await lines.nothing_comes()
        lines.proxy.release()
        assert (await asked).ticket == "slow"
        await lines.nothing_comes()

    scenario(test)
