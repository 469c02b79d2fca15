"""Checks of the tensors that a launcher is given."""

from __future__ import annotations

import torch


def check_tensor(
    x: torch.Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype, *, row_stride: bool = False
) -> None:
    """Raise ValueError unless x has this shape and dtype and lies as the kernel reads it.

    row_stride: x has two dimensions, and its rows may lie apart; else x is contiguous.
    """
    laid_out = x.dim() == 2 and (x.stride(1) == 1 or x.shape[1] <= 1) if row_stride else x.is_contiguous()
    if tuple(x.shape) != shape or x.dtype != dtype or not laid_out:
        raise ValueError(
            f"{name} is {tuple(x.shape)} {x.dtype} with strides {x.stride()}, expected {shape} {dtype}, "
            + ("contiguous by row" if row_stride else "contiguous")
        )
