"""The line to the router at the gateway's end: who gets which news, who waits, and what an end of the stream means."""

import asyncio
import gc
import weakref

import grpc.aio
import pytest

from baleen.errors import DeadlineExceeded, NotReady, QueueFull
from baleen.v1 import inference_pb2
from baleen.wire.errors import error_to_failure
from router.gateway.line import MOST_WAITING, Line


class Call:
    """One stream. said: what the gateway has written."""

    def __init__(self, requests):
        self.said = []
        self.cancelled = False
        self._news = asyncio.Queue()
        self._reading = asyncio.create_task(self._read(requests))

    async def _read(self, requests):
        async for message in requests:
            self.said.append(message)

    async def read(self):
        message = await self._news.get()
        if isinstance(message, Exception):
            raise message
        return message

    def cancel(self):
        self.cancelled = True

    def tell(self, *events, leaving=False):
        self._news.put_nowait(
            inference_pb2.GenerateManyResponse(
                events=[inference_pb2.Event(number=number, **news) for number, news in events], leaving=leaving
            )
        )

    def end(self, error=grpc.aio.EOF):
        self._news.put_nowait(error)

    @property
    def kinds(self):
        return [message.WhichOneof("message") for message in self.said]


class Router:
    """A stub: the streams that were opened."""

    def __init__(self):
        self.calls = []

    def GenerateMany(self, requests):
        self.calls.append(Call(requests))
        return self.calls[-1]


ADMITTED = {"admitted": inference_pb2.Admitted(request_id="r")}
BROKEN = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "Socket closed")


def delta(*ids):
    return {"delta": inference_pb2.Delta(token_ids=ids)}


def start(line, name="r", deadline_s=600.0, **options):
    request = inference_pb2.GenerateRequest(request_id=name)
    return line.start(request, **{"tenant": "", "traceparent": "", **options}, deadline_s=deadline_s)


async def settle():
    """Everything that can go on now has gone on."""
    for _ in range(50):
        await asyncio.sleep(0)


def ids(deltas):
    return [token for one in deltas for token in one.token_ids]


def run(scenario):
    async def main():
        router = Router()
        line = Line(router)
        try:
            await scenario(line, router)
        finally:
            await line.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_one_stream_carries_all_requests_and_each_gets_its_own_news():
    async def scenario(line, router):
        first, second = start(line, "a", tenant="acme", traceparent="00-1"), start(line, "b")
        await settle()
        [call] = router.calls
        begun = [message.start for message in call.said]
        assert [(one.request.request_id, one.tenant, one.traceparent) for one in begun] == [
            ("a", "acme", "00-1"),
            ("b", "", ""),
        ]
        one, other = [message.number for message in begun]
        call.tell((other, ADMITTED), (one, ADMITTED), (other, delta(7)), (one, delta(1)), (one, delta(2, 3)))
        call.tell((one, delta(4)), (other, {"finished": inference_pb2.Finished()}), (99, delta(5)))
        await first.admitted()
        await second.admitted()
        await settle()
        assert ids(await first.deltas()) == [1, 2, 3, 4], "all that there is, at once"
        assert ids(await second.deltas()) == [7]
        assert await second.deltas() == []
        waits = asyncio.create_task(first.deltas())
        await settle()
        call.tell((one, delta(8)))
        assert ids(await waits) == [8]
        for strand in (first, second):
            strand.close()
        await settle()
        assert call.kinds == ["start", "start", "cancel"], "what has ended is not cancelled"

    run(scenario)


def test_who_takes_nothing_is_paused_and_stops_nobody():
    async def scenario(line, router):
        slow, fast = start(line), start(line)
        await settle()
        [call] = router.calls
        for place in range(3 * MOST_WAITING):
            call.tell((0, delta(place)), (1, delta(place)))
            assert ids(await fast.deltas()) == [place]
        await settle()
        assert [message.pause.number for message in call.said[2:]] == [0] and call.kinds[2:] == ["pause"], "once"
        assert ids(await slow.deltas()) == list(range(3 * MOST_WAITING)), "what was on its way is kept, in order"
        await settle()
        assert call.kinds[3:] == ["resume"] and call.said[3].resume.number == 0

    run(scenario)


def test_what_waits_does_not_keep_the_news_of_others():
    async def scenario(line, router):
        slow = start(line)
        await settle()
        [call] = router.calls
        kept = []
        for place in range(MOST_WAITING):
            message = inference_pb2.GenerateManyResponse(
                events=[inference_pb2.Event(number=0, delta=inference_pb2.Delta(token_ids=[place]))]
            )
            kept.append(message.events[0].delta)
            call.end(message)
        await settle()
        # a message changes with what was taken from it, a copy does not
        for one in kept:
            one.index = 9
        shared = [one.index for one in await slow.deltas()].count(9)
        assert 0 < shared < 8

    run(scenario)


