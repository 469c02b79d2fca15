"""A stream of many requests at the router's end: what is written together, held back, refused and ended."""

import asyncio

import pytest

from baleen.errors import InvalidRequest, QueueFull
from baleen.v1 import inference_pb2
from router.client_session import BATCH_BYTES, MOST_DELTAS, ClientSession


class Stream:
    """The client's end. serve: what a test has requests do. Writing waits while `may_write` is not set."""

    def __init__(self, serve):
        self.session = ClientSession(serve)
        self.written = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self._said = asyncio.Queue()
        self.task = asyncio.create_task(self.session.run(self._messages(), self._write))

    async def _messages(self):
        while (message := await self._said.get()) is not None:
            yield message

    async def _write(self, message):
        self.written.append(message)
        await self.may_write.wait()

    def say(self, **message):
        self._said.put_nowait(inference_pb2.GenerateManyRequest(**message))

    def start(self, number, **options):
        self.say(start=inference_pb2.Start(number=number, **options))

    def hang_up(self):
        self._said.put_nowait(None)

    @property
    def news(self):
        """(number, kind) of all events, in order."""
        return [(event.number, event.WhichOneof("news")) for message in self.written for event in message.events]

    def ids(self, number):
        """Tokens of one request."""
        events = [event for message in self.written for event in message.events if event.number == number]
        return [token for event in events for token in event.delta.token_ids]


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario(), 30))


async def settle():
    """Everything that can go on now has gone on."""
    for _ in range(50):
        await asyncio.sleep(0)


def delta(*ids):
    return inference_pb2.Delta(token_ids=ids)


ADMITTED = inference_pb2.Admitted(request_id="r")


def test_what_a_step_brings_to_many_requests_leaves_in_one_message():
    async def scenario():
        steps = [asyncio.Event() for _ in range(3)]

        async def serve(request, terms, outlet):
            await outlet.admitted(ADMITTED)
            for place, step in enumerate(steps):
                await step.wait()
                await outlet.delta(delta(place))

        stream = Stream(serve)
        for number in range(100):
            stream.start(number)
        await settle()
        for place, step in enumerate(steps):
            step.set()
            await settle()
            assert len(stream.written) == 2 + place, "one for the admissions, and one for each step"
            assert len(stream.written[-1].events) == (100 if place < 2 else 200), "the last has the ends as well"
        assert stream.news.count((7, "delta")) == 3 and stream.news[-1][1] == "finished"
        stream.hang_up()
        await stream.task

    run(scenario)


def test_a_slow_stream_makes_each_request_wait_and_joins_messages():
    async def scenario():
        emitted = {0: 0, 1: 0, 2: 0}

        async def serve(request, terms, outlet):
            number = int(request.request_id)
            for place in range(200):
                await outlet.delta(delta(place))
                emitted[number] += 1

        stream = Stream(serve)
        stream.may_write.clear()
        for number in emitted:
            stream.start(number, request=inference_pb2.GenerateRequest(request_id=str(number)))
        await settle()
        assert all(MOST_DELTAS <= count <= 2 * MOST_DELTAS for count in emitted.values()), "more is not kept"
        assert len(stream.written) == 1
        stream.say(cancel=inference_pb2.Cancel(number=2))
        await settle()
        stream.may_write.set()
        stream.hang_up()
        await stream.task
        assert len(stream.ids(2)) < 200
        assert stream.ids(0) == stream.ids(1) == list(range(200)), "nothing is lost"
        assert len(stream.written) < 40

    run(scenario)


def test_a_paused_request_waits_alone():
    async def scenario():
        step = asyncio.Event()
        emitted = []

        async def serve(request, terms, outlet):
            await outlet.admitted(ADMITTED)
            await step.wait()
            for place in range(5):
                await outlet.delta(delta(place))
                emitted.append(request.request_id)

        stream = Stream(serve)
        for number, name in enumerate(["slow", "fast", "gone"]):
            stream.start(number, request=inference_pb2.GenerateRequest(request_id=name))
        for number in (0, 2, 2, 99):
            stream.say(pause=inference_pb2.Pause(number=number))
        await settle()
        step.set()
        await settle()
        assert emitted == ["fast"] * 5, "a pause of a request that is not there harms nobody"
        stream.say(cancel=inference_pb2.Cancel(number=2))
        stream.say(resume=inference_pb2.Resume(number=0))
        await settle()
        assert stream.ids(0) == list(range(5)) and stream.session.num_requests == 0
        stream.hang_up()
        await stream.task

    run(scenario)


