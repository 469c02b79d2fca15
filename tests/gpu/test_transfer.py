"""Blocks of a GPU's cache between two ranks on it: the tokens of one rank, and no step that goes on unnoticed."""

import pytest
import torch

from tests.support.device_transfer import device_rank, move, tokens_of
from tests.support.golden import golden

pytestmark = pytest.mark.gpu

NAME = "dev_bf16.golden"
CYCLES = 200_000_000
"""A tenth of a second, for which the device is kept busy."""


@pytest.mark.parametrize("cache_dtype", ["float8", "bfloat16"])
def test_a_prompt_that_another_rank_computed_gives_the_tokens_of_one_rank(cuda, golden_directory, cache_dtype):
    lone, prefill, decode = (device_rank(golden_directory(NAME), cuda, cache_dtype) for _ in range(3))
    prompt = max((case["prompt"] for case in golden(NAME)["cases"]), key=len)[:140]
    ticket, failure = move(prefill, decode, prompt)
    assert failure is None
    assert tokens_of(decode, prompt, ticket) == tokens_of(lone, prompt)
    assert decode.outputs[-1].num_cached_tokens == 128
    for rank in (lone, prefill, decode):
        rank.transport.close()


def test_a_step_is_over_when_the_loop_goes_on_though_nothing_was_sampled(cuda, golden_directory):
    rank = device_rank(golden_directory(NAME), cuda, "float8")
    forward, queued = rank.model._model.forward, []

    def slow(step):
        torch.cuda._sleep(CYCLES)
        logits = forward(step)
        queued.append(torch.cuda.Event())
        queued[-1].record()
        return logits

    rank.model._model.forward = slow
    rank.prefill("p", list(range(10, 75)))
    rank.steps(1)
    assert len(queued) == 1 and queued[0].query()
    rank.transport.close()
