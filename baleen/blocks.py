"""The identity of a cached block: 64 tokens, named by a hash that chains back to the model and the cache salt.

    root  = blake2b(len(fingerprint) as 8 bytes | fingerprint | salt)
    child = blake2b(64 tokens as little-endian int32, key=parent)

Every digest has 16 bytes. The parent is the key, so whoever lacks the salt can neither predict nor test a hash. Ranks
and routers compute the same values; both treat a hash as a name only, never as proof that the tokens are equal.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import NewType

BLOCK_TOKENS = 64
"""Tokens of one block: the unit of caching, indexing and transfer."""

HASH_BYTES = 16

BlockHash = NewType("BlockHash", bytes)
"""Name of a block together with everything before it."""

_PACK_TOKENS = struct.Struct(f"<{BLOCK_TOKENS}i").pack
_ROOT_PERSON = b"baleen.root"


def blocks_for(num_tokens: int) -> int:
    """Blocks that hold `num_tokens` tokens, the last one perhaps in part."""
    return -(-num_tokens // BLOCK_TOKENS)


def shareable_blocks(num_tokens: int) -> int:
    """Most blocks that a request of `num_tokens` tokens may share: one token at least is left to compute."""
    return max(0, (num_tokens - 1) // BLOCK_TOKENS)


def pack_block(token_ids: Sequence[int]) -> bytes:
    """Exactly 64 token ids as 256 bytes of little-endian int32. Raises struct.error on another count or range."""
    return _PACK_TOKENS(*token_ids)


def root_hash(fingerprint: bytes, salt: bytes) -> BlockHash:
    """Hash before the first block: `fingerprint` names the model and cache format, `salt` the tenant."""
    message = len(fingerprint).to_bytes(8, "little") + fingerprint + salt
    return BlockHash(blake2b(message, digest_size=HASH_BYTES, person=_ROOT_PERSON).digest())


def child_hash(parent: BlockHash, packed: bytes) -> BlockHash:
    """Hash of the block that follows `parent` and holds the `pack_block` bytes `packed`."""
    return BlockHash(blake2b(packed, digest_size=HASH_BYTES, key=parent).digest())


def chain_hashes(root: BlockHash, token_ids: Sequence[int]) -> list[BlockHash]:
    """Hashes of the full blocks of `token_ids`, first block first; a partial block at the end has none."""
    hashes: list[BlockHash] = []
    parent: bytes = root
    for start in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        packed = _PACK_TOKENS(*token_ids[start : start + BLOCK_TOKENS])
        parent = blake2b(packed, digest_size=HASH_BYTES, key=parent).digest()
        hashes.append(BlockHash(parent))
    return hashes
