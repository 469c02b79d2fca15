"""The Hadamard rotation as a product of matrices, inside kernels that go on with its result.

Entries are 1 and -1, exact in bfloat16, and so are the products; the sum is float32 and is scaled once.
"""

from __future__ import annotations

import functools

import torch

from kernels.quant.reference import hadamard_matrix


@functools.cache
def hadamard_signs(size: int, device: torch.device) -> torch.Tensor:
    """Signs of the Hadamard matrix in Sylvester order, [size, size] bfloat16, once a device."""
    return hadamard_matrix(size).sign().to(device, torch.bfloat16)
