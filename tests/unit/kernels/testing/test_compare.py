"""Comparison fails on planted errors, and names the worst."""

import pytest
import torch

from kernels.testing.compare import assert_close, assert_same_bits, difference

NAN, INF = float("nan"), float("inf")


def test_the_worst_element_is_named():
    expected = torch.arange(12.0).reshape(3, 4) + 1
    got = expected.clone()
    got[1] *= 1.01
    assert_close(got, expected, relative=0.011)
    with pytest.raises(AssertionError, match=r"4 of 12 elements are wrong; the worst is at \(1, 3\): 8\.0.*expected 8"):
        assert_close(got, expected, relative=0.005)


@pytest.mark.parametrize(
    ("got", "expected"), [(NAN, 0.0), (0.0, NAN), (INF, 1.0), (1.0, INF), (INF, -INF), (1.0, -INF)]
)
def test_what_is_not_finite_is_never_near(got, expected):
    with pytest.raises(AssertionError, match="1 of 2 elements are wrong"):
        assert_close(torch.tensor([got, 1.0]), torch.tensor([expected, 1.0]), absolute=1e9, relative=1e9)


def test_nan_and_infinities_meet_their_like():
    x = torch.tensor([NAN, INF, -INF, 0.0])
    assert_close(x, x.clone())


def test_shapes_must_agree():
    with pytest.raises(AssertionError, match=r"shape \(2,\), expected \(1, 2\)"):
        assert_close(torch.zeros(2), torch.zeros(1, 2))
    assert_close(torch.zeros(0, 3), torch.zeros(0, 3))


def test_bits_are_compared_as_bits():
    assert_same_bits(torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0]))
    with pytest.raises(AssertionError, match=r"1 of 2 elements differ in bits; the first is at \(1,\): -0"):
        assert_same_bits(torch.tensor([1.0, -0.0]), torch.tensor([1.0, 0.0]))
    with pytest.raises(AssertionError, match="float32, expected"):
        assert_same_bits(torch.zeros(1), torch.zeros(1).double())


def test_difference_of_one_row_off_by_a_hundredth():
    expected = torch.ones(100, 8)
    got = expected.clone()
    got[7] *= 1.01
    assert difference(expected, expected) == 0.0 == difference(torch.zeros(3), torch.zeros(3))
    assert difference(got, expected) == pytest.approx(5e-7, rel=0.1)
