"""Selection of keys: index logits and top-k together, some rows at a time, so that no full matrix of logits exists.

Legend: R query rows, B sequences, J queries a sequence, N index heads, D index width, P pages of a table, K selected.
"""

from __future__ import annotations

import torch

from kernels.cache.layout import PAGE_TOKENS
from kernels.dsa.logits import index_logits_decode, index_logits_prefill
from kernels.dsa.topk import topk

WORKSPACE_BYTES = 256 * 2**20
"""Logits that exist at a time: a fraction of the 2.7 GB of 4,096 rows at 160K keys, and still waves of programs."""


def rows_at_a_time(width: int, workspace_bytes: int, multiple: int) -> int:
    """How many rows of `width` float32 logits fit into the workspace: a multiple of `multiple`, and at least that."""
    return max(1, workspace_bytes // (4 * max(1, width) * multiple)) * multiple


def select_decode(
    q_BJND: torch.Tensor,
    weights_BJN: torch.Tensor,
    pages: torch.Tensor,
    block_table_BP: torch.Tensor,
    lengths_BJ: torch.Tensor,
    k: int,
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> torch.Tensor:
    """Slots of the k keys with the largest index logits, for 1 to 4 queries of each sequence: [B, J, k] int32.

    Arguments as for `kernels.dsa.logits.index_logits_decode`; the result is that of `kernels.dsa.topk.topk` over the
    block table: in the order of positions, padded with -1. Its bits do not depend on workspace_bytes.
    """
    sequences, queries = q_BJND.shape[:2]
    width = block_table_BP.shape[1] * PAGE_TOKENS
    step = rows_at_a_time(width, workspace_bytes, queries) // max(1, queries)
    out_BJK = torch.empty(sequences, queries, k, dtype=torch.int32, device=q_BJND.device)
    logits_RS = torch.empty(min(step, sequences) * queries, width, dtype=torch.float32, device=q_BJND.device)
    for start in range(0, sequences, step):
        part = slice(start, min(start + step, sequences))
        count = part.stop - start
        logits, lengths, table = logits_RS[: count * queries], lengths_BJ[part], block_table_BP[part]
        index_logits_decode(q_BJND[part], weights_BJN[part], pages, table, lengths, logits)
        of_row = torch.arange(count * queries, dtype=torch.int32, device=q_BJND.device) // queries
        chosen_RK = topk(logits, lengths.flatten(), k, block_table_BP=table, sequences_R=of_row)
        out_BJK[part] = chosen_RK.view(count, queries, k)
    return out_BJK


def select_prefill(
    q_RND: torch.Tensor,
    weights_RN: torch.Tensor,
    pages: torch.Tensor,
    block_table_BP: torch.Tensor,
    sequences_R: torch.Tensor,
    lengths_R: torch.Tensor,
    k: int,
    *,
    longest: int | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> torch.Tensor:
    """Slots of the k keys with the largest index logits, for ragged rows: [R, k] int32.

    Arguments as for `kernels.dsa.logits.index_logits_prefill`. longest: no length is above it, which saves workspace
    (None: 64 * P). The result as for `select_decode`.
    """
    rows = q_RND.shape[0]
    width = block_table_BP.shape[1] * PAGE_TOKENS
    width = width if longest is None else min(width, -(-longest // PAGE_TOKENS) * PAGE_TOKENS)
    step = rows_at_a_time(width, workspace_bytes, 2)
    out_RK = torch.empty(rows, k, dtype=torch.int32, device=q_RND.device)
    logits_RS = torch.empty(min(step, rows), width, dtype=torch.float32, device=q_RND.device)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        logits, of_row, lengths = logits_RS[: part.stop - start], sequences_R[part], lengths_R[part]
        index_logits_prefill(q_RND[part], weights_RN[part], pages, block_table_BP, of_row, lengths, logits)
        out_RK[part] = topk(logits, lengths, k, block_table_BP=block_table_BP, sequences_R=of_row)
    return out_RK
