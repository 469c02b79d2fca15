"""Norms against float64, and the order of rounding."""

import pytest
import torch

from kernels.norm import reference as norm


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1.6e-2)])
def test_rms_norm_matches_float64(dtype, bound):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(5, 96, generator=generator) * 3).to(dtype)
    weight = torch.rand(96, generator=generator) + 0.5
    exact = x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-6) * weight.double()
    result = norm.rms_norm(x, weight, 1e-6)
    assert result.dtype == dtype
    assert ((result.double() - exact).abs() / (1 + exact.abs())).max() < bound


def test_the_norm_sees_the_unrounded_sum():
    residual = torch.full((1, 64), 256.0, dtype=torch.bfloat16)
    delta = torch.zeros(1, 64, dtype=torch.bfloat16)
    delta[0, 0] = 0.75
    normed, total = norm.add_rms_norm(delta, residual, torch.ones(64), 1e-6)
    # 256.75 rounds back to 256 in bfloat16, and the residual keeps that
    assert total[0, 0] == 256.0
    wide = norm.rms_norm(residual.float() + delta.float(), torch.ones(64), 1e-6)
    assert torch.equal(normed, wide.to(torch.bfloat16))
