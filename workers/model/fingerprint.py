"""The identity of a checkpoint's content: what a cached block must have been computed with."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import torch

from workers.model.checkpoint import Checkpoint

FINGERPRINT_BYTES = 16
_SAMPLED_TENSORS = 512
_SAMPLED_BYTES = 8 << 20
_PIECES = 4


def fingerprint(checkpoint: Checkpoint) -> bytes:
    """16 bytes that differ between checkpoints of different dimensions, tensors or content.

    Hashes (BLAKE2b) the model's dimensions, the table of names, shapes and dtypes, and a sample of the numbers: at
    most 8 MiB, from up to 512 tensors spread evenly over the sorted names, four pieces of each. A checkpoint below
    that size is hashed whole; of a large one, a change that touches few tensors can go unseen. The same for every
    rank, and for every way of cutting the same tensors into shards. Compute and cache dtype are not part of it.
    """
    digest = hashlib.blake2b(b"baleen checkpoint 1\0", digest_size=FINGERPRINT_BYTES)
    digest.update(json.dumps(dataclasses.asdict(checkpoint.spec), sort_keys=True).encode())
    names = sorted(checkpoint.tensors)
    for name in names:
        stored = checkpoint.tensors[name]
        digest.update(f"{name} {stored.shape} {stored.dtype}\n".encode())
    count = min(len(names), _SAMPLED_TENSORS)
    for place in range(count):
        name = names[place * len(names) // count]
        for piece in _sample(checkpoint.read(name), _SAMPLED_BYTES // count):
            digest.update(piece)
    return digest.digest()


def _sample(tensor: torch.Tensor, num_bytes: int) -> list[bytes]:
    """The tensor's bytes, or `_PIECES` evenly spread pieces of them that make `num_bytes` together."""
    raw = tensor.reshape(-1).view(torch.uint8)
    if raw.numel() <= num_bytes:
        return [raw.numpy().tobytes()]
    length = num_bytes // _PIECES
    starts = [place * (raw.numel() - length) // (_PIECES - 1) for place in range(_PIECES)]
    return [raw[start : start + length].numpy().tobytes() for start in starts]
