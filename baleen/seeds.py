"""The seed of each completion of a request, the same wherever the completion runs."""

from __future__ import annotations

from hashlib import blake2b

from baleen.sampling import MAX_SEED


def completion_seed(seed: int, index: int) -> int:
    """Seed of completion `index` of a submission with `seed`, from 0 to MAX_SEED.

    Completion 0 keeps the seed, so the first of n completions is the one that n=1 gives, and a single completion can
    be continued on its own by a submission with n=1 and its seed.
    """
    if index == 0:
        return seed
    message = seed.to_bytes(8, "little") + index.to_bytes(8, "little")
    digest = blake2b(message, digest_size=8, person=b"baleen.seed").digest()
    return int.from_bytes(digest, "little") & MAX_SEED
