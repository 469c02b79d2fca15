"""The fused norm against its reference: every form of it, and what it must not touch."""

import pytest
import torch

from kernels.norm import reference
from kernels.norm.rms import rms_norm
from kernels.quant.reference import quantise_activations
from kernels.testing.compare import assert_close, assert_same_bits
from kernels.testing.poison import sparse
from kernels.testing.shapes import generator

EPS = 1e-6


def inputs(rows, width, dtype, device):
    random = generator()
    x, delta = (torch.randn(rows, width, generator=random).mul(3).to(device, dtype) for _ in range(2))
    return x, delta, (torch.rand(width, generator=random) + 0.5).to(device)


@pytest.mark.parametrize(("rows", "width"), [(3, 7168), (1, 128), (2, 96)])
def test_residual_norm_and_codes(device, rows, width):
    x, delta, weight = inputs(rows, width, torch.bfloat16, device)
    found = rms_norm(x, weight, EPS, delta_SD=delta, quantise=width % 128 == 0)
    normed, total = reference.add_rms_norm(delta, x, weight, EPS)
    # one place of bfloat16, where float32 sums in another order lie at a border
    assert_close(found.normed, normed, relative=2**-7, what="normed")
    assert_same_bits(found.total, total, what="total")
    if width % 128 == 0:
        codes, scales = quantise_activations(found.normed, ue8m0=True)
        assert_same_bits(found.codes, codes, what="codes")
        assert_same_bits(found.scales, scales, what="scales")


def test_the_sum_is_normed_before_it_is_rounded(device):
    residual = torch.full((1, 128), 256.0, dtype=torch.bfloat16, device=device)
    delta = torch.zeros_like(residual)
    delta[0, 0] = 0.75
    found = rms_norm(residual, torch.ones(128, device=device), EPS, delta_SD=delta)
    expected = reference.add_rms_norm(delta, residual, torch.ones(128, device=device), EPS)
    assert_same_bits(found.normed, expected[0])
    assert_same_bits(found.total, expected[1])
    assert float(found.total[0, 0]) == 256.0


def test_rows_of_a_table_in_any_order(device):
    table, _, weight = inputs(9, 256, torch.float32, device)
    rows = torch.tensor([8, 0, 3, 3], device=device)
    found = rms_norm(table, weight, EPS, rows_T=rows)
    assert_same_bits(found.total, table[rows], what="embedded")
    assert_close(found.normed, reference.rms_norm(table[rows], weight, EPS), absolute=2e-6, what="normed")


def test_rows_far_apart_and_no_rows(device):
    weight = torch.ones(128, device=device)
    far = sparse((2, 128), (2**31 + 64, 1), torch.bfloat16, device)
    far[1] = 3.0
    assert_close(rms_norm(far, weight, EPS).normed[1], torch.ones(128, device=device), relative=2**-7)
    assert rms_norm(far[:0], weight, EPS, quantise=True).codes.shape == (0, 128)


def test_a_scaled_row_and_a_rerun(device):
    x, delta, weight = inputs(2, 256, torch.bfloat16, device)
    first = rms_norm(x, weight, EPS, delta_SD=delta)
    assert_same_bits(rms_norm(x, weight, EPS, delta_SD=delta).normed, first.normed)
    wrong = first.normed.clone()
    wrong[1] = (wrong[1].float() * 1.02).to(torch.bfloat16)
    with pytest.raises(AssertionError, match="elements are wrong"):
        assert_close(wrong, reference.add_rms_norm(delta, x, weight, EPS)[0], relative=2**-7)
