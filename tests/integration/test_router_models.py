"""A rank is lost while a cluster's weights are replaced: its requests go on with their own model, or end with it."""

import grpc
import pytest

from router.proxy import ProxyLimits
from tests.support.fake_rank import FakeRank, fake_tokens
from tests.support.router_client import PROMPT, at_rest, request, router_with, run, status_of

LIMITS = ProxyLimits(rank_wait_s=0.3)


def rank(model, speed):
    """A rank of a model; the faster model is chosen first."""
    made = FakeRank()
    made.info.model_fingerprint = model
    made.prefill_tokens_per_s = speed
    return made


def test_it_goes_on_with_the_model_that_it_began_with():
    async def scenario():
        lost, left, other = rank("aa", 1e6), rank("aa", 5e5), rank("bb", 1e3)
        lost.die_after = 5
        async with router_with([lost, left, other], limits=LIMITS) as client:
            answer = await client.generate(request(PROMPT, max_tokens=12))
            assert answer.tokens == {0: fake_tokens(PROMPT, 12)}
            assert len(left.submits) == 1 and other.submits == []
            await at_rest(left, other)

    run(scenario())


@pytest.mark.parametrize("tokens_before", [0, 5])
def test_what_another_model_made_is_no_prompt_for_the_next(tokens_before):
    async def scenario():
        lost, other = rank("aa", 1e6), rank("bb", 1e3)
        lost.die_after = tokens_before
        async with router_with([lost, other], limits=LIMITS) as client:
            if not tokens_before:
                assert (await client.generate(request(PROMPT, max_tokens=12))).tokens == {0: fake_tokens(PROMPT, 12)}
                return
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await client.generate(request(PROMPT, max_tokens=12))
            assert status_of(failed.value) == (grpc.StatusCode.UNAVAILABLE, "NotReady")
            assert "no rank serves the model that the request began with" in failed.value.details()
            assert other.submits == []

    run(scenario())
