"""Activation quantisation and the Hadamard rotation against the golden bytes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.quant import reference as quant
from tests.support.golden import golden


def golden_activations() -> torch.Tensor:
    bits = torch.tensor(golden("primitives")["act_quant_fp32"]["x_bf16_bits"])
    return (bits - (bits > 0x7FFF) * 0x10000).to(torch.int16).view(torch.bfloat16)


@pytest.mark.parametrize(("key", "ue8m0"), [("act_quant_fp32", False), ("act_quant_ue8m0", True)])
def test_activation_bytes_are_the_golden_ones(key, ue8m0):
    expected = golden("primitives")[key]
    quantised, scales = quant.quantise_activations(golden_activations(), ue8m0=ue8m0)
    assert quantised.view(torch.uint8).tolist() == expected["q_e4m3_bytes"]
    assert torch.equal(scales[:, 0], torch.tensor(expected["scale"], dtype=torch.float32))


def test_ue8m0_ceil_matches_the_golden_values():
    expected = golden("primitives")["ue8m0_ceil"]
    assert quant.ue8m0_ceil(torch.tensor(expected["inp"])).tolist() == expected["out"]


@given(st.floats(min_value=2.0**-100, max_value=2.0**100, width=32))
def test_ue8m0_ceil_is_the_least_power_of_two_not_below(value):
    rounded = float(quant.ue8m0_ceil(torch.tensor([value]))[0])
    mantissa, _ = math.frexp(rounded)
    assert mantissa == 0.5
    assert rounded / 2 < value <= rounded


def test_a_group_of_zeros_gives_zeros_not_nan():
    quantised, scales = quant.quantise_activations(torch.zeros(2, 256), ue8m0=True)
    assert quantised.float().abs().max() == 0
    assert scales.shape == (2, 2)
    assert (scales > 0).all()


def test_hadamard_matches_the_golden_vector_and_is_its_own_inverse():
    expected = golden("primitives")["hadamard128"]
    x = torch.tensor(expected["x"])
    assert (quant.hadamard(x) - torch.tensor(expected["y"])).abs().max() < 1e-5
    assert torch.allclose(quant.hadamard(quant.hadamard(x)), x, atol=1e-5)
    assert (quant.hadamard_matrix(128)[0] > 0).all()
