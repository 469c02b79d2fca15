"""Sessions to fake ranks over real gRPC on loopback: opening, breaking, another life at the same address."""

import asyncio

import pytest

from baleen.clock import SystemClock
from baleen.errors import NotReady
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from baleen.telemetry import Log
from baleen.wire.reports import info_from_proto
from router.members import Changes, Members
from router.messages import Mailbox, RankLost, RankRefused, RankSubmission
from router.session import SessionTimes
from router.sessions import RankSessions
from tests.support.fake_rank import FakeRank, fake_tokens
from tests.support.router_client import eventually


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def new_sessions(members):
    return RankSessions(members, SystemClock(), Log("off"), SessionTimes(open_s=2.0))


def submission(name, prompt=(5, 6, 7), max_tokens=4):
    return RankSubmission(
        request_id=RequestId(name),
        token_ids=tuple(prompt),
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0),
        deadline=SystemClock().now() + 30,
    )


async def receive(mailbox):
    """Tokens until the end, and what ended them."""
    tokens = []
    while True:
        event = await mailbox.get()
        if isinstance(event, (RankLost, RankRefused)):
            return tokens, event
        tokens += [token.token_id for token in event.tokens]
        if event.finish is not None:
            return tokens, event.finish.value


def joined(*ranks):
    return Changes(tuple(info_from_proto(rank.info) for rank in ranks), ())


def test_requests_share_one_session():
    async def scenario():
        members = Members()
        sessions = new_sessions(members)
        async with FakeRank() as rank:
            sessions.follow(joined(rank))
            await eventually(lambda: bool(sessions.open))
            session = sessions.open[rank.info.incarnation]
            mailboxes = [Mailbox() for _ in range(5)]
            for number, mailbox in enumerate(mailboxes):
                session.submit(submission(f"r{number}", prompt=(5, number)), mailbox)
            for number, mailbox in enumerate(mailboxes):
                assert await receive(mailbox) == (fake_tokens((5, number), 4), "length")
                session.forget(RequestId(f"r{number}"))
            assert rank.num_sessions == 1 and session.num_requests == 0
            assert members.snapshot().ranks[0].incarnation == rank.info.incarnation
            await sessions.close()
            await eventually(lambda: rank.num_sessions == 0)

    run(scenario())


def test_a_lost_rank_tells_every_request_and_comes_back():
    async def scenario():
        members = Members()
        sessions = new_sessions(members)
        async with FakeRank() as rank:
            rank.pause()
            sessions.follow(joined(rank))
            await eventually(lambda: bool(sessions.open))
            old = sessions.open[rank.info.incarnation]
            mailbox = Mailbox()
            old.submit(submission("a"), mailbox)
            old.submit(submission("b"), mailbox)
            await eventually(lambda: len(rank.submits) == 2)
            rank.end("test")
            lost = [await mailbox.get(), await mailbox.get()]
            assert {event.request_id for event in lost if isinstance(event, RankLost)} == {"a", "b"}
            late = Mailbox()
            old.submit(submission("c"), late)
            assert isinstance(await late.get(), RankLost)
            await eventually(lambda: bool(sessions.open))
            assert sessions.open[rank.info.incarnation] is not old
            rank.resume()
            sessions.open[rank.info.incarnation].submit(submission("d"), late)
            assert (await receive(late))[1] == "length"
            await sessions.close()

    run(scenario())


def test_another_life_at_the_same_address_is_not_taken_for_the_old_one():
    async def scenario():
        members = Members()
        sessions = new_sessions(members)
        first, second = FakeRank(), FakeRank()
        address = await first.start()
        members.apply({first.info.incarnation: info_from_proto(first.info)})
        sessions.follow(joined(first))
        await eventually(lambda: bool(sessions.open))
        await first.kill()
        await eventually(lambda: not sessions.open)
        await second.start(address)
        await eventually(lambda: second.num_sessions >= 1)
        await eventually(lambda: second.num_sessions == 0)
        assert not sessions.open
        sessions.follow(members.apply({second.info.incarnation: info_from_proto(second.info)}))
        await eventually(lambda: set(sessions.open) == {second.info.incarnation})
        await sessions.close()
        await second.kill()

    run(scenario())


def test_a_rank_that_is_not_there_is_found_when_it_comes():
    async def scenario():
        members = Members()
        sessions = new_sessions(members)
        rank = FakeRank()
        address = await rank.start()
        await rank.kill()
        sessions.connect([address])
        await asyncio.sleep(0)
        assert not sessions.open
        await rank.start(address)
        await eventually(lambda: set(sessions.open) == {rank.info.incarnation})
        await sessions.close()
        await rank.kill()

    run(scenario())


def test_a_session_that_closes_under_a_reservation_says_that_the_rank_is_lost():
    async def scenario():
        members = Members()
        sessions = new_sessions(members)
        async with FakeRank() as rank:
            sessions.follow(joined(rank))
            await eventually(lambda: bool(sessions.open))
            session = sessions.open[rank.info.incarnation]
            await sessions.close()
            # its call begins in a task of its own, and so perhaps after the channel was closed
            with pytest.raises(NotReady, match="is lost"):
                await session.reserve((5,) * 200, cache_salt="", timeout_s=5.0, wait_s=5.0)

    run(scenario())
