"""Experts' MLPs against one expert at a time: all dtypes, load patterns, layouts and tiles."""

import pytest
import torch

from kernels.moe import reference
from kernels.quant.reference import quantise_activations
from kernels.quant.scaled import Scaled
from kernels.quant.weights import quantise_weight
from kernels.testing.compare import assert_close, assert_same_bits, difference
from kernels.testing.poison import sparse
from kernels.testing.shapes import generator

# float8 of h may round the other way where sums differ in their last bit; bfloat16 rounds twice
BOUNDS = {torch.float8_e4m3fn: 2e-5, torch.bfloat16: 5e-6, torch.float32: 1e-11}
FLOAT8 = torch.float8_e4m3fn


def weights_of(num_experts, hidden, inner, dtype, device):
    g = generator(5)
    gate_up = torch.randn(num_experts, 2 * inner, hidden, generator=g) / hidden**0.5
    down = torch.randn(num_experts, hidden, inner, generator=g) / inner**0.5
    if dtype != FLOAT8:
        return [Scaled(w.to(dtype).to(device)) for w in (gate_up, down)]
    gate_up[:, :128] *= 4  # blocks with scales of their own
    down[:, :, :128] *= 2.0**-4
    pairs = [[quantise_weight(one) for one in w] for w in (gate_up, down)]
    return [Scaled(*(torch.stack(parts).to(device) for parts in zip(*pair, strict=True))) for pair in pairs]


def rows_of(num_rows, hidden, dtype, device):
    x = torch.randn(num_rows, hidden, generator=generator(6))
    if dtype != FLOAT8:
        return Scaled(x.to(dtype).to(device))
    return Scaled(*(t.to(device) for t in quantise_activations(x.bfloat16(), ue8m0=True)))


def on_cpu(matrix):
    return Scaled(matrix.values.cpu(), None if matrix.scales is None else matrix.scales.cpu())


def expert_of_pair(groups, num_pairs):
    """What the groups say, pair by pair; -1 for pairs without an expert."""
    expert = torch.full((num_pairs,), -1)
    for e, (start, count) in enumerate(zip(groups.starts_E.tolist(), groups.counts_E.tolist(), strict=True)):
        expert[groups.order_P[start : start + count].long().cpu()] = e
    return expert


def check(x, groups, weights, *, copies=1):
    """Compare with the reference, row by row; rows without an expert keep their poison. Returns the answers."""
    from kernels.moe.experts import expert_mlps

    y = expert_mlps(x, groups, *weights, copies=copies)
    expert = expert_of_pair(groups, groups.num_places)
    expected = reference.expert_mlps(on_cpu(x), expert, *map(on_cpu, weights), copies=copies)
    here = expert >= 0
    assert y.dtype == expected.dtype
    assert y.cpu()[~here].isnan().all()
    for row in here.nonzero()[:, 0].tolist():
        assert difference(y[row], expected[row]) < BOUNDS[weights[0].values.dtype], f"row {row}"
    return y


LOADS = {
    "uniform": [0, 1, 2, 0, 1, 2, 0],
    "all on one": [1] * 17,
    "empty ones": [2, 2, 0],
    "foreign": [-1, 2, 5, 0, -1],
    "one row": [1],
}


