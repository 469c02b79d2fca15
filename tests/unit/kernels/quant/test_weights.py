"""Block-scaled float8 of weights, ragged blocks included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.quant.weights import dequantise_weight, quantise_weight


def dequantise_by_element(quantised, scales):
    rows, columns = quantised.shape
    values = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            values[row, column] = quantised[row, column].float() * scales[row // 128, column // 128]
    return values


@pytest.mark.parametrize("shape", [(1, 1), (130, 5), (128, 128), (5, 257)])
def test_every_number_takes_the_scale_of_its_own_block(shape):
    generator = torch.Generator().manual_seed(1)
    quantised = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128), generator=generator) + 0.1
    assert torch.equal(dequantise_weight(quantised, scales), dequantise_by_element(quantised, scales))


def test_rows_of_a_ragged_matrix_belong_to_blocks_of_128():
    quantised = torch.ones(576, 128).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    rows = dequantise_weight(quantised, scales)[:, 0]
    assert rows.tolist() == [1.0] * 128 + [2.0] * 128 + [3.0] * 128 + [4.0] * 128 + [5.0] * 64


def test_every_float8_code_has_torch_s_value():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(2, 128)
    found = dequantise_weight(codes, torch.ones(1, 1))
    assert torch.equal(found.nan_to_num(999.0), codes.float().nan_to_num(999.0))
    assert found.isnan().sum() == 2


def test_the_product_is_rounded_once():
    quantised = torch.full((1, 1), 1.125).to(torch.float8_e4m3fn)
    scale = torch.full((1, 1), 1.00390625)
    exact = torch.tensor(1.125 * 1.00390625)
    assert dequantise_weight(quantised, scale, dtype=torch.bfloat16).item() == exact.to(torch.bfloat16).item()


@settings(max_examples=40)
@given(rows=st.integers(1, 300), columns=st.integers(1, 300), size=st.floats(1e-6, 1e4))
def test_quantised_weights_come_back_within_float8_precision(rows, columns, size):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 1000 + columns)) * size
    quantised, scales = quantise_weight(w)
    assert quantised.dtype == torch.float8_e4m3fn
    assert scales.shape == (-(-rows // 128), -(-columns // 128))
    assert torch.equal(torch.frexp(scales).mantissa, torch.full_like(scales, 0.5)), "scales are powers of two"
    full = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    # Half a step of float8: 2^-4 of the number, or 2^-10 of the scale below the smallest normal number.
    bound = torch.maximum(w.abs() * 2**-4, full * 2**-10)
    assert ((dequantise_weight(quantised, scales) - w).abs() <= bound).all()


def test_a_block_uses_the_upper_half_of_the_range():
    quantised, _ = quantise_weight(torch.tensor([[3.0, -1.0]]))
    assert 224.0 < quantised.float().abs().max() <= 448.0


def test_zero_block_has_a_positive_scale():
    quantised, scales = quantise_weight(torch.zeros(3, 3))
    assert scales.item() > 0
    assert not dequantise_weight(quantised, scales).any()
