"""Products by head against einsum in float32, in and out of wider records."""

import pytest
import torch

from kernels.quant import product_reference
from kernels.testing.compare import assert_close, assert_same_bits
from kernels.testing.poison import Guarded
from kernels.testing.shapes import generator

# against sums that are not rounded: bfloat16 rounds by up to 2**-8, float32 sums of another order differ by less
BOUNDS = {torch.bfloat16: {"relative": 2**-8, "absolute": 1e-4}, torch.float32: {"relative": 1e-5, "absolute": 1e-5}}


def numbers(shape, dtype, device, seed=0):
    return torch.randn(shape, generator=generator(seed)).to(dtype).to(device)


@pytest.mark.parametrize(
    ("num_tokens", "dtype"), [(1, torch.bfloat16), (17, torch.bfloat16), (65, torch.bfloat16), (5, torch.float32)]
)
def test_queries_go_to_the_beginning_of_records(device, num_tokens, dtype):
    from kernels.quant.absorb import absorb_queries

    q = numbers((num_tokens, 2, 192), dtype, device)[:, :, :128]
    w = numbers((2, 128, 192), dtype, device, 1) / 11
    records = Guarded((num_tokens, 2, 192), dtype, device, strides=(2 * 576, 576, 1))
    given = absorb_queries(q, w, out_THC=records.tensor)
    assert_close(given, product_reference.absorb_queries(q.cpu().float(), w.cpu()), **BOUNDS[dtype])
    records.check()


@pytest.mark.parametrize(
    ("num_tokens", "dtype"), [(0, torch.bfloat16), (1, torch.bfloat16), (65, torch.bfloat16), (5, torch.float32)]
)
def test_values_come_out_of_the_latent_space(device, num_tokens, dtype):
    from kernels.quant.absorb import expand_values

    inner = 512 if dtype == torch.bfloat16 else 96
    latent, w = numbers((num_tokens, 3, inner), dtype, device), numbers((3, 128, inner), dtype, device, 1) / 22
    given = expand_values(latent, w)
    assert_close(given, product_reference.expand_values(latent.cpu().float(), w.cpu()), **BOUNDS[dtype])
    assert_same_bits(expand_values(latent, w), given)


def test_sizes_that_are_no_multiples_of_anything(device):
    from kernels.quant.absorb import absorb_queries, expand_values

    for dtype in BOUNDS:
        q, w = numbers((3, 2, 20), dtype, device), numbers((2, 20, 37), dtype, device, 1)
        assert_close(absorb_queries(q, w), product_reference.absorb_queries(q.cpu().float(), w.cpu()), **BOUNDS[dtype])
        w = numbers((2, 7, 20), dtype, device, 2)
        assert_close(expand_values(q, w), product_reference.expand_values(q.cpu().float(), w.cpu()), **BOUNDS[dtype])


def test_a_planted_error_is_found(device):
    from kernels.quant.absorb import expand_values

    latent, w = numbers((2, 2, 64), torch.bfloat16, device), numbers((2, 128, 64), torch.bfloat16, device, 1)
    expected = product_reference.expand_values(latent.cpu().float(), w.cpu())
    w[1, 77] *= 1.02
    with pytest.raises(AssertionError, match=r"worst is at \(\d, 1, 77\)"):
        assert_close(expand_values(latent, w), expected, **BOUNDS[torch.bfloat16])


def test_what_is_refused(device):
    from kernels.quant.absorb import absorb_queries

    q, w = numbers((2, 2, 128), torch.bfloat16, device), numbers((2, 128, 512), torch.bfloat16, device)
    for wrong in ((q.float(), w), (q, w[:, :64]), (q.transpose(0, 2), w), (q.transpose(1, 2), w.transpose(1, 2))):
        with pytest.raises(AssertionError, match="must be"):
            absorb_queries(*wrong)
