"""Rows and slots: order, exact sums, independence of the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.parallel.rows import pairs_by_expert, restore, sum_slots, take_rows


def test_pairs_are_ordered_by_expert_then_token() -> None:
    order_P, counts_E = pairs_by_expert(torch.tensor([[2, 0], [0, 3], [2, 2]]), 5)
    assert order_P.tolist() == [1, 2, 0, 4, 5, 3]
    assert counts_E.tolist() == [2, 0, 3, 1, 0]
    x_TD = torch.tensor([[10.0], [20.0], [30.0]])
    assert take_rows(x_TD, order_P, 2).flatten().tolist() == [10, 20, 10, 30, 30, 20]


def test_an_expert_outside_the_model_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="expert id is 5, the model has 5"):
        pairs_by_expert(torch.tensor([[5]]), 5)


@given(st.permutations(range(7)))
def test_restore_undoes_an_order(order: list[int]) -> None:
    rows_PD = torch.arange(14.0).view(7, 2)
    order_P = torch.tensor(order)
    assert torch.equal(restore(rows_PD[order_P], order_P), rows_PD)
    assert restore(rows_PD.t().contiguous().t(), order_P).is_contiguous()


def test_slots_are_added_one_after_the_other_in_float32() -> None:
    """In this order the small terms are lost to the large one; in any other order they are not."""
    rows_PD = torch.tensor([[2.0**24], [1.0], [1.0], [-(2.0**24)]], dtype=torch.bfloat16)
    weights_TK = torch.ones(1, 4)
    assert sum_slots(rows_PD, weights_TK).tolist() == [[0.0]]
    assert sum_slots(rows_PD[[1, 2, 0, 3]], weights_TK).tolist() == [[2.0]]


@pytest.mark.parametrize("experts_per_token", [1, 2, 8])
def test_a_tokens_sum_does_not_depend_on_the_others(experts_per_token: int) -> None:
    generator = torch.Generator().manual_seed(3)
    rows_PD = torch.randn(33 * experts_per_token, 67, generator=generator)
    weights_TK = torch.rand(33, experts_per_token, generator=generator)
    together_TD = sum_slots(rows_PD, weights_TK)
    assert together_TD.dtype == torch.float32 and together_TD.is_contiguous()
    for t in range(33):
        rows = slice(t * experts_per_token, (t + 1) * experts_per_token)
        assert torch.equal(sum_slots(rows_PD[rows], weights_TK[t : t + 1])[0], together_TD[t])


def test_no_tokens() -> None:
    order_P, counts_E = pairs_by_expert(torch.empty(0, 4, dtype=torch.int64), 3)
    assert order_P.tolist() == [] and counts_E.tolist() == [0, 0, 0]
    assert take_rows(torch.empty(0, 5), order_P, 4).shape == (0, 5)
    assert sum_slots(torch.empty(0, 5, dtype=torch.bfloat16), torch.empty(0, 4)).shape == (0, 5)
