"""What the quantisation and the matrix products of DeepSeek-V3.2 cost at the sizes of the 671B model.

Legend: M rows, N columns of the product, K inner columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from kernels.bench.case import Case, Trial
from kernels.quant import product_reference, reference
from kernels.testing.compare import assert_same_bits, difference

PRODUCTS = {
    "q_a, kv_a, index k": (2240, 7168),
    "q_b, index q": (32768, 1536),
    "o": (7168, 16384),
    "dense gate, up": (36864, 7168),
    "shared gate, up": (4096, 7168),
    "shared down": (7168, 2048),
}
ROWS = (1, 64, 128, 4096)
HEADS, QUERY, LATENT, VALUE = 128, 128, 512, 128
BOUND = 1e-5
"""Of `difference`: bfloat16 rounding of a product gives about 1.4e-6."""


def random_float8(shape: tuple[int, ...], device: str) -> torch.Tensor:
    """Float8 codes of normal numbers, [shape]."""
    return torch.randn(shape, device=device).to(torch.float8_e4m3fn)


def quantise_cases() -> list[Case]:
    """Rows of hidden states and of attention outputs."""
    tiny = replace(_quantise_case(3, 256), tiny=True)
    return [tiny, *(_quantise_case(m, k) for m in (128, 4096) for k in (7168, 16384))]


def _quantise_case(num_rows: int, width: int) -> Case:
    def prepare(device: str) -> Trial:
        from kernels.quant.activations import quantise_activations

        x_MK = torch.randn(num_rows, width, device=device, dtype=torch.bfloat16)

        def check(result: tuple[torch.Tensor, torch.Tensor]) -> None:
            for got, expected in zip(result, reference.quantise_activations(x_MK.cpu(), ue8m0=True), strict=True):
                assert_same_bits(got, expected)

        return Trial(
            run=lambda: quantise_activations(x_MK, ue8m0=True),
            check=check,
            baseline=lambda: reference.quantise_activations(x_MK, ue8m0=True),
            baseline_name="torch",
        )

    moved = num_rows * width * 3 + num_rows * width // 128 * 4
    return Case(name=f"{num_rows} x {width}", moved_bytes=moved, prepare=prepare)


def product_cases() -> list[Case]:
    """Every float8 product of a layer, for one row, for decode batches and for a prefill chunk."""
    tiny = replace(_product_case("tiny", 3, 192, 256), tiny=True)
    return [tiny, *(_product_case(what, m, n, k) for what, (n, k) in PRODUCTS.items() for m in ROWS)]


def _product_case(what: str, m: int, n: int, k: int) -> Case:
    def prepare(device: str) -> Trial:
        from kernels.quant.gemm import float8_product

        x_MK, w_NK = random_float8((m, k), device), random_float8((n, k), device)
        x_scales_MG = torch.rand(m, k // 128, device=device) + 0.5
        w_scales_aG = torch.rand(-(-n // 128), k // 128, device=device) + 0.5
        x_bf16, w_bf16 = x_MK.bfloat16(), w_NK.bfloat16()

        def check(y_MN: torch.Tensor) -> None:
            rows = slice(0, min(m, 64))
            expected = product_reference.float8_product(x_MK[rows], x_scales_MG[rows], w_NK, w_scales_aG)
            assert difference(y_MN[rows], expected) < BOUND

        return Trial(
            run=lambda: float8_product(x_MK, x_scales_MG, w_NK, w_scales_aG),
            check=check,
            baseline=lambda: x_bf16 @ w_bf16.t(),
            baseline_name="cuBLAS in bfloat16",
        )

    moved = m * k + n * k + 2 * m * n + 4 * (m * k // 128 + -(-n // 128) * k // 128)
    return Case(name=f"{what}, {m} rows", moved_bytes=moved, flops=2 * m * n * k, precision="fp8", prepare=prepare)


def absorb_cases() -> list[Case]:
    """Queries into the latent space."""
    from kernels.quant.absorb import absorb_queries

    shapes = ((HEADS, QUERY), (HEADS, QUERY, LATENT))
    tiny = _head_case(3, (2, QUERY), (2, QUERY, LATENT), absorb_queries, product_reference.absorb_queries)
    return [
        replace(tiny, tiny=True),
        *(_head_case(t, *shapes, absorb_queries, product_reference.absorb_queries) for t in ROWS),
    ]


def expand_cases() -> list[Case]:
    """Values out of the latent space."""
    from kernels.quant.absorb import expand_values

    shapes = ((HEADS, LATENT), (HEADS, VALUE, LATENT))
    tiny = _head_case(3, (2, LATENT), (2, VALUE, LATENT), expand_values, product_reference.expand_values)
    return [
        replace(tiny, tiny=True),
        *(_head_case(t, *shapes, expand_values, product_reference.expand_values) for t in ROWS),
    ]


def _head_case(
    num_tokens: int,
    of_token: tuple[int, int],
    of_weights: tuple[int, int, int],
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    truth: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Case:
    def prepare(device: str) -> Trial:
        x_THi = torch.randn(num_tokens, *of_token, device=device, dtype=torch.bfloat16)
        w = torch.randn(of_weights, device=device, dtype=torch.bfloat16)
        by_head = w if of_weights[1] == of_token[1] else w.transpose(1, 2)

        def check(y: torch.Tensor) -> None:
            assert difference(y[:64], truth(x_THi[:64], w)) < BOUND

        return Trial(
            run=lambda: run(x_THi, w),
            check=check,
            baseline=lambda: torch.bmm(x_THi.transpose(0, 1), by_head),
            baseline_name="torch.bmm",
        )

    heads, inner, outer = of_token[0], of_token[1], of_weights[1] * of_weights[2] // of_token[1]
    moved = 2 * heads * (inner * outer + num_tokens * (inner + outer))
    flops = 2 * num_tokens * heads * inner * outer
    return Case(name=f"{num_tokens} tokens", moved_bytes=moved, flops=flops, precision="bf16", prepare=prepare)
