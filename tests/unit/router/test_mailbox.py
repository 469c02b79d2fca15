"""The mailbox between a session and the request that waits on it."""

import asyncio

from baleen.ids import RequestId
from baleen.reports import FinishReason, RequestOutput, SampledToken
from router.messages import Mailbox, RankLost


def output(position, ids, finish=None, *, index=0, name="r"):
    tokens = tuple(SampledToken(token) for token in ids)
    return RequestOutput(RequestId(name), index, position, tokens, finish, "", 3, 0)


def received(*events):
    """What a reader gets that comes after all of `events`."""

    async def read():
        mailbox = Mailbox()
        for event in events:
            mailbox.put(event)
        mailbox.put(RankLost(RequestId("r"), "over"))
        got = [await mailbox.get()]
        while not isinstance(got[-1], RankLost):
            got.append(await mailbox.get())
        return got[:-1]

    return asyncio.run(read())


def test_tokens_that_wait_are_joined():
    assert received(output(0, [1]), output(1, [2, 3]), output(3, [], FinishReason.STOP)) == [
        output(0, [1, 2, 3], FinishReason.STOP)
    ]


def test_other_news_stays_apart():
    apart = [
        output(0, [1]),
        output(0, [1], index=1),
        output(1, [2]),
        output(1, [2]),
        output(5, [6], FinishReason.LENGTH),
        output(6, [7]),
        output(7, [8], name="other"),
    ]
    assert received(*apart) == apart


def test_a_reader_that_waits_is_woken():
    async def scenario():
        mailbox = Mailbox()
        reader = asyncio.create_task(mailbox.get())
        await asyncio.sleep(0)
        mailbox.put(output(0, [1]))
        assert await asyncio.wait_for(reader, 5) == output(0, [1])

    asyncio.run(scenario())
