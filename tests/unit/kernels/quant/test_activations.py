"""The quantisation kernel gives the bytes of the reference, for ordinary and for awkward rows."""

import pytest
import torch

from kernels.quant import reference
from kernels.testing.compare import assert_same_bits
from kernels.testing.poison import sparse
from kernels.testing.shapes import generator


def assert_same(x, *, ue8m0):
    from kernels.quant.activations import quantise_activations

    codes, scales = quantise_activations(x, ue8m0=ue8m0)
    expected_codes, expected_scales = reference.quantise_activations(x.cpu(), ue8m0=ue8m0)
    assert_same_bits(codes, expected_codes, what="codes")
    assert_same_bits(scales, expected_scales, what="scales")


def awkward_rows(dtype):
    """Zeros, small numbers, exact powers of two times 448, the largest, denormals, one that stands out."""
    rows = torch.randn(11, 128, generator=generator())
    rows[0] = 0
    rows[1] = 1e-5
    rows[2, 7] = 448.0 * 4
    rows[3, 0] = -448.0 * 2.0**-9
    rows[4] = torch.finfo(dtype).max
    rows[5] = 1e-40
    rows[6, 100] = 3e4
    rows[7] *= 1e-6
    rows[8] = torch.linspace(-17, 17, 128)
    return rows.to(dtype)


@pytest.mark.parametrize("ue8m0", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_are_the_references(device, dtype, ue8m0):
    assert_same(awkward_rows(dtype).to(device), ue8m0=ue8m0)


@pytest.mark.parametrize("shape", [(0, 256), (1, 640), (9, 128)])
def test_rows_and_groups_that_fill_no_program(device, shape):
    assert_same(torch.randn(shape, generator=generator()).bfloat16().to(device), ue8m0=True)


def test_rows_may_lie_apart_and_beyond_int32(device):
    wide = torch.randn(3, 401, generator=generator()).bfloat16().to(device)
    assert_same(wide[:, 16:144], ue8m0=True)
    far = sparse((3, 128), (2**30 + 16, 1), torch.bfloat16, device)
    far[:] = wide[:, :128]
    assert_same(far, ue8m0=True)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, in the interpreter
def test_a_number_that_is_not_finite_spoils_its_own_group_only(device):
    from kernels.quant.activations import quantise_activations

    x = torch.randn(3, 256, generator=generator()).bfloat16()
    broken = x.clone()
    broken[1, 5], broken[2, 200] = float("nan"), float("inf")
    codes, scales = quantise_activations(broken.to(device), ue8m0=True)
    expected, expected_scales = reference.quantise_activations(x, ue8m0=True)
    for row, column in ((0, 0), (0, 128), (1, 128), (2, 0)):
        assert_same_bits(codes[row, column : column + 128], expected[row, column : column + 128])
        assert scales[row, column // 128] == expected_scales[row, column // 128]
    assert codes[1, 5].float().isnan()


def test_what_is_refused(device):
    from kernels.quant.activations import quantise_activations

    x = torch.zeros(4, 256, dtype=torch.bfloat16, device=device)
    for wrong in (x[:, :100], x.t(), x.to(torch.float16)):
        with pytest.raises(AssertionError, match="must be"):
            quantise_activations(wrong, ue8m0=True)
