"""Rotary embedding against the golden table and against trigonometry in float64."""

import math

import pytest
import torch

from baleen.model_spec import RopeSpec
from kernels.rope import reference as rope
from tests.support.golden import golden

V32 = RopeSpec(
    theta=10000.0,
    factor=40.0,
    original_max_positions=4096,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
)


def rotations(position: int) -> torch.Tensor:
    return rope.rotations(torch.tensor([position]), rope.yarn_inverse_frequencies(V32, 64), V32)


def test_yarn_table_is_the_golden_one_to_the_last_bit():
    expected = golden("primitives")["yarn"]
    assert rope.yarn_correction_range(V32, 64) == (expected["low"], expected["high"])
    assert torch.equal(rope.yarn_inverse_frequencies(V32, 64), torch.tensor(expected["inv_freq"]))
    assert rope.yarn_mscale(40.0, 1.0) == pytest.approx(expected["mscale"], rel=1e-12)
    assert rope.softmax_scale(V32, 192) == pytest.approx(expected["softmax_scale"], rel=1e-12)


@pytest.mark.parametrize(
    ("rotate", "key"),
    [(rope.rotate_interleaved, "interleaved"), (rope.rotate_half_split, "non_interleaved")],
)
def test_rotation_far_into_the_context(rotate, key):
    expected = golden("primitives")["rope"]
    x = torch.tensor(expected["x"])[None, None]
    rotated = rotate(x, rotations(expected["pos"]))[0, 0]
    # float32 arithmetic on numbers of size 2; a wrong last bit of the frequency is off by 1e-4 here
    assert (rotated - torch.tensor(expected[key])).abs().max() < 1e-6


def test_the_two_pairings_are_the_same_rotation_of_permuted_pairs():
    x = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    halves = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
    interleaved = rope.rotate_interleaved(x, rotations(777))
    half_split = rope.rotate_half_split(halves, rotations(777))
    assert torch.equal(torch.cat((interleaved[..., 0::2], interleaved[..., 1::2]), dim=-1), half_split)


def test_position_zero_changes_nothing_and_lengths_are_kept():
    x = torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rope.rotate_interleaved(x, rotations(0)), x)
    assert torch.allclose(rope.rotate_half_split(x, rotations(4095)).norm(dim=-1), x.norm(dim=-1), rtol=1e-6)


def test_dot_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 64, generator=torch.Generator().manual_seed(2)).double().float()
    near = (rope.rotate_interleaved(q, rotations(40)) * rope.rotate_interleaved(k, rotations(30))).sum()
    far = (rope.rotate_interleaved(q, rotations(1040)) * rope.rotate_interleaved(k, rotations(1030))).sum()
    assert math.isclose(float(near), float(far), abs_tol=2e-3)


def test_without_scaling_the_temperature_is_one():
    assert rope.yarn_mscale(1.0, 1.0) == 1.0
