"""Hashes of a prompt, in turns."""

import asyncio

import pytest

from baleen.blocks import chain_hashes, root_hash
from router.choice import BLOCKS_AT_ONCE, hash_in_turns

ROOT = root_hash(b"model", b"tenant")


@pytest.mark.parametrize("num_blocks", [1, BLOCKS_AT_ONCE, BLOCKS_AT_ONCE + 1, 2048])
def test_a_prompt_hashed_in_turns_has_the_hashes_of_its_chain(num_blocks):
    token_ids = [number * 7919 % 1000 for number in range(num_blocks * 64 + 5)]
    assert asyncio.run(hash_in_turns(ROOT, token_ids, num_blocks)) == chain_hashes(ROOT, token_ids)


def test_others_have_turns_while_a_long_prompt_is_hashed():
    async def scenario():
        hashing = asyncio.create_task(hash_in_turns(ROOT, [5] * 64 * 10 * BLOCKS_AT_ONCE, 10 * BLOCKS_AT_ONCE))
        turns = 0
        while not hashing.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(scenario()) >= 9
