"""Blocks of a GPU's cache between two ranks on it: the tokens of one rank, and no byte before its step is over."""

import pytest
import torch

from baleen.model_spec import model_spec_from_config
from tests.support.device_transfer import device_rank, move, tokens_of
from tests.support.golden import golden
from tests.support.models import golden_recipe
from workers.cache.device_bytes import DeviceBytes
from workers.cache.device_tensors import DeviceCache

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


def test_a_block_is_read_once_the_step_is_over_that_computes_it(cuda):
    spec = model_spec_from_config(golden_recipe(NAME).full_config())
    cache = DeviceCache(spec, 2, "float8", cuda)
    outside = DeviceBytes(cache, "f")
    torch.cuda.synchronize()
    torch.cuda._sleep(CYCLES)
    for part in cache.by_block():
        part[:, 1].fill_(7)
    cache.step_queued()
    is_computed = outside.mark()
    with outside.open(1) as block:
        is_computed()
        block.load()
        assert set(block.views[0]) == {7}
        block.views[0][:] = bytes(range(256)) * (len(block.views[0]) // 256)
        block.store()
    assert cache.latent[0][64].tolist() == [place % 256 for place in range(656)]
    assert not cache.latent[0][:64].any()
