"""Log-probabilities of prompts at the router, over real gRPC: each place once and in order, whoever computes it."""

import grpc
import pytest

from router import attempt
from tests.support.fake_rank import FakeRank, fake_tokens
from tests.support.fake_scores import fake_scores
from tests.support.router_client import (
    NO_SHORT_CUT,
    PROMPT,
    Answer,
    at_rest,
    in_turn,
    request,
    router_with,
    run,
    status_of,
)

EXPECTED = fake_scores(PROMPT, 1, len(PROMPT), 2)


def scored(**sampling):
    return request(PROMPT, prompt_logprobs=2, **sampling)


def test_the_rank_that_computes_a_prompt_reports_it(monkeypatch):
    monkeypatch.setattr(attempt, "MOST_PLACES", 30)

    async def scenario():
        rank = FakeRank()
        async with router_with([rank]) as client:
            answer = await client.generate(scored(n=2))
            assert answer.prompt == EXPECTED
            parts = [delta.prompt_logprobs for delta in answer.deltas if delta.HasField("prompt_logprobs")]
            assert max(len(part.logprobs) for part in parts) == 30
            assert answer.tokens[0] == fake_tokens(PROMPT, 8) and set(answer.finish) == {0, 1}
            assert not (await client.generate(request(PROMPT))).prompt.logprobs

    run(scenario())


@pytest.mark.parametrize("num_held", [0, 2, 3])
def test_a_prefill_rank_reports_what_it_computes_and_the_decode_rank_the_rest(num_held):
    async def scenario():
        prefill, decode = FakeRank(role="prefill"), FakeRank(role="decode")
        decode.num_held = num_held
        decode.num_cached_tokens = 192
        async with router_with([prefill, decode], parameters=NO_SHORT_CUT) as client:
            answer = await client.generate(scored())
            assert answer.prompt == EXPECTED
            assert answer.usage[0].cached_tokens == 0
            (wanted,), (submit,) = prefill.prefills, decode.submits
            assert (wanted.prompt_logprobs, wanted.prompt_logprobs_from) == (2, 1)
            assert submit.prompt_logprobs_from == 193 and submit.ticket
            await at_rest(prefill, decode)

    run(scenario())


def test_a_prefill_that_fails_half_way_is_gone_on_with():
    async def scenario():
        prefill, decode = FakeRank(role="prefill"), FakeRank(role="decode")
        prefill.fail_prefill, prefill.num_scored = "cut", 70
        async with router_with([prefill, decode], parameters=NO_SHORT_CUT) as client:
            assert (await client.generate(scored())).prompt == EXPECTED
            assert decode.submits[0].prompt_logprobs_from == 71

    run(scenario())


def test_a_request_that_moves_repeats_nothing():
    async def scenario():
        first, second = in_turn([FakeRank(), FakeRank()])
        first.pause()
        async with router_with([first, second], policy="round_robin") as client:
            answer = Answer()
            async for message in client.call(scored()):
                answer.take(message)
                if answer.prompt == EXPECTED and not second.submits:
                    await first.kill()
            assert answer.prompt == EXPECTED and answer.tokens == {0: fake_tokens(PROMPT, 8)}
            assert second.submits[0].prompt_logprobs_from == len(PROMPT)

    run(scenario())


def test_a_rank_that_knows_nothing_of_it_is_not_believed():
    async def scenario():
        rank, other = in_turn([FakeRank(), FakeRank()])
        rank.num_scored = 0
        async with router_with([rank, other], policy="round_robin") as client:
            answer = await client.generate(scored())
            assert answer.prompt == EXPECTED and answer.tokens == {0: fake_tokens(PROMPT, 8)}
            assert len(rank.submits) == len(other.submits) == 1

    run(scenario())


def test_what_is_out_of_range_is_refused():
    async def scenario():
        async with router_with([FakeRank()]) as client:
            for wrong in (request(PROMPT, prompt_logprobs=21), request(PROMPT, max_tokens=0)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await client.generate(wrong)
                assert status_of(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequest")

    run(scenario())
