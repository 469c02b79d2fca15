"""A token's answers summed in order, in float32, and rounded once."""

import pytest
import torch

from kernels.moe import reference
from kernels.testing.compare import assert_close, assert_same_bits
from kernels.testing.poison import sparse
from kernels.testing.shapes import generator


def problem(device, num_tokens, slots, width, dtype):
    g = generator()
    y = torch.randn(num_tokens * slots, width, generator=g).to(dtype).to(device)
    weights = torch.rand(num_tokens, slots, generator=g).to(device)
    return y, weights, torch.randn(num_tokens, width, generator=g).to(dtype).to(device)


@pytest.mark.parametrize(("num_tokens", "slots", "width"), [(0, 8, 128), (1, 8, 7168), (5, 3, 100), (4, 1, 1025)])
def test_sum_is_the_references(device, num_tokens, slots, width):
    from kernels.moe.combine import combine_pairs

    for dtype in (torch.bfloat16, torch.float32):
        y, weights, beside = problem(device, num_tokens, slots, width, dtype)
        for extra in (None, beside):
            expected = reference.combine_pairs(y.cpu(), weights.cpu(), None if extra is None else extra.cpu())
            got = combine_pairs(y, weights, beside_TD=extra)
            assert_same_bits(got, expected)
            if dtype == torch.bfloat16:
                assert_same_bits(combine_pairs(y, weights, beside_TD=extra, dtype=dtype), got.bfloat16())


def test_a_slot_of_weight_zero_is_not_read(device):
    from kernels.moe.combine import combine_pairs

    y, weights, _ = problem(device, 2, 4, 128, torch.bfloat16)
    expected = reference.combine_pairs(y.cpu(), weights.cpu() * torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]]))
    y[1], y[7] = float("nan"), float("inf")
    weights[0, 1], weights[1, 3] = 0, 0
    assert_same_bits(combine_pairs(y, weights), expected)
    assert_same_bits(reference.combine_pairs(y.cpu(), weights.cpu()), expected)


def test_rows_may_lie_apart_and_beyond_int32(device):
    from kernels.moe.combine import combine_pairs

    y, weights, beside = problem(device, 3, 2, 64, torch.bfloat16)
    far, wide = sparse((6, 64), (2**29, 1), torch.bfloat16, device), torch.zeros(3, 80, dtype=y.dtype, device=device)
    far[:], wide[:, 16:] = y, beside
    assert_same_bits(combine_pairs(far, weights, beside_TD=wide[:, 16:]), combine_pairs(y, weights, beside_TD=beside))


@pytest.mark.parametrize(("num_ranks", "num_tokens", "width"), [(1, 3, 128), (4, 0, 64), (4, 5, 1100)])
def test_parts_of_ranks_are_added_in_order(device, num_ranks, num_tokens, width):
    from kernels.moe.combine import sum_parts

    y, _, beside = problem(device, num_tokens, num_ranks, width, torch.bfloat16)
    parts = y.view(num_ranks, num_tokens, width)
    for extra in (None, beside):
        expected = reference.sum_parts(parts.cpu(), None if extra is None else extra.cpu())
        assert_same_bits(sum_parts(parts, beside_TD=extra), expected)
        assert_same_bits(sum_parts(parts, beside_TD=extra, dtype=torch.bfloat16), expected.bfloat16())


def test_a_planted_error_is_found(device):
    from kernels.moe.combine import combine_pairs

    y, weights, _ = problem(device, 3, 4, 128, torch.bfloat16)
    expected = reference.combine_pairs(y.cpu(), weights.cpu())
    weights[2, 1] *= 1.01
    with pytest.raises(AssertionError, match=r"worst is at \(2, "):
        assert_close(combine_pairs(y, weights), expected, relative=1e-6, absolute=1e-6)


def test_what_is_refused(device):
    from kernels.moe.combine import combine_pairs

    y, weights, beside = problem(device, 3, 4, 64, torch.bfloat16)
    for wrong in ((y[:11], weights), (y.half(), weights), (y, weights.double()), (y.t().contiguous().t(), weights)):
        with pytest.raises(AssertionError, match="must"):
            combine_pairs(*wrong)
    for other in (beside.float(), beside[:2]):
        with pytest.raises(AssertionError, match="must be"):
            combine_pairs(y, weights, beside_TD=other)
    with pytest.raises(AssertionError, match="must be"):
        combine_pairs(y, weights, dtype=torch.float16)
