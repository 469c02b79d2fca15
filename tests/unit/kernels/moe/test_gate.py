"""The gate kernel chooses what the reference chooses, in its order; ties, groups, and numbers that are none."""

import pytest
import torch

from kernels.moe import reference
from kernels.testing.compare import assert_close, assert_same_bits
from kernels.testing.shapes import generator
from tests.support.golden import golden

# of weights: sums of another order, and on a GPU those of tensor cores
RELATIVE = {"cpu": 3e-6, "cuda": 3e-5}
MODEL = {"experts_per_token": 8, "num_groups": 8, "topk_groups": 4, "normalise": True, "scaling": 2.5}


def assert_same(x, weight, bias, **options):
    from kernels.moe.gate import gate

    ids, weights = gate(x, weight, bias, **options)
    expected_ids, expected_weights = reference.gate(x.cpu(), weight.cpu().float(), bias.cpu(), **options)
    assert_same_bits(ids, expected_ids, what="ids")
    assert_close(weights, expected_weights, relative=RELATIVE[x.device.type], what="weights")
    return ids, weights


def problem(device, num_tokens, num_experts, width, dtype):
    g = generator()
    x = torch.randn(num_tokens, width, generator=g).to(dtype).to(device)
    weight = (torch.randn(num_experts, width, generator=g) / width**0.5).to(dtype).to(device)
    return x, weight, (torch.randn(num_experts, generator=g) * 0.1).to(device)


def by_logits(logits, bias, device, **options):
    """The gate when row t of x times the identity is logits[t]."""
    logits = torch.as_tensor(logits, dtype=torch.float32)
    identity = torch.eye(logits.shape[1], device=device)
    return assert_same(logits.to(device), identity, torch.as_tensor(bias, dtype=torch.float32).to(device), **options)


@pytest.mark.parametrize(("num_tokens", "num_experts", "width"), [(0, 256, 640), (5, 256, 1100), (33, 64, 64)])
def test_choice_is_the_references(device, num_tokens, num_experts, width):
    x, weight, bias = problem(device, num_tokens, num_experts, width, torch.bfloat16)
    _, weights = assert_same(x, weight, bias, **MODEL)
    assert_close(weights.sum(1), torch.full((num_tokens,), 2.5), relative=1e-6)


@pytest.mark.parametrize(("groups", "kept", "normalise"), [(1, 1, True), (4, 2, False), (6, 5, True), (4, 4, True)])
def test_numbers_of_experts_and_groups_that_are_no_powers_of_two(device, groups, kept, normalise):
    x, weight, bias = problem(device, 5, 24, 72, torch.float32)
    options = {"experts_per_token": 5, "num_groups": groups, "topk_groups": kept, "normalise": normalise}
    assert_same(x, weight, bias, scaling=1.5, **options)


def test_weights_in_float32_beside_rows_in_bfloat16(device):
    x, weight, bias = problem(device, 3, 16, 64, torch.bfloat16)
    wide = torch.zeros(3, 100, dtype=torch.bfloat16, device=device)
    wide[:, :64] = x
    few = {"experts_per_token": 3, "num_groups": 1, "topk_groups": 1, "normalise": True, "scaling": 1.0}
    ids, _ = assert_same(wide[:, :64], weight.float() * 1.001, bias, **few)
    assert ids.shape == (3, 3)


def test_a_float32_copy_of_bfloat16_weights_gives_the_same_bits(device):
    from kernels.moe.gate import gate

    x, weight, bias = problem(device, 3, 16, 1100, torch.bfloat16)
    few = {"experts_per_token": 3, "num_groups": 1, "topk_groups": 1, "normalise": True, "scaling": 1.0}
    for found, copied in zip(gate(x, weight, bias, **few), gate(x, weight.float(), bias, **few), strict=True):
        assert torch.equal(found, copied)


def test_the_golden_case(device):
    expected = golden("primitives")["gate"]
    ids, weights = by_logits([expected["logits"]], expected["bias"], device, **MODEL)
    order = ids[0].argsort()
    assert ids[0][order].tolist() == expected["experts"]
    assert_close(weights[0][order], torch.tensor(expected["weights"]), absolute=1e-6)


