"""Queries made ready against the reference, at the model's heads and at few."""

import pytest
import torch

from kernels.cache import reference
from kernels.cache.queries import prepare_queries
from kernels.testing.compare import assert_close, assert_same_bits
from kernels.testing.shapes import generator


def case(tokens, heads, nope, rope, latent, index_heads, device):
    random = generator()
    q = torch.randn(tokens, heads * (nope + rope) + index_heads * 128, generator=random).to(torch.bfloat16)
    weights = torch.randn(tokens, index_heads, generator=random)
    angles = torch.randn(tokens, rope // 2, generator=random) * 5
    rotations = torch.view_as_real(torch.polar(torch.ones_like(angles), angles)).contiguous()
    latent_q = torch.full((tokens, heads, latent + rope), float("nan"), dtype=torch.bfloat16, device=device)
    sizes = {"num_heads": heads, "nope_dim": nope, "index_heads": index_heads, "weight_scale": 0.37}
    return (q.to(device), weights.to(device), rotations.to(device), latent_q), sizes


@pytest.mark.parametrize(
    ("tokens", "heads", "nope", "rope", "latent", "index_heads"),
    [(2, 128, 128, 64, 512, 64), (3, 4, 32, 64, 128, 32), (1, 2, 16, 32, 128, 3)],
)
def test_queries_are_the_reference_s(device, tokens, heads, nope, rope, latent, index_heads):
    arguments, sizes = case(tokens, heads, nope, rope, latent, index_heads, device)
    sizes["padded_heads"] = 64 if index_heads == 32 else None
    latent_q = arguments[-1]
    codes, weights = prepare_queries(*arguments, **sizes)
    expected_q = latent_q.clone()
    expected_codes, expected_weights = reference.prepare_queries(*arguments[:-1], expected_q, **sizes)
    assert bool(latent_q[..., :latent].isnan().all()), "the absorbed part is another kernel's"
    assert_close(latent_q[..., latent:], expected_q[..., latent:], relative=2**-7, absolute=1e-6, what="rotated")
    wrong = int((codes.view(torch.uint8) != expected_codes.view(torch.uint8)).sum())
    assert wrong <= 1 + codes.numel() // 1000, wrong
    assert_close(weights, expected_weights, relative=1e-6, what="head weights")


def test_reruns_and_no_tokens(device):
    arguments, sizes = case(1, 4, 32, 64, 128, 32, device)
    codes, weights = prepare_queries(*arguments, **sizes)
    first = arguments[-1].clone()
    again = prepare_queries(*arguments, **sizes)
    assert_same_bits(again[0], codes)
    assert_same_bits(again[1], weights)
    assert_same_bits(arguments[-1], first)
    assert prepare_queries(*(x[:0] for x in arguments), **sizes)[0].shape == (0, 32, 128)
