"""`baleen explain` against real routers: which of them knows, what is shown, and what nobody knows."""

import pytest

from baleen.errors import BaleenError, UnknownName
from cluster.commands.explain import ask_routers, story
from tests.support.fake_rank import FakeRank
from tests.support.router_client import NO_SHORT_CUT, PROMPT, request, router_with, run


def test_the_router_that_served_it_tells_the_whole_story():
    async def scenario():
        ranks = [FakeRank(role="prefill"), FakeRank(role="decode"), FakeRank(role="decode", rank=1)]
        async with router_with(ranks, parameters=NO_SHORT_CUT) as client, router_with([FakeRank()]) as other:
            await client.generate(request(PROMPT, max_tokens=3, request_id="mine"))
            addresses = [other.address, client.address]
            text = story(await ask_routers(addresses, "mine"))
            with pytest.raises(UnknownName, match="request 'theirs' is known to no router"):
                await ask_routers(addresses, "theirs")
            with pytest.raises(BaleenError, match=r"known to no router that answers; 127\.0\.0\.1:1: "):
                await ask_routers(["127.0.0.1:1"], "mine")
        lines = text.splitlines()
        assert lines[0] == "request mine: 200 prompt tokens"
        assert [line.split(":")[0] for line in lines if line and line[0].isalpha()][1:3] == ["prefill", "decode"]
        assert sum("  chosen" in line for line in lines) == 2
        tables = [line.split() for line in lines if line.startswith("  rank")]
        assert tables[0][:3] == ["rank", "cost", "compute"] and tables[0][-3:] == ["transfer", "cached", "tok"]
        others = [line for line in lines if line.startswith("  other policies: least_loaded ")]
        assert len(others) == 2 and all(", round_robin " in line for line in others)
        assert lines[-1].startswith("outcome: finished; tokens: 200 prompt") and "3 completion" in lines[-1]
        times = [
            float(line.split()[0]) for line in lines if " s  " in line and line[0] == " " and line.split()[1] == "s"
        ]
        assert len(times) >= 2 and times == sorted(times)

    run(scenario())


def test_a_request_that_runs_has_no_outcome_yet():
    async def scenario():
        rank = FakeRank()
        rank.token_delay_s = 0.01
        async with router_with([rank]) as client:
            call = aiter(client.call(request(PROMPT, max_tokens=50, request_id="mine")))
            await anext(call)
            text = story(await ask_routers([client.address], "mine"))
            assert text.splitlines()[-1] == "outcome: it runs"
            async for _ in call:
                pass
            assert "outcome: finished" in story(await ask_routers([client.address], "mine"))

    run(scenario())
