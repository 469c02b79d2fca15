"""What one rank of an expert-parallel group does with rows that reached it: its experts, and their weighted sum.

Legend: R rows that arrived, one for each token that has experts here; K experts per token, D hidden size.
"""

from __future__ import annotations

import torch

from kernels.moe.combine import combine_pairs
from kernels.moe.experts import expert_mlps
from kernels.moe.order import order_pairs
from kernels.quant.scaled import Scaled


def rank_answers(
    rows_RD: Scaled,
    ids_RK: torch.Tensor,
    weights_RK: torch.Tensor,
    local_experts: range,
    gate_up: Scaled,
    down: Scaled,
    *,
    expected_pairs: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """This rank's part of each row's sum, [R, D] in `dtype` (the experts' or float32); the parts add up to the layer.

    rows, gate_up, down: as `expert_mlps` takes them; weights stay as stored. ids: int64 or int32, contiguous; those
    that are not in `local_experts` are other ranks', and -1 in rows that are padding. weights: float32, and 0 for every
    such id. A padding row may hold anything, and its answer is zeros. expected_pairs: about how many ids are local, all
    of them if None; it decides the size of tiles. Nothing here waits for the device, and all shapes are those of the
    arguments, so that a CUDA graph can hold it with rows of a fixed capacity.
    """
    assert weights_RK.shape == ids_RK.shape, f"weights {tuple(weights_RK.shape)} of ids {tuple(ids_RK.shape)}"
    assert rows_RD.values.shape[0] == ids_RK.shape[0], f"{rows_RD.values.shape[0]} rows, ids of {ids_RK.shape[0]}"
    groups = order_pairs(ids_RK, local_experts, expected_pairs=expected_pairs)
    answers_PD = expert_mlps(rows_RD, groups, gate_up, down, copies=ids_RK.shape[1])
    return combine_pairs(answers_PD, weights_RK, dtype=dtype)
