"""The repaired interpreter against torch, and launches from one build."""

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

import torch
import triton
import triton.language as tl

from kernels.builds import Build
from kernels.lang import ordered, pow2_ceil, to_float8
from kernels.testing.compare import assert_close, assert_same_bits
from kernels.testing.shapes import generator


@triton.jit
def cast(x, y, KIND: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + place)
    if KIND == "float8":
        v = to_float8(v.to(tl.float32))
    elif KIND == "arithmetic":
        v = tl.maximum(v + v * v, -v)
    elif KIND == "power":
        v = pow2_ceil(v)
    elif KIND == "order":
        v = ordered(v)
    tl.store(y + place, v.to(y.dtype.element_ty))


@triton.jit
def product(a, b, out, K: tl.constexpr):
    rows, inner = tl.arange(0, 64), tl.arange(0, K)
    left = tl.load(a + rows[:, None] * K + inner[None, :])
    right = tl.load(b + rows[:, None] * K + inner[None, :])
    tl.store(out + rows[:, None] * 64 + rows[None, :], tl.dot(left, tl.trans(right)))


def run_cast(kind, x, out_dtype, source, target):
    build = Build(kernel=cast, types={"x": source, "y": target}, constants={"KIND": kind, "BLOCK": 1024})
    out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    build.launch((x.numel() // 1024,), x=x, y=out)
    return out


def every_bfloat16(device):
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).to(device)


def test_float8_of_every_bfloat16_is_torchs(device):
    x = every_bfloat16(device)
    got = run_cast("float8", x, torch.float8_e4m3fn, "*bf16", "*fp8e4nv").float()
    numbers = x.float()
    expected = torch.where(numbers.isnan(), numbers, numbers.clamp(-448, 448)).to(torch.float8_e4m3fn).float()
    assert_close(got, expected)


def test_bfloat16_is_rounded_to_nearest_even(device):
    x = torch.cat((torch.randn(2048, generator=generator()), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8]).repeat(1024)))
    assert_same_bits(run_cast("plain", x.to(device), torch.bfloat16, "*fp32", "*bf16"), x.bfloat16().to(device))


def test_arithmetic_of_bfloat16_is_that_of_its_numbers(device):
    x = torch.randn(2048, generator=generator()).bfloat16().to(device)
    expected = torch.maximum(x.double() + x.double() ** 2, -x.double())
    assert_close(run_cast("arithmetic", x, torch.bfloat16, "*bf16", "*bf16"), expected, relative=2**-7, absolute=2**-9)


def test_powers_of_two_are_rounded_up(device):
    x = torch.cat((2.0 ** torch.arange(-100, 100), 1.5 * 2.0 ** torch.arange(-100, 100)))
    x = torch.nn.functional.pad(x, (0, 1024 - x.numel()), value=1.0).to(device)
    expected = torch.exp2(torch.ceil(torch.log2(x.double()))).float()
    assert_same_bits(run_cast("power", x, torch.float32, "*fp32", "*fp32"), expected)


def test_order_of_integers_is_that_of_floats(device):
    x = torch.cat((torch.randn(1020, generator=generator()), torch.tensor([-0.0, 0.0, -torch.inf, torch.inf])))
    keys = run_cast("order", x.to(device), torch.int32, "*fp32", "*i32").cpu()
    by_key = x[keys.argsort()]
    assert bool((by_key[1:] >= by_key[:-1]).all()) and keys[1020] < keys[1021]


@pytest.mark.parametrize("kind", [("*bf16", torch.bfloat16), ("*fp8e4nv", torch.float8_e4m3fn), ("*fp16", torch.half)])
def test_products_are_those_of_the_numbers(device, kind):
    name, dtype = kind
    a, b = (torch.randn(64, 128, generator=generator(seed)).to(dtype).to(device) for seed in (1, 2))
    out = torch.empty(64, 64, dtype=torch.float32, device=device)
    build = Build(kernel=product, types={"a": name, "b": name, "out": "*fp32"}, constants={"K": 128})
    build.launch((1,), a=a, b=b, out=out)
    assert_close(out, a.double() @ b.double().t(), absolute=1e-4)


def test_a_pointer_off_its_alignment_is_refused(device):
    x = torch.zeros(1025, device=device)
    with pytest.raises(ValueError, match=r"x is \d+, and must be a multiple of 16"):
        run_cast("plain", x[1:], torch.float32, "*fp32", "*fp32")


def test_an_empty_grid_runs_nothing(device):
    x = torch.zeros(0, device=device)
    assert run_cast("plain", x, torch.float32, "*fp32", "*fp32").shape == (0,)
