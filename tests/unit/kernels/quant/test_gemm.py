"""The float8 product against the product of the dequantised numbers, at every tile and with shares of the columns."""

import pytest
import torch

from kernels.quant import product_reference, reference
from kernels.quant.weights import dequantise_weight, quantise_weight
from kernels.testing.compare import assert_close, assert_same_bits, difference
from kernels.testing.shapes import generator

# against sums in float64: bfloat16 rounds by up to 2**-8, and the sums before, a part of the row's largest number, are
# off by less than the rest; Hopper sums 128 float8 products with about 14 bits
RELATIVE = 2**-8
ABSOLUTE = {"cpu": 1e-5, "cuda": 3e-4}


def problem(device, num_rows, num_columns, width, *, seed=1):
    """x with an outlier row and scales that differ by 2**20, w with blocks that differ by 2**12; plain x and w too."""
    g = generator(seed)
    x = torch.randn(num_rows, width, generator=g) * torch.logspace(-3, 3, num_rows, base=10.0)[:, None]
    w = torch.randn(num_columns, width, generator=g) / width**0.5
    w[:, 128:256] *= 2.0**-9
    w[128:256] *= 8
    codes, scales = reference.quantise_activations(x.bfloat16(), ue8m0=True)
    w_codes, w_scales = quantise_weight(w)
    return [t.to(device) for t in (codes, scales, w_codes, w_scales)], x, w


def exact(x, x_scales, w, w_scales):
    """The product of what the codes and scales stand for, in float64."""
    x, w = product_reference.dequantise_rows(x.cpu(), x_scales.cpu()), dequantise_weight(w.cpu(), w_scales.cpu())
    return x.double() @ w.double().t()


def check(arguments, expected):
    from kernels.quant.gemm import float8_product

    y = float8_product(*arguments)
    absolute, y = ABSOLUTE[y.device.type], y.cpu()
    size = expected.abs().amax(dim=1, keepdim=True)  # each row has one of its own
    assert_close(y.double() / size, expected / size, relative=RELATIVE, absolute=absolute, what="product")
    return y


@pytest.mark.parametrize(
    ("num_rows", "num_columns", "width"),
    [(1, 128, 256), (17, 200, 512), (64, 72, 1152), (65, 576, 256), (1153, 300, 256)],
)
def test_product_is_that_of_the_dequantised_numbers(device, num_rows, num_columns, width):
    arguments, x, w = problem(device, num_rows, num_columns, width)
    y = check(arguments, exact(*arguments))
    assert difference(y, product_reference.float8_product(*[t.cpu() for t in arguments])) < 5e-6
    # and near that of the numbers before quantisation
    assert difference(y, x @ w.t()) < 2e-3


def test_the_sizes_above_take_every_tile_and_shares():
    from kernels.quant.gemm import TILES, plan

    chosen = [plan(*sizes) for sizes in ((1, 128, 256), (17, 200, 512), (64, 72, 1152), (65, 576, 256))]
    assert {tile for tile, _ in chosen} == set(TILES)
    assert [shares for _, shares in chosen] == [1, 1, 2, 1]
    # of the model: few columns are cut, many are not, many rows neither
    sizes = [(1, 2112, 7168), (64, 7168, 16384), (1, 24576, 1536), (4096, 2112, 7168)]
    assert [plan(*one)[1] for one in sizes] == [14, 4, 1, 1]


def test_shares_cover_every_block_once():
    from kernels.quant.gemm import plan

    for blocks in range(1, 150):
        _, shares = plan(1, 128, blocks * 128)
        per_share = -(-blocks // shares)
        assert (shares - 1) * per_share < blocks <= shares * per_share


def test_nothing_and_rows_that_lie_apart(device):
    from kernels.quant.gemm import float8_product

    (x, sx, w, sw), _, _ = problem(device, 5, 130, 256)
    assert float8_product(x[:0], sx[:0], w, sw).shape == (0, 130)
    wide = torch.zeros(5, 400, dtype=torch.uint8, device=device)
    wide[:, 16:272] = x.view(torch.uint8)
    assert_same_bits(float8_product(wide.view(torch.float8_e4m3fn)[:, 16:272], sx, w, sw), float8_product(x, sx, w, sw))


def test_bits_repeat(device):
    from kernels.quant.gemm import float8_product

    arguments, _, _ = problem(device, 3, 128, 1024)
    first = float8_product(*arguments)
    for _ in range(3):
        assert_same_bits(float8_product(*arguments), first)


@pytest.mark.parametrize("which", ["row scale", "block scale", "weight"])
def test_a_planted_error_is_found(device, which):
    arguments, _, _ = problem(device, 5, 256, 512)
    expected = exact(*arguments)
    check(arguments, expected)
    x, sx, w, sw = (t.clone() for t in arguments)
    if which == "row scale":
        sx[2, 2] *= 1.02
    elif which == "block scale":
        sw[1, 2] *= 1.02
    else:
        w.view(torch.uint8)[200, 300:310] ^= 8
    with pytest.raises(AssertionError, match="elements are wrong"):
        check((x, sx, w, sw), expected)


def test_what_is_refused(device):
    from kernels.quant.gemm import float8_product

    (x, sx, w, sw), _, _ = problem(device, 4, 256, 256)
    for wrong in (
        (x[:, :200], sx, w, sw),
        (x, sx[:, :1], w, sw),
        (x, sx, w, sw[:1]),
        (x, sx, w.view(torch.int8), sw),
        (x, sx, w.t(), sw),
        (x, sx.double(), w, sw),
    ):
        with pytest.raises(AssertionError, match=r"must|have shape"):
            float8_product(*wrong)
    odd = torch.zeros(4, 264, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)[:, :256]
    with pytest.raises(ValueError, match="x_row is 264"):
        float8_product(odd, sx, w, sw)
