"""Block hashes: keyed, chained, and the same on every machine."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.blocks import (
    BLOCK_TOKENS,
    HASH_BYTES,
    blocks_for,
    chain_hashes,
    child_hash,
    pack_block,
    root_hash,
    shareable_blocks,
)

tokens_lists = st.lists(st.integers(0, 2**31 - 1), max_size=3 * BLOCK_TOKENS)


def test_blocks_for_counts_partial_blocks() -> None:
    assert [blocks_for(count) for count in (0, 1, 63, 64, 65, 128)] == [0, 1, 1, 1, 2, 2]


def test_shareable_blocks_leave_a_token_to_compute() -> None:
    assert [shareable_blocks(count) for count in (0, 1, 64, 65, 128, 129)] == [0, 0, 0, 1, 1, 2]


def test_packing_is_little_endian_int32_of_exactly_one_block() -> None:
    tokens = list(range(BLOCK_TOKENS))
    tokens[1] = 0x01020304
    packed = pack_block(tokens)
    assert len(packed) == 4 * BLOCK_TOKENS
    assert packed[4:8] == b"\x04\x03\x02\x01"
    for wrong in (tokens[:-1], [*tokens, 1], [2**31, *tokens[1:]]):
        with pytest.raises(struct.error):
            pack_block(wrong)


def test_hashes_have_16_bytes_and_stay_what_they_are() -> None:
    root = root_hash(b"model", b"tenant")
    hashes = chain_hashes(root, list(range(2 * BLOCK_TOKENS)))
    assert {len(value) for value in (root, *hashes)} == {HASH_BYTES}
    # other processes, and caches that outlive a release, compare these: a change must be deliberate
    assert root.hex() == "b2b48c959044ecd2c252a362f9a83077"
    assert hashes[1].hex() == "bb696c507969511fab559f1b990a9225"


@given(tokens_lists)
def test_chain_is_the_repeated_child(tokens: list[int]) -> None:
    root = root_hash(b"model", b"")
    parent, expected = root, []
    for start in range(0, len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS, BLOCK_TOKENS):
        parent = child_hash(parent, pack_block(tokens[start : start + BLOCK_TOKENS]))
        expected.append(parent)
    assert chain_hashes(root, tokens) == expected


@given(st.lists(st.integers(0, 2**31 - 1), min_size=BLOCK_TOKENS, max_size=3 * BLOCK_TOKENS), st.data())
def test_a_changed_token_changes_its_block_and_all_after_it(tokens: list[int], data: st.DataObject) -> None:
    full = len(tokens) // BLOCK_TOKENS
    place = data.draw(st.integers(0, full * BLOCK_TOKENS - 1))
    changed = [*tokens[:place], tokens[place] ^ 1, *tokens[place + 1 :]]
    root = root_hash(b"model", b"")
    before, after = chain_hashes(root, tokens), chain_hashes(root, changed)
    same = [old == new for old, new in zip(before, after, strict=True)]
    assert same == [block < place // BLOCK_TOKENS for block in range(full)]


def test_model_and_salt_are_part_of_every_hash() -> None:
    tokens = [5] * BLOCK_TOKENS
    roots = [root_hash(b"model", b""), root_hash(b"model", b"a"), root_hash(b"mode", b"la"), root_hash(b"other", b"")]
    assert len({chain_hashes(root, tokens)[0] for root in roots}) == len(roots)
