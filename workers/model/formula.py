"""Numbers of made checkpoints: a hash of tensor name and place, so that no file of weights need be shipped.

All arithmetic is modulo 2^32. For the tensor NAME and the row-major index k:

    h = k * 2654435761 + salt          salt: crc32 of "SEED:NAME" (scaled) or of "NAME" (flat)
    h ^= h >> 16;  h *= 2246822519;  h ^= h >> 13;  h *= 3266489917;  h ^= h >> 16
    u = h / 2^31 - 1                   float64, from -1 to 1
    value = float32(base + amplitude * u)

    kind         base   amplitude, scaled             amplitude, flat
    norm         1      0.2                           0.2
    bias         0      0.1                           0.1
    embedding    0      1                             0.12
    weight       0      2 / sqrt(number of columns)   0.12
"""

from __future__ import annotations

import math
import zlib
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from workers.model.names import Kind, TensorRule

Formula = Literal["scaled", "flat"]

_PIECE = 1 << 20


def formula_tensor(rule: TensorRule, *, formula: Formula, seed: int) -> torch.Tensor:
    """The float32 values of one tensor. `flat` does not depend on the seed."""
    salt = zlib.crc32((f"{seed}:{rule.name}" if formula == "scaled" else rule.name).encode())
    base, amplitude = _range(rule, formula)
    values = np.empty(rule.num_elements, dtype=np.float32)
    # Pieces bound the memory of the float64 steps, and stay in the processor's cache.
    for start in range(0, values.size, _PIECE):
        stop = min(start + _PIECE, values.size)
        values[start:stop] = base + amplitude * _uniform(start, stop, salt)
    return torch.from_numpy(values).view(rule.shape)


def _range(rule: TensorRule, formula: Formula) -> tuple[float, float]:
    if rule.kind is Kind.NORM:
        return 1.0, 0.2
    if rule.kind is Kind.BIAS:
        return 0.0, 0.1
    if formula == "flat":
        return 0.0, 0.12
    return 0.0, 1.0 if rule.kind is Kind.EMBEDDING else 2.0 / math.sqrt(rule.shape[-1])


def _uniform(start: int, stop: int, salt: int) -> npt.NDArray[np.float64]:
    # uint32 arrays wrap silently, which is the arithmetic modulo 2^32 that is wanted.
    h = np.arange(start, stop, dtype=np.uint64).astype(np.uint32)
    h *= np.uint32(2654435761)
    h += np.uint32(salt)
    h ^= h >> np.uint32(16)
    h *= np.uint32(2246822519)
    h ^= h >> np.uint32(13)
    h *= np.uint32(3266489917)
    h ^= h >> np.uint32(16)
    return h.astype(np.float64) / 2147483648.0 - 1.0
