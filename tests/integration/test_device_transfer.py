"""Blocks of a device's cache between ranks, in both layouts: the tokens of one rank, also where a block is damaged."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from tests.support.device_transfer import bytes_of, device_rank, move, tokens_of
from tests.support.golden import golden
from tests.support.models import make_golden_checkpoint
from tests.support.transfer import cable

pytest.importorskip("triton", reason="triton is not installed on this platform")

NAME = "dev_bf16.golden"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_golden_checkpoint(NAME, tmp_path_factory.mktemp("model"))


@pytest.fixture
def ranks(directory):
    """Ranks of a record format, whose transports end with the test."""
    with ExitStack() as stack:

        def make(count, cache_dtype="float8"):
            made = [device_rank(directory, CPU, cache_dtype) for _ in range(count)]
            for rank in made:
                stack.callback(rank.transport.close)
            return made

        yield make


def prompt_of_two_blocks():
    prompt = max((case["prompt"] for case in golden(NAME)["cases"]), key=len)
    return prompt[:140]


@pytest.mark.parametrize("cache_dtype", ["float8", "bfloat16"])
def test_a_prompt_that_another_rank_computed_gives_the_tokens_of_one_rank(ranks, cache_dtype):
    lone, prefill, decode = ranks(3, cache_dtype)
    prompt = prompt_of_two_blocks()
    ticket, failure = move(prefill, decode, prompt)
    assert failure is None
    assert tokens_of(decode, prompt, ticket) == tokens_of(lone, prompt)
    assert decode.outputs[-1].num_cached_tokens == 128 and lone.outputs[-1].num_cached_tokens == 0
    assert bytes_of(prefill, prompt) == bytes_of(decode, prompt) != []
    assert prefill.busy_blocks == decode.busy_blocks == 0


def test_a_damaged_block_is_computed_again(ranks):
    lone, prefill, decode = ranks(3)
    prompt = prompt_of_two_blocks()
    block_bytes = decode.transport.counts.block_bytes
    with cable(decode.transport.address, flip_at=block_bytes + block_bytes // 2) as address:
        ticket, failure = move(prefill, decode, prompt, through=address)
    assert failure and decode.transport.counts.damaged == 1
    assert tokens_of(decode, prompt, ticket) == tokens_of(lone, prompt)
    assert decode.outputs[-1].num_cached_tokens == 64
    decode.step_until(lambda: decode.busy_blocks == 0)


def test_ranks_of_other_layouts_refuse_each_other_and_both_are_named(ranks):
    (prefill,), (decode,) = ranks(1, "float8"), ranks(1, "bfloat16")
    _, failure = move(prefill, decode, prompt_of_two_blocks())
    assert f"receiver {decode.transport.address} has model" in failure
    assert "triton|float8, 3 layers of 41984 + 8448 bytes per block" in failure
    assert "triton|bfloat16, 3 layers of 73728 + 8448 bytes per block" in failure
