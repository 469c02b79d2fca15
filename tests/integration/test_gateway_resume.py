"""Streams that are cut and gone on with: exactly the rest, generated and charged once, for nobody else, for a while."""

import asyncio
import json

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from baleen.errors import UnknownName
from router.gateway import streams
from tests.support.event_stream import id_of, open_stream, whole_events
from tests.support.gateway_server import scenario as keyed_scenario
from tests.support.http_gateway import http_gateway
from tests.support.router_client import eventually, run

USER = [{"role": "user", "content": "größe"}]
CALLS = {
    "/v1/chat/completions": {"model": "deepseek-reasoner", "messages": USER},
    "/v1/completions": {"model": "deepseek-chat", "prompt": ["a", "b"], "echo": True},
    "/v1/responses": {"model": "deepseek-reasoner", "input": "größe"},
    "/v1/messages": {"model": "deepseek-reasoner", "messages": USER, "max_tokens": 100},
}
CHAT = "/v1/chat/completions"
STREAM = {"stream": True, "resumable": True}
FOR_EVER = {"first_day": "0001-01-01", "last_day": "9999-01-01"}


def reply(prompt):
    return "the thing " * 2000 if "long" in prompt else "the größe</think>日本 🐳thing"


def ask(url, path=CHAT, **options):
    return open_stream(url, path, CALLS[path] | STREAM, **options)


async def begin_and_leave(served):
    """A stream whose client goes after the first tokens, while the answer waits for `go`."""
    served.router.hold_after = 3
    stream = await ask(served.url)
    await stream.read_until(b"reasoning_content")
    stream.cut()
    await eventually(lambda: served.core.meters.disconnects == 1)
    return stream


def numbers_of(events):
    """What their ids count."""
    return [int(id_of(event).rpartition("-")[2]) for event in events]


def places(events):
    """Cuts of every class: before the first byte, in an id, before data, in data, in its end, after an event."""
    start, found = 0, {0}
    for number, event in enumerate(events):
        id_end = event.index(b"\n")
        if number in (0, 3, len(events) - 1):
            found |= {start + offset for offset in (3, id_end, id_end + 1, id_end + 8, len(event) - 2, len(event) - 1)}
        start += len(event)
        if number in (0, 1, 4, len(events) - 2, len(events) - 1):
            found.add(start)
    return sorted(found)


