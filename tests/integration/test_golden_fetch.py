"""The golden tokens from a rank that fetched the prompt's prefix from a third one, through router, ranks and Redis, all
of them processes.
"""

import asyncio

import pytest

from baleen.blocks import shareable_blocks
from tests.support.cluster_processes import GroupPlan, running_cluster
from tests.support.golden_client import golden_client
from tests.support.models import golden_cases, make_golden_checkpoint

pytestmark = pytest.mark.slow

GOLDEN = "dev_bf16.golden"
ANY_RANK = {"near_tie": 1e6, "near_tie_s": 1e6, "handoff_s": 1e-6, "transfer_bytes_per_s": 1e12, "short_tail_tokens": 0}
"""All ranks are as good as each other, wherever a prefix lies, and moving blocks costs nothing."""
MOST_TRIES = 40
"""At least one in four second calls goes to ranks that lack the prefix."""

POOLS = {
    "into a prefill rank": [
        GroupPlan(name="prompts", role="prefill", ep=2),
        GroupPlan(name="tokens", role="decode", ep=2),
    ],
    "into a mixed rank": [GroupPlan(name="tokens", role="mixed", ep=2)],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_golden_checkpoint(GOLDEN, tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.mark.parametrize("pool", POOLS)
def test_a_fetched_prefix_changes_no_token(pool, checkpoint, tmp_path):
    case = max(golden_cases(GOLDEN), key=lambda case: len(case["prompt"]))
    shared = 64 * shareable_blocks(len(case["prompt"]))
    assert shared

    async def scenario(running):
        async with golden_client(running.address) as client:
            for turn in range(MOST_TRIES):
                # what the first call of a turn leaves on its rank is what the second may fetch
                for _ in range(2):
                    served = await client.case(case, cache_salt=f"salt-{turn}")
                    served.require_golden(case)
                    if served.fetched:
                        assert (served.fetched, served.attempts) == (shared, 1)
                        return served.story
        raise AssertionError(f"nothing was fetched in {MOST_TRIES} turns")

    with running_cluster(
        tmp_path, checkpoint, POOLS[pool], policy="cost", parameters=ANY_RANK, limits={"least_fetch_s": 60.0}
    ) as running:
        story = asyncio.run(asyncio.wait_for(scenario(running), 200))
    assert any(f"fetched {shared // 64} blocks in" in event for event in story)