def test_refusals_and_failures_are_those_of_the_router():
    async def scenario(line, router):
        refused, failed = start(line), start(line)
        await settle()
        [call] = router.calls
        failure = error_to_failure(QueueFull("too many", retry_after_s=2.0))
        call.tell((0, {"failure": failure}), (1, ADMITTED), (1, delta(1)), (1, {"failure": failure}))
        with pytest.raises(QueueFull, match="too many") as raised:
            await refused.admitted()
        assert raised.value.retry_after_s == 2.0
        await failed.admitted()
        assert ids(await failed.deltas()) == [1], "what came before the failure comes first"
        for _ in range(2):
            with pytest.raises(QueueFull):
                await failed.deltas()

    run(scenario)


def test_a_deadline_passes_here_where_the_router_does_not_say_so():
    async def scenario(line, router):
        waits, reads = start(line, deadline_s=0.01), start(line, deadline_s=0.01)
        await settle()
        [call] = router.calls
        assert all(0.005 < message.start.remaining_s < 0.01 for message in call.said), "the router is to be earlier"
        call.tell((1, ADMITTED), (1, delta(1)))
        with pytest.raises(DeadlineExceeded):
            await waits.admitted()
        assert ids(await reads.deltas()) == [1]
        with pytest.raises(DeadlineExceeded):
            await reads.deltas()
        await settle()
        assert call.kinds[2:] == ["cancel", "cancel"]
        long = start(line, deadline_s=600.0)
        await settle()
        assert call.said[-1].start.remaining_s == pytest.approx(599.9)
        long.close()

    run(scenario)


def test_a_stream_that_breaks_fails_what_runs_and_the_next_request_opens_another():
    async def scenario(line, router):
        asked, admitted, begun = start(line), start(line), start(line)
        await settle()
        [call] = router.calls
        call.tell((1, ADMITTED), (2, ADMITTED), (2, delta(1)))
        await begun.admitted()
        waits = asyncio.create_task(admitted.deltas())
        await settle()
        call.end(BROKEN)
        with pytest.raises(NotReady):
            await asked.admitted()
        with pytest.raises(NotReady):
            await waits
        assert ids(await begun.deltas()) == [1]
        with pytest.raises(NotReady, match="Socket closed"):
            await begun.deltas()
        assert call.cancelled
        again = start(line)
        await settle()
        assert len(router.calls) == 2
        router.calls[1].tell((0, ADMITTED), (0, delta(9)))
        assert ids(await again.deltas()) == [9]

    run(scenario)


def test_what_a_router_had_not_read_when_it_left_is_begun_on_another_stream():
    async def scenario(line, router):
        asked, admitted, closed = start(line, "asked", tenant="acme", deadline_s=100.0), start(line), start(line)
        await settle()
        router.calls[0].tell((1, ADMITTED), leaving=True)
        closed.close()
        await settle()
        router.calls[0].end()
        with pytest.raises(NotReady, match="has left"):
            await admitted.deltas()
        await settle()
        [again] = router.calls[1].said
        assert (again.start.number, again.start.request.request_id, again.start.tenant) == (0, "asked", "acme")
        assert 90 < again.start.remaining_s < 100
        router.calls[1].tell((0, ADMITTED), (0, delta(9)))
        assert ids(await asked.deltas()) == [9]
        asked.close()
        await settle()
        assert router.calls[1].said[-1].cancel.number == 0 and router.calls[1].kinds == ["start", "cancel"]

    run(scenario)


def test_routers_that_leave_again_and_again_are_no_answer():
    async def scenario(line, router):
        asked = start(line)
        for number in range(4):
            await settle()
            assert len(router.calls) == number + 1
            router.calls[number].end()
        with pytest.raises(NotReady, match="has left"):
            await asked.admitted()
        await settle()
        assert len(router.calls) == 4

    run(scenario)


def test_a_router_that_leaves_keeps_what_it_has_and_gets_no_more():
    async def scenario(line, router):
        old = start(line)
        await settle()
        router.calls[0].tell((0, ADMITTED), leaving=True)
        await old.admitted()
        new = start(line)
        await settle()
        assert [call.kinds for call in router.calls] == [["start"], ["start"]]
        router.calls[0].tell((0, delta(1)))
        router.calls[1].tell((0, delta(2)))
        assert ids(await old.deltas()) == [1] and ids(await new.deltas()) == [2]
        router.calls[0].end()
        router.calls[1].tell((0, delta(3)))
        assert ids(await new.deltas()) == [3]

    run(scenario)


def test_news_of_a_request_that_was_given_up_are_dropped():
    async def scenario(line, router):
        given_up, other = start(line), start(line)
        given_up.close()
        given_up.close()
        await settle()
        [call] = router.calls
        assert call.kinds == ["start", "start", "cancel"] and call.said[-1].cancel.number == 0
        call.tell((0, ADMITTED), (0, delta(1)), (1, ADMITTED), (1, delta(2)))
        assert ids(await other.deltas()) == [2]
        assert await given_up.deltas() == []
        call.tell((1, {"finished": inference_pb2.Finished()}))
        assert await other.deltas() == []
        kept = [weakref.ref(given_up), weakref.ref(other)]
        del given_up, other
        gc.collect()
        assert [one() for one in kept] == [None, None], "nothing of them stays behind"

    run(scenario)