@pytest.mark.parametrize("dtype", [FLOAT8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("load", LOADS)
def test_each_expert_gets_its_own_rows(device, dtype, load):
    from kernels.moe.order import order_pairs

    groups = order_pairs(torch.tensor(LOADS[load], device=device), range(3))
    hidden, inner = (256, 128) if dtype != torch.float32 else (96, 40)
    check(rows_of(len(LOADS[load]), hidden, dtype, device), groups, weights_of(3, hidden, inner, dtype, device))


@pytest.mark.parametrize("dtype", [FLOAT8, torch.bfloat16])
@pytest.mark.parametrize("count", [15, 16, 17, 33, 65, 129])
def test_every_tile(device, dtype, count):
    from kernels.moe.experts import DOWN_TILES, GATE_UP_TILES, tile_for
    from kernels.moe.order import contiguous_groups

    counts = torch.tensor([count, 1], dtype=torch.int32, device=device)
    groups = contiguous_groups(counts, count + 1)
    for tiles in (GATE_UP_TILES[dtype], DOWN_TILES[dtype]):
        assert tile_for(tiles, groups.usual).rows >= min(128, groups.usual)
    hidden, inner = (128, 256) if count < 20 else (128, 128)
    check(rows_of(count + 1, hidden, dtype, device), groups, weights_of(2, hidden, inner, dtype, device))


def test_copies_read_one_row_for_each_token(device):
    from kernels.moe.order import order_pairs

    ids = torch.tensor([[0, 2], [1, 0], [2, 1]], device=device)
    weights = weights_of(3, 128, 128, FLOAT8, device)
    x = rows_of(3, 128, FLOAT8, device)
    twice = Scaled(x.values.view(torch.uint8).repeat_interleave(2, 0).view(FLOAT8), x.scales.repeat_interleave(2, 0))
    groups = order_pairs(ids, range(3))
    assert_same_bits(check(x, groups, weights, copies=2), check(twice, groups, weights))


def test_the_masked_layout_looks_at_filled_rows_only(device):
    from kernels.moe.order import masked_groups

    counts = torch.tensor([3, 0, 18], dtype=torch.int32, device=device)
    x = rows_of(3 * 20, 128, FLOAT8, device)
    spoiled = Scaled(x.values.clone(), x.scales.clone())
    for first, end in ((3, 40), (58, 60)):
        spoiled.scales[first:end] = float("nan")
    weights = weights_of(3, 128, 128, FLOAT8, device)
    groups = masked_groups(counts, 20, usual=8)
    given = check(spoiled, groups, weights)
    for rows in (slice(0, 3), slice(40, 58)):
        assert_same_bits(given[rows], check(x, groups, weights)[rows])


def test_an_empty_expert_is_not_read_and_no_rows_give_none(device):
    from kernels.moe.experts import expert_mlps
    from kernels.moe.order import order_pairs

    gate_up, down = weights_of(3, 128, 128, torch.bfloat16, device)
    gate_up.values[1], down.values[1] = float("nan"), float("nan")
    y = check(
        rows_of(2, 128, torch.bfloat16, device), order_pairs(torch.tensor([2, 0]).to(device), range(3)), (gate_up, down)
    )
    assert y.isfinite().all()
    none = order_pairs(torch.zeros(0, dtype=torch.int64, device=device), range(3))
    assert expert_mlps(rows_of(0, 128, torch.bfloat16, device), none, gate_up, down).shape == (0, 128)


def test_a_dense_mlp_is_one_expert(device):
    from kernels.moe.order import single_group

    for dtype, (hidden, inner) in {FLOAT8: (128, 256), torch.bfloat16: (72, 56)}.items():
        check(rows_of(9, hidden, dtype, device), single_group(9, device), weights_of(1, hidden, inner, dtype, device))


def test_bits_repeat_and_do_not_depend_on_the_order_of_tokens(device):
    from kernels.moe.experts import expert_mlps
    from kernels.moe.order import order_pairs

    ids, weights = torch.tensor([0, 1, 1, 0, 2, 1], device=device), weights_of(3, 128, 128, FLOAT8, device)
    x = rows_of(6, 128, FLOAT8, device)
    first = expert_mlps(x, order_pairs(ids, range(3)), *weights)
    assert_same_bits(expert_mlps(x, order_pairs(ids, range(3)), *weights), first)
    mixed = torch.tensor([3, 5, 0, 4, 2, 1], device=device)
    moved = Scaled(x.values.view(torch.uint8)[mixed].view(FLOAT8), x.scales[mixed])
    assert_same_bits(expert_mlps(moved, order_pairs(ids[mixed], range(3)), *weights), first[mixed])


@pytest.mark.parametrize("which", ["gate_up scale", "down scale", "row scale", "weight"])
def test_a_planted_error_is_found(device, which):
    from kernels.moe.experts import expert_mlps
    from kernels.moe.order import order_pairs

    groups = order_pairs(torch.tensor([1, 0, 1], device=device), range(2))
    x, (gate_up, down) = rows_of(3, 256, FLOAT8, device), weights_of(2, 256, 128, FLOAT8, device)
    expected = check(x, groups, (gate_up, down))
    {"gate_up scale": gate_up.scales[1, 1], "down scale": down.scales[1, 1], "row scale": x.scales[2]}.get(
        which, x.scales[2, :0]
    ).mul_(1.02)
    if which == "weight":
        down.values.view(torch.uint8)[1, :64] ^= 1
    assert difference(expert_mlps(x, groups, gate_up, down)[2], expected[2]) > BOUNDS[FLOAT8]


@pytest.mark.slow
def test_experts_beyond_int32(device):
    from kernels.moe.experts import expert_mlps
    from kernels.moe.order import order_pairs

    num_experts, hidden, inner = 256, 4224, 2048
    assert num_experts * hidden * inner > 2**31
    gate_up = sparse((num_experts, 2 * inner, hidden), (2 * inner * hidden, hidden, 1), torch.uint8, device)
    down = sparse((num_experts, hidden, inner), (hidden * inner, inner, 1), torch.uint8, device)
    (one_up, one_down), last = weights_of(1, hidden, 128, FLOAT8, device), num_experts - 1
    gate_up[last, :128], gate_up[last, inner : inner + 128] = one_up.values[0].view(torch.uint8).split(128)
    down[last, :, :128] = one_down.values[0].view(torch.uint8)
    scales = torch.ones(num_experts, 2 * inner // 128, hidden // 128, device=device)
    scales[last, 0], scales[last, inner // 128] = one_up.scales[0]
    down_scales = torch.ones(num_experts, hidden // 128, inner // 128, device=device)
    down_scales[last, :, :1] = one_down.scales[0]
    x = rows_of(1, hidden, FLOAT8, device)
    whole = [Scaled(gate_up.view(FLOAT8), scales), Scaled(down.view(FLOAT8), down_scales)]
    got = expert_mlps(x, order_pairs(torch.tensor([last], device=device), range(num_experts)), *whole)
    expected = expert_mlps(x, order_pairs(torch.tensor([0], device=device), range(1)), one_up, one_down)
    assert_close(got, expected)


def test_what_is_refused(device):
    from kernels.moe.experts import expert_mlps
    from kernels.moe.order import order_pairs

    groups = order_pairs(torch.tensor([1, 0], device=device), range(2))
    x, (gate_up, down) = rows_of(2, 128, FLOAT8, device), weights_of(2, 128, 128, FLOAT8, device)
    bf16 = weights_of(2, 128, 128, torch.bfloat16, device)
    for wrong in (
        (Scaled(x.values.bfloat16()), gate_up, down),
        (x, *bf16),
        (x, Scaled(gate_up.values[:1], gate_up.scales), down),
        (x, Scaled(gate_up.values.transpose(1, 2), gate_up.scales), down),
        (x, gate_up, Scaled(down.values, down.scales[:, :0])),
        (x, gate_up, Scaled(down.values)),
        (Scaled(x.values, x.scales.double()), gate_up, down),
    ):
        with pytest.raises(AssertionError, match=r"must|has shape"):
            expert_mlps(wrong[0], groups, *wrong[1:])
