"""Streams that are kept, without HTTP: their memory, and what becomes of their work when nobody is there."""

import asyncio

import pytest

from baleen.clock import SystemClock
from baleen.errors import UnknownName
from router.gateway import streams
from router.gateway.connection import Connection
from router.gateway.streams import Streams, TakenOver

FRAME = b"data: " + b"x" * 994


def connection(sent, gate=None):
    async def send(message):
        if gate is not None and message["type"] == "http.response.body":
            await gate.wait()
        sent.append(message)

    return Connection(send, SystemClock())


async def turns(number=20):
    for _ in range(number):
        await asyncio.sleep(0)


def deliver(stream, sent, *, after=0, gate=None):
    return asyncio.create_task(stream.deliver(connection(sent, gate), after=after, head=list, keep_alive_s=1000))


async def made(shelf, count, *, last=True):
    """A stream with so many events, that nobody reads."""
    stream = shelf.open("me", "chat")
    await stream.start(200, [])
    await stream.events([FRAME] * count, last=last)
    return stream


def test_the_memory_of_all_streams_is_bounded_and_the_oldest_that_ended_go_first():
    async def scenario():
        shelf = Streams(keep_s=30, max_bytes=100_000)
        ended = [await made(shelf, 5) for _ in range(30)]
        assert shelf.num_bytes <= 100_000
        kept = [stream for stream in ended if shelf._streams.get(stream.stream_id)]
        assert kept == ended[-len(kept) :] and 5 <= len(kept) < 30
        # of those that go on nothing is lost: who cannot be taken waits
        waiting = [asyncio.create_task(made(shelf, 30, last=False)) for _ in range(4)]
        await turns(200)
        assert shelf.num_bytes <= 100_000 + 4 * 4096 and any(not task.done() for task in waiting)
        for stream in list(shelf._streams.values()):
            assert stream.num_dropped == 0 and not stream.ended
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await shelf.close()
        assert shelf.num_bytes == 0 and shelf.num_streams == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("together", [1, 100])
def test_who_reads_makes_room_and_a_slow_reader_stops_the_work(monkeypatch, together):
    monkeypatch.setattr(streams, "EACH_BYTES", 10_000)

    async def scenario():
        shelf, sent, gate = Streams(keep_s=30, max_bytes=1 << 20), [], asyncio.Event()
        stream = shelf.open("me", "chat")
        reader = deliver(stream, sent, gate=gate)
        writer = asyncio.create_task(_write(stream, 100, together=together))
        await turns(100)
        assert not writer.done() and stream.num_bytes <= 10_000 and stream.last < 12
        gate.set()
        await asyncio.gather(reader, writer)
        body = b"".join(message["body"] for message in sent[1:])
        assert body.count(FRAME) == 100 and sent[-1]["more_body"] is False
        assert stream.num_bytes <= 10_000 and stream.num_dropped > 85
        with pytest.raises(UnknownName, match="cannot go on after event 3"):
            shelf.find(f"{shelf.name}-{stream.stream_id}-3", "me", "chat")
        await shelf.close()

    asyncio.run(scenario())


async def _write(stream, count, *, together=1):
    await stream.start(200, [])
    for number in range(0, count, together):
        await stream.events([FRAME] * together, last=number + together == count)


def test_work_that_nobody_can_know_of_ends_with_its_client():
    async def scenario():
        shelf = Streams(keep_s=30, max_bytes=1 << 20)
        for has_begun in (False, True):
            stream = shelf.open("me", "chat")
            job = asyncio.create_task(asyncio.sleep(1000))
            shelf.begin(stream, job)
            reader = deliver(stream, [])
            await turns()
            if has_begun:
                await stream.start(200, [])
                await turns()
            reader.cancel()
            await turns()
            assert job.cancelled() is not has_begun and shelf.num_streams == int(has_begun)
        await shelf.close()
        assert job.cancelled()

    asyncio.run(scenario())


def test_the_last_to_come_has_the_stream():
    async def scenario():
        shelf, first, second = Streams(keep_s=30, max_bytes=1 << 20), [], []
        stream = await made(shelf, 3, last=False)
        old = deliver(stream, first)
        await turns()
        new = deliver(stream, second, after=1)
        await turns()
        with pytest.raises(TakenOver):
            await old
        await stream.events([FRAME], last=True)
        await new
        assert first[-1]["more_body"] is True
        assert b"".join(message["body"] for message in second[1:]).count(FRAME) == 3
        await shelf.close()

    asyncio.run(scenario())
