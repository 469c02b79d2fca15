"""Truth of the records in which rows travel: one after the other, with torch.

Legend: T tokens, D hidden size, K experts per token, W ranks, R records that arrive, B bytes.
"""

from __future__ import annotations

import torch

from baleen.model_spec import QUANT_BLOCK
from kernels.quant.scaled import Scaled


def pack_for_ranks(
    rows_TD: Scaled, ids_TK: torch.Tensor, weights_TK: torch.Tensor, *, num_experts: int, num_ranks: int
) -> torch.Tensor:
    """Records uint8 [W, T, B]: numbers, scales, K int32 ids, K float32 weights, and zeros up to a multiple of 16 bytes.

    Ids of another rank are -1, and their weights 0. A record without an expert on its rank has its row like any other;
    what stands there means nothing.
    """
    share = num_experts // num_ranks
    parts = []
    for rank in range(num_ranks):
        here_TK = (ids_TK >= rank * share) & (ids_TK < (rank + 1) * share)
        fields = [rows_TD.values, *([] if rows_TD.scales is None else [rows_TD.scales])]
        fields += [torch.where(here_TK, ids_TK, -1).int(), torch.where(here_TK, weights_TK, 0.0)]
        record_TB = torch.cat([field.contiguous().view(torch.uint8) for field in fields], dim=1)
        parts.append(torch.nn.functional.pad(record_TB, (0, -record_TB.shape[1] % 16)))
    return torch.stack(parts)


def unpack_rows(
    records_RB: torch.Tensor, hidden: int, slots: int, *, float8: bool
) -> tuple[Scaled, torch.Tensor, torch.Tensor]:
    """(rows [R, D], ids [R, K] int32, weights [R, K] float32) of records."""
    sizes = [hidden * (1 if float8 else 2), hidden // QUANT_BLOCK * 4 if float8 else 0, slots * 4, slots * 4]
    rows, scales, ids, weights = records_RB[:, : sum(sizes)].split(sizes, dim=1)
    values = rows.contiguous().view(torch.float8_e4m3fn if float8 else torch.bfloat16)
    scaled = Scaled(values, scales.contiguous().view(torch.float32) if float8 else None)
    return scaled, ids.contiguous().view(torch.int32), weights.contiguous().view(torch.float32)
