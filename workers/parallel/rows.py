"""How (token, expert) pairs become rows in expert order, and how rows become tokens again.

Both exchanges use these two functions, so that their arithmetic is the same by construction.

Legend: T tokens, K experts per token, P = T * K pairs, D hidden size, E experts of the model.
"""

from __future__ import annotations

import torch


def pairs_by_expert(expert_ids_TK: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Order the pairs by expert, and inside an expert by token: int64 [P] and int64 rows per expert [E].

    Entry r of the order is the flat pair `t * K + k` that becomes row r.
    """
    expert_ids_P = expert_ids_TK.reshape(-1)
    counts_E = torch.bincount(expert_ids_P, minlength=num_experts)
    assert counts_E.numel() == num_experts, f"an expert id is {counts_E.numel() - 1}, the model has {num_experts}"
    return torch.argsort(expert_ids_P, stable=True), counts_E


def take_rows(x_TD: torch.Tensor, order_P: torch.Tensor, experts_per_token: int) -> torch.Tensor:
    """One copy of its token for each pair, in the given order: [P, D], contiguous."""
    return x_TD.index_select(0, order_P.div(experts_per_token, rounding_mode="floor"))


def restore(rows_PD: torch.Tensor, order_P: torch.Tensor) -> torch.Tensor:
    """Undo `rows[order]`: row r goes back to place order[r]. Contiguous."""
    restored_PD = torch.empty_like(rows_PD, memory_format=torch.contiguous_format)
    restored_PD[order_P] = rows_PD
    return restored_PD


def sum_slots(rows_PD: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    """[T, D] float32: sum over k of weights[t, k] * rows[t * K + k].

    Products and sums are float32, added in slot order one after the other, so that a token's sum depends on nothing
    but its own rows (a library reduction may choose its order by shape).
    """
    num_tokens, experts_per_token = weights_TK.shape
    products_PD = rows_PD * weights_TK.reshape(-1, 1)
    slots = products_PD.view(num_tokens, experts_per_token, rows_PD.shape[1]).unbind(1)
    if len(slots) == 1:
        return slots[0].contiguous()
    total_TD = slots[0] + slots[1]
    for slot_TD in slots[2:]:
        total_TD += slot_TD
    return total_TD
