"""Router processes that are killed under a gateway: what runs over HTTP goes on with exactly what would have come."""

import asyncio
import json

import pytest

from router.gateway.accounts.sqlite_store import SqliteStore
from tests.support.event_stream import open_stream
from tests.support.gateway_server import DAYS, add_key
from tests.support.router_client import eventually
from tests.support.small_cluster import small_cluster
from tests.support.tiny_checkpoint import make_tiny

pytestmark = pytest.mark.slow

NUM_BLOCKS = 64
MESSAGES = [{"role": "user", "content": "A json of the whale. " * 6}]
BODIES = {
    "greedy": {"temperature": 0.0, "ignore_eos": True},
    "seeded": {"seed": 11, "logprobs": True, "ignore_eos": True, "frequency_penalty": 0.5},
    "two": {"seed": 5, "n": 2, "ignore_eos": True},
    "form": {"seed": 3, "response_format": {"type": "json_object"}},
}


class Stream:
    """One chat. num_events: so far. wait_for: until it has so many more, or has ended."""

    def __init__(self, url, key, options):
        body = {"model": "baleen", "messages": MESSAGES, "max_tokens": 150, "stream": True, **options}
        self.ended = False
        self.num_events = 0
        self.choices = {}
        self.usage = None
        self._task = asyncio.create_task(self._read(url, key, body))

    async def _read(self, url, key, body):
        stream = await open_stream(url, "/v1/chat/completions", body, key=key)
        assert stream.status == 200, await stream.read()
        taken = 0
        while not stream.ended:
            before = len(stream.body)
            await stream.read(before + 1)
            *lines, _ = stream.body[taken:].split(b"\n")
            for line in lines:
                taken += len(line) + 1
                if line.startswith(b"data: {"):
                    self._take(json.loads(line[6:]))
        stream.cut()
        self.ended = True

    def _take(self, event):
        assert "error" not in event, event
        self.num_events += 1
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            seen = self.choices.setdefault(choice["index"], {"text": "", "tokens": [], "logprobs": [], "finish": []})
            seen["text"] += choice["delta"].get("content") or ""
            for one in (choice.get("logprobs") or {}).get("content") or []:
                seen["tokens"].append(one["token"])
                seen["logprobs"].append(one["logprob"])
            if choice["finish_reason"]:
                seen["finish"].append(choice["finish_reason"])

    async def goes_on(self, count):
        """Until it has so many more events, or has ended."""
        wanted = self.num_events + count
        await eventually(lambda: self.num_events >= wanted or self.ended or self._task.done(), timeout_s=60.0)

    async def end(self):
        await self._task
        return self.choices


def test_streams_outlive_every_router(tmp_path):
    key = add_key(tmp_path / "accounts.sqlite")

    def charged():
        store = SqliteStore(tmp_path / "accounts.sqlite")
        days = store.usage(None, **DAYS)
        store.close()
        return sum(day.num_requests for day in days), sum(day.usage.completion_tokens for day in days)

    async def scenario(cluster, url):
        begin = {name: Stream(url, key, options) for name, options in BODIES.items()}
        whole = {name: await stream.end() for name, stream in begin.items()}
        assert all(one["finish"] in (["length"], ["stop"]) for choices in whole.values() for one in choices.values())
        stop = whole["seeded"][0]["text"][-30:-20]
        streams = {name: Stream(url, key, options) for name, options in BODIES.items()}
        for number, router in enumerate(cluster.routers):
            for stream in streams.values():
                await stream.goes_on(5)
            assert not all(stream.ended for stream in streams.values())
            router.kill()
            if number == 0:
                # before the gateway can know of the loss
                streams["stop"] = Stream(url, key, {**BODIES["seeded"], "stop": stop})
        cluster.restart_router(1, {})
        again = {name: await stream.end() for name, stream in streams.items()}
        stopped = again.pop("stop")[0]
        for name, choices in whole.items():
            for index, choice in choices.items():
                other = again[name][index]
                # what one router had decoded is prefilled for the next: the last digits differ
                assert other.pop("logprobs") == pytest.approx(choice.pop("logprobs"), abs=1e-3)
                assert other == choice, name
        for name, stream in begin.items():
            for kind in ("prompt_tokens", "completion_tokens"):
                assert streams[name].usage[kind] == stream.usage[kind]
        assert stopped["finish"] == ["stop"]
        text = whole["seeded"][0]["text"]
        assert stopped["text"] == text[: text.index(stop)]
        told = sum(stream.usage["completion_tokens"] for stream in [*begin.values(), *streams.values()])
        await eventually(lambda: charged() == (len(begin) + len(streams), told))
        async with cluster.loads() as ranks:
            await eventually(
                lambda: all(
                    rank.load is not None
                    and (rank.load.num_running, rank.load.num_waiting, rank.load.free_blocks) == (0, 0, NUM_BLOCKS)
                    for rank in ranks
                )
            )

    with (
        small_cluster(
            make_tiny(tmp_path / "tiny"),
            tmp_path,
            roles=["prefill", "decode"],
            routers=[{}, {}],
            cache={"num_blocks": NUM_BLOCKS},
            engine={"audit": "step"},
        ) as cluster,
        cluster.gateway(keys={"mode": "required"}) as url,
    ):
        asyncio.run(asyncio.wait_for(scenario(cluster, url), 120))