def test_a_cancelled_request_says_nothing_more_and_harms_no_other():
    async def scenario():
        go, ended = asyncio.Event(), []

        async def serve(request, terms, outlet):
            try:
                await go.wait()
                await outlet.delta(delta(1))
            except asyncio.CancelledError:
                ended.append(request.request_id)
                # even if it has a last word, nobody waits for it
                raise QueueFull("too late") from None

        stream = Stream(serve)
        for number in range(3):
            stream.start(number, request=inference_pb2.GenerateRequest(request_id=str(number)))
        await settle()
        stream.say(cancel=inference_pb2.Cancel(number=1))
        stream.say(cancel=inference_pb2.Cancel(number=1))
        await settle()
        go.set()
        await settle()
        assert ended == ["1"]
        assert stream.news == [(0, "delta"), (0, "finished"), (2, "delta"), (2, "finished")]
        stream.hang_up()
        await stream.task

    run(scenario)


def test_terms_are_those_of_the_message():
    async def scenario():
        seen = []

        async def serve(request, terms, outlet):
            seen.append((terms.tenant, terms.traceparent, terms.remaining_s))

        stream = Stream(serve)
        stream.start(0)
        stream.start(1, tenant="acme", traceparent="00-1", remaining_s=0.0)
        stream.hang_up()
        await stream.task
        assert seen == [("", "", None), ("acme", "00-1", 0.0)]

    run(scenario)


def test_a_failure_ends_one_request():
    async def scenario():
        async def serve(request, terms, outlet):
            if request.request_id:
                raise QueueFull("too many", retry_after_s=2.5)

        stream = Stream(serve)
        stream.start(3)
        stream.start(4, request=inference_pb2.GenerateRequest(request_id="x"))
        stream.hang_up()
        await stream.task
        assert stream.news == [(3, "finished"), (4, "failure")]
        failure = stream.written[-1].events[-1].failure
        assert (failure.reason, failure.message) == ("QUEUE_FULL", "too many")
        assert failure.retry_after.ToMilliseconds() == 2500

    run(scenario)


@pytest.mark.parametrize(
    ("numbers", "empty", "words"), [((5, 5), False, "above 5"), ((5, 4), False, "above 5"), ((0,), True, "nothing")]
)
def test_a_message_against_the_rules_ends_the_stream(numbers, empty, words):
    async def scenario():
        ended = []

        async def serve(request, terms, outlet):
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(1)

        stream = Stream(serve)
        for number in numbers:
            stream.start(number)
            await settle()
        if empty:
            stream.say()
        with pytest.raises(InvalidRequest, match=words):
            await stream.task
        assert ended == [1]

    run(scenario)


def test_a_stream_that_ends_cancels_what_runs_on_it():
    async def scenario():
        ended = []

        async def serve(request, terms, outlet):
            try:
                await outlet.admitted(ADMITTED)
                await asyncio.Event().wait()
            finally:
                ended.append(request.request_id)

        stream = Stream(serve)
        for number in range(10):
            stream.start(number)
        await settle()
        stream.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream.task
        assert len(ended) == 10

    run(scenario)


def test_a_router_that_leaves_says_so_and_ends_after_the_last():
    async def scenario():
        go = asyncio.Event()

        async def serve(request, terms, outlet):
            await outlet.admitted(ADMITTED)
            await go.wait()

        stream = Stream(serve)
        stream.start(1)
        await settle()
        stream.session.leave()
        await settle()
        assert [message.leaving for message in stream.written] == [False, True] and not stream.task.done()
        go.set()
        await stream.task
        assert stream.news[-1] == (1, "finished")
        idle = Stream(serve)
        idle.session.leave()
        await idle.task
        assert [message.leaving for message in idle.written] == [True]

    run(scenario)


def test_messages_have_a_size():
    async def scenario():
        async def serve(request, terms, outlet):
            for _ in range(MOST_DELTAS):
                await outlet.delta(inference_pb2.Delta(text="x" * (BATCH_BYTES // 4)))

        stream = Stream(serve)
        stream.may_write.clear()
        for number in range(2):
            stream.start(number)
        await settle()
        stream.may_write.set()
        stream.hang_up()
        await stream.task
        assert len(stream.written) > 5
        assert all(message.ByteSize() < 2 * BATCH_BYTES for message in stream.written)
        assert stream.news.count((0, "delta")) == stream.news.count((1, "delta")) == MOST_DELTAS

    run(scenario)
