"""Pairs by expert: the reference's order, foreign ids left out, and how many tiles there can be."""

import pytest
import torch

from kernels.moe import reference
from kernels.testing.compare import assert_same_bits
from kernels.testing.shapes import generator


def ids_of(kind):
    g = generator()
    return {
        "uniform": torch.randint(0, 16, (37, 8), generator=g),
        "all on one": torch.full((300,), 6),
        "all elsewhere": torch.full((5, 8), 11),
        "two blocks": torch.randint(0, 9, (2100,), generator=g),
        "padding": torch.tensor([[5, -1], [-1, -1], [7, 5], [4, 4]]),
        "none": torch.zeros((0, 8), dtype=torch.int64),
        "one": torch.tensor([7]),
    }[kind]


@pytest.mark.parametrize("kind", ["uniform", "all on one", "all elsewhere", "two blocks", "padding", "none", "one"])
def test_order_is_the_references(device, kind):
    from kernels.moe.order import order_pairs

    ids, local = ids_of(kind), range(4, 8)
    order, starts, counts = reference.order_pairs(ids, local)
    for dtype in (torch.int64, torch.int32):
        groups = order_pairs(ids.to(dtype).to(device), local)
        assert_same_bits(groups.starts_E, starts, what="starts")
        assert_same_bits(groups.counts_E, counts, what="counts")
        assert_same_bits(groups.order_P[: len(order)], order, what="order")
        assert groups.order_P.shape == (ids.numel(),)
        assert (groups.order_P[len(order) :] == -1).all()  # the poison: not written


def test_the_reference_groups_by_expert_and_keeps_the_order_inside():
    order, starts, counts = reference.order_pairs(torch.tensor([[9, 4], [5, 4], [4, 0]]), range(4, 6))
    assert (order.tolist(), starts.tolist(), counts.tolist()) == ([1, 3, 4, 2], [0, 3], [3, 1])


@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 1, 1), (16, 0, 17), (33, 0, 0), (0, 15, 18)])
def test_there_are_never_more_tiles_than_programs(device, counts):
    from kernels.moe.order import contiguous_groups, masked_groups

    total, on_device = sum(counts), torch.tensor(counts, dtype=torch.int32, device=device)
    tiles = sum(-(-count // 16) for count in counts)
    for num_rows in (total, total + 40):
        assert tiles <= contiguous_groups(on_device, num_rows).most_tiles(16)
    assert tiles <= masked_groups(on_device, 33, usual=4).most_tiles(16) == 9
    assert masked_groups(on_device, 33, usual=4).starts_E.tolist() == [0, 33, 66]


def test_expected_pairs_decide_the_tiles_only(device):
    from kernels.moe.order import order_pairs

    ids = ids_of("uniform").to(device)
    groups, fewer = order_pairs(ids, range(4)), order_pairs(ids, range(4), expected_pairs=40)
    assert (groups.usual, fewer.usual) == (111, 15)
    assert_same_bits(groups.counts_E, fewer.counts_E)
    assert groups.most_tiles(16) == fewer.most_tiles(16)


def test_what_is_refused(device):
    from kernels.moe.order import masked_groups, order_pairs

    ids = torch.zeros(4, 4, dtype=torch.int64, device=device)
    for wrong in (ids.float(), ids.t()[:2]):
        with pytest.raises(AssertionError, match="must be"):
            order_pairs(wrong, range(4))
    with pytest.raises(AssertionError, match="must be"):
        order_pairs(ids, range(0))
    with pytest.raises(AssertionError, match="capacity is 0"):
        masked_groups(ids[0].int(), 0, usual=1)