@pytest.mark.parametrize("path", CALLS)
def test_a_cut_anywhere_is_gone_on_with_where_it_was(tmp_path, path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            first = await ask(served.url, path)
            events = whole_events(await first.read())
            assert first.ended and b"".join(events) == first.body and len(events) > 4
            assert [id_of(event) for event in events] == [
                f"{first.headers['x-last-event-id'].removesuffix('-0')}-{number + 1}" for number in range(len(events))
            ]
            for place in places(events):
                cut = await ask(served.url, path)
                had = whole_events(await cut.read(place))
                cut.cut()
                last = id_of(had[-1]) if had else cut.headers["x-last-event-id"]
                again = await ask(served.url, path, last_event_id=last)
                if again.status == 204:
                    assert await again.read() == b"" and len(had) == len(events)
                    continue
                rest = whole_events(await again.read())
                assert again.ended and again.headers["x-last-event-id"] == last
                whole = await open_stream(served.url, path, method="GET", last_event_id=cut.headers["x-last-event-id"])
                assert had + rest == whole_events(await whole.read()), place
            done = len(places(events)) + 1
            num_asks = 2 if path == "/v1/completions" else 1
            assert len(served.router.requests) == num_asks * done
            await eventually(lambda: served.core.meters.active == 0)
            days = await served.core.accounts.usage(None, **FOR_EVER)
            assert [day.num_requests for day in days] == [done] and served.router.cancelled == []

    run(scenario())


def test_the_answer_goes_on_while_nobody_is_connected_and_is_charged_once(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            stream = await begin_and_leave(served)
            assert served.core.meters.active == 1
            served.router.go.set()
            await eventually(lambda: served.core.meters.active == 0)
            assert served.core.meters.requests["chat", "2xx"] == 1
            again = await ask(served.url, last_event_id=stream.headers["x-last-event-id"])
            assert b"[DONE]" in await again.read()
            (day,) = await served.core.accounts.usage(None, **FOR_EVER)
            (usage,) = (json.loads(event.split(b"data: ")[1])["usage"] for event in whole_events(again.body)[-2:-1])
            assert (day.num_requests, day.usage.completion_tokens) == (1, usage["completion_tokens"])
            assert served.router.cancelled == [] and len(served.router.requests) == 1
            assert served.core.meters.requests["resume", "2xx"] == 1

    run(scenario())


def test_who_comes_back_takes_over_from_a_connection_that_seems_to_stand(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            served.router.hold_after = 3
            stream = await ask(served.url)
            had = whole_events(await stream.read_until(b"reasoning_content"))
            second = await ask(served.url, last_event_id=id_of(had[0]))
            third = await ask(served.url, last_event_id=id_of(had[-1]))
            for old in (stream, second):
                await old.read()
                assert not old.ended
            served.router.go.set()
            rest = whole_events(await third.read())
            assert third.ended and b"[DONE]" in rest[-1]
            assert numbers_of(had + rest) == list(range(1, len(had + rest) + 1))
            await eventually(lambda: served.core.meters.active == 0)

    run(scenario())


def test_after_its_end_a_stream_is_kept_for_a_while_and_then_unknown(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            stream = await ask(served.url)
            events = whole_events(await stream.read())
            done = await ask(served.url, last_event_id=id_of(events[-1]))
            assert (done.status, await done.read()) == (204, b"")
            again = await ask(served.url, last_event_id=id_of(events[-2]))
            assert await again.read() == events[-1]
            await eventually(lambda: served.core.streams.num_streams == 1)
            served.core.streams.keep_s = 0.05
            last = await ask(served.url, last_event_id=id_of(events[-2]))
            await last.read()
            await eventually(lambda: served.core.streams.num_streams == 0)
            assert served.core.streams.num_bytes == 0
            late = await ask(served.url, last_event_id=id_of(events[-2]))
            assert late.status == 404
            error = json.loads(await late.read())["error"]
            assert "kept for 0.05 s" in error["message"] and error["code"] == "not_found"

    run(scenario())


def test_a_client_that_does_not_come_back_ends_its_request_and_pays_for_what_was_made(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            served.core.streams.keep_s = 0.1
            await begin_and_leave(served)
            await eventually(lambda: len(served.router.cancelled) == 1)
            await eventually(lambda: served.core.meters.active == 0 and served.core.streams.num_bytes == 0)
            (day,) = await served.core.accounts.usage(None, **FOR_EVER)
            assert (day.num_requests, day.usage.completion_tokens) == (1, 3)
            assert served.core.meters.requests["chat", "4xx"] == 1

    run(scenario())


def test_another_gateway_says_that_it_is_another(tmp_path):
    async def scenario():
        (tmp_path / "other").mkdir()
        async with http_gateway(reply, tmp_path) as served, http_gateway(reply, tmp_path / "other") as other:
            stream = await ask(served.url, "/v1/messages")
            await stream.read()
            answer = await ask(other.url, "/v1/messages", last_event_id=stream.headers["x-last-event-id"])
            error = json.loads(await answer.read())
            assert answer.status == 404 and error["error"]["type"] == "not_found_error"
            assert "begun at another gateway" in error["error"]["message"]
            assert other.core.meters.requests["resume", "4xx"] == 1 and other.router.requests == []

    run(scenario())


def test_a_full_stream_waits_and_goes_on_when_its_client_is_back(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "EACH_BYTES", 20_000)

    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            long = {"model": "deepseek-chat", "messages": [{"role": "user", "content": "long"}], "max_tokens": 300}
            served.router.hold_after = 10
            stream = await open_stream(served.url, CHAT, long | STREAM)
            await stream.read_until(b'"content":"t')
            stream.cut()
            await eventually(lambda: served.core.meters.disconnects == 1)
            served.router.go.set()
            shelf = served.core.streams
            await eventually(lambda: shelf.num_bytes > 19_000)
            # nothing of it is dropped, and no more is taken
            for _ in range(20):
                await asyncio.sleep(0)
            full = shelf.num_bytes
            assert full < 20_000 + 8192
            again = await ask(served.url, last_event_id=stream.headers["x-last-event-id"])
            events = whole_events(await again.read())
            numbers = numbers_of(events)
            assert numbers == list(range(1, len(numbers) + 1)) and b"[DONE]" in events[-1]
            # what was taken made room
            assert len(numbers) > 300
            assert shelf.num_bytes < 20_000 + 8192
            gone = await ask(served.url, last_event_id=stream.headers["x-last-event-id"])
            assert gone.status == 404 and "cannot go on after event 0" in (await gone.read()).decode()
            assert len(served.router.requests) == 1

    run(scenario())


def test_only_the_same_key_comes_back_and_others_learn_nothing(tmp_path):
    async def talk(gateway):
        owner, colleague, stranger = gateway.add_key(), gateway.add_key(), gateway.add_key(tenant="other")
        url = f"http://127.0.0.1:{gateway.port}"
        body = {"model": "baleen", "messages": USER, "max_tokens": 8}
        stream = await open_stream(url, CHAT, body | STREAM, key=owner)
        events = whole_events(await stream.read())
        begin = stream.headers["x-last-event-id"]
        name, number, _ = begin.split("-")
        answers = set()
        never = [
            f"{name}-{'0' * 24}-0",
            f"{name}-{number}-x",
            "1",
            f"{name}-{number}-0-0",
            f"{name}-{number.upper()}x-0",
        ]
        for key, event_id in [*((key, begin) for key in (colleague, stranger)), *((owner, one) for one in never)]:
            refused = await open_stream(url, CHAT, key=key, last_event_id=event_id)
            assert refused.status == 404
            answers.add(await refused.read())
        # nor is it another endpoint's
        refused = await open_stream(url, "/v1/responses", key=owner, last_event_id=begin)
        answers.add(await refused.read())
        assert len(answers) == 1
        nobody = await open_stream(url, CHAT, last_event_id=begin)
        assert b"No API key" in await nobody.read() and nobody.status == 401
        again = await open_stream(url, CHAT, key=owner, last_event_id=begin, method="GET")
        assert whole_events(await again.read()) == events
        assert len(gateway.ranks[0].submits) == 1

    keyed_scenario(tmp_path, talk)


def test_a_refusal_is_one_and_nothing_is_kept(tmp_path):
    async def scenario():
        async with http_gateway(lambda prompt: UnknownName("no such model"), tmp_path) as served:
            refused = await ask(served.url)
            assert refused.status == 404 and "no such model" in (await refused.read()).decode()
            await eventually(lambda: served.core.streams.num_streams == 0 and served.core.meters.active == 0)
            whole = await open_stream(served.url, CHAT, CALLS[CHAT] | {"resumable": True})
            assert whole.status == 400 and json.loads(await whole.read())["error"]["param"] == "resumable"
            get = await open_stream(served.url, CHAT, method="GET")
            assert (get.status, get.headers["allow"]) == (405, "post") and await get.read()

    run(scenario())


def test_silence_is_broken_by_lines_that_end_no_event(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            served.core.http = type(served.core.http)(keep_alive_s=0.05)
            served.router.hold_after = 2
            stream = await ask(served.url)
            await stream.read_until(b": keep-alive\n: keep-alive\n")
            assert b": keep-alive\n\n" not in stream.body
            served.router.go.set()
            body = await stream.read()
            numbers = numbers_of(whole_events(body))
            assert numbers == list(range(1, len(numbers) + 1))

    run(scenario())


def test_the_official_clients_read_streams_with_ids_and_silence_in_them(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            served.core.http = type(served.core.http)(keep_alive_s=0.05)
            served.router.hold_after = 5
            extra = {"resumable": True}
            openai = AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0)
            anthropic = AsyncAnthropic(base_url=served.url, api_key="x", max_retries=0)
            later = asyncio.get_running_loop().call_later

            stream = await openai.chat.completions.create(
                model="deepseek-chat", messages=USER, stream=True, extra_body=extra
            )
            text = ""
            async for chunk in stream:
                # silence begins with the first of them, and ends a few signs of life later
                later(0.3, served.router.go.set)
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
            served.router.go.clear()
            async with anthropic.messages.stream(
                model="deepseek-chat", messages=USER, max_tokens=100, extra_body=extra
            ) as message:
                async for _ in message:
                    later(0.3, served.router.go.set)
                other = await message.get_final_text()
            assert text == other and "größe" in text and served.core.streams.num_streams == 2
            await openai.close()
            await anthropic.close()

    run(scenario())


def test_a_gateway_that_leaves_ends_what_nobody_waits_for(tmp_path):
    async def scenario():
        async with http_gateway(reply, tmp_path) as served:
            await begin_and_leave(served)
            router, core = served.router, served.core
        assert router.cancelled and core.meters.active == 0 and core.accounts.meters.entries["cancelled"] == 1

    run(scenario())
