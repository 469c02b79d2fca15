"""What a gateway tells operators: routers with their ranks, and which ranks served a request."""

import pytest

from baleen.errors import UnknownName
from baleen.wire.channel import open_channel
from router.gateway.cluster_view import cluster, served_by
from tests.support.fake_rank import FakeRank
from tests.support.router_client import NO_SHORT_CUT, PROMPT, request, router_with, run


def test_routers_and_their_ranks_are_seen_and_silent_ones_named():
    async def scenario():
        ranks = [FakeRank(role="prefill"), FakeRank(role="decode")]
        async with (
            router_with(ranks, parameters=NO_SHORT_CUT) as client,
            open_channel(client.address) as channel,
            open_channel("127.0.0.1:1") as nobody,
        ):
            answer = await client.generate(request(PROMPT))
            seen = await cluster([("a", channel), ("b", nobody)])
            told = await served_by(answer.request_id, [nobody, channel])
            with pytest.raises(UnknownName, match="'absent'"):
                await served_by("absent", [nobody, channel])
        router, silent = seen["routers"]
        assert silent == {"address": "b", "error": "gives no answer (UNAVAILABLE)"}
        assert (router["address"], router["num_ranks"], router["num_admitted"]) == ("a", 2, 1)
        assert sorted(rank["role"] for rank in router["ranks"]) == ["decode", "prefill"]
        assert all(0 < rank["free_blocks"] <= rank["total_blocks"] for rank in router["ranks"])
        assert [one["role"] for one in told["ranks"]] in (["decode", "prefill"], ["prefill", "decode"])
        assert told["outcome"].startswith("finished")

    run(scenario())