def test_of_equals_the_lower_expert_and_the_lower_group_win(device):
    few = {"experts_per_token": 3, "num_groups": 4, "topk_groups": 2, "normalise": True, "scaling": 1.0}
    ids, _ = by_logits(torch.zeros(2, 16), torch.zeros(16), device, **few)
    assert ids.tolist() == [[0, 1, 2]] * 2
    logits = torch.zeros(1, 16)
    logits[0, [6, 14, 13]] = 1.0  # group 3 is best, and group 1 is the best of the rest
    assert by_logits(logits, torch.zeros(16), device, **few)[0].tolist() == [[6, 13, 14]]
    two_valued = (torch.arange(64) % 3 == 0).float()[None].repeat(3, 1)
    by_logits(two_valued, torch.zeros(64), device, **(few | {"experts_per_token": 8}))


def test_the_bias_decides_the_choice_only_and_a_negative_one_is_no_mask(device):
    logits = torch.randn(4, 32, generator=generator())
    bias = torch.randn(32, generator=generator(1)) - 3  # every biased score is below zero
    few = {"experts_per_token": 4, "num_groups": 4, "topk_groups": 1, "normalise": False, "scaling": 1.0}
    ids, weights = by_logits(logits, bias, device, **few)
    assert_close(weights, logits.sigmoid().gather(1, ids.cpu()), relative=RELATIVE[weights.device.type])
    assert (ids // 8 == ids[:, :1] // 8).all()


def test_a_token_does_not_depend_on_its_batch(device):
    from kernels.moe.gate import gate

    # numpy, in the interpreter, may sum in another order in a tile of another size
    x, weight, bias = problem(device, 12 if device == "cpu" else 200, 32, 1100, torch.bfloat16)
    few = {"experts_per_token": 4, "num_groups": 4, "topk_groups": 2, "normalise": True, "scaling": 2.5}
    together = gate(x, weight, bias, **few)
    alone = gate(x[7:8].clone(), weight, bias, **few)
    for one, all_of_them in zip(alone, together, strict=True):
        assert_same_bits(one[0], all_of_them[7])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, in the interpreter
def test_numbers_that_are_none_give_ids_that_exist(device):
    from kernels.moe.gate import gate

    x, weight, bias = problem(device, 3, 16, 64, torch.float32)
    x[1, 3] = float("nan")
    bias[4], bias[5] = float("nan"), -float("inf")
    few = {"experts_per_token": 4, "num_groups": 4, "topk_groups": 2, "normalise": True, "scaling": 1.0}
    ids, weights = gate(x, weight, bias, **few)
    assert ids[1].sort().values.tolist() == [0, 1, 2, 3]
    assert ((ids >= 0) & (ids < 16)).all()
    assert not (ids[[0, 2]] == 4).any() and not (ids[[0, 2]] == 5).any()
    assert weights[[0, 2]].isfinite().all()


def test_a_planted_error_is_found(device):
    x, weight, bias = problem(device, 4, 16, 64, torch.float32)
    few = {"experts_per_token": 3, "num_groups": 1, "topk_groups": 1, "normalise": True, "scaling": 1.0}
    from kernels.moe.gate import gate

    _, weights = gate(x, weight, bias, **few)
    weight[:, 5] *= 1.01
    with pytest.raises(AssertionError, match="elements are wrong"):
        assert_close(weights, reference.gate(x.cpu(), weight.cpu(), bias.cpu(), **few)[1], relative=RELATIVE[device])


def test_what_is_refused(device):
    from kernels.moe.gate import gate

    x, weight, bias = problem(device, 2, 16, 64, torch.float32)
    few = {"experts_per_token": 4, "num_groups": 4, "topk_groups": 1, "normalise": True, "scaling": 1.0}
    for wrong in ((x.half(), weight, bias), (x.t(), weight, bias), (x, weight.bfloat16(), bias), (x, weight, bias[:8])):
        with pytest.raises(AssertionError, match="must"):
            gate(*wrong, **few)
    with pytest.raises(AssertionError, match="5 experts a token, must be at most 4"):
        gate(x, weight, bias, **(few | {"experts_per_token": 5}))
