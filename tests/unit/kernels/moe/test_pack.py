"""Records: every byte of the reference where a rank has experts of a token, and a whole layer through them."""

import pytest
import torch

from kernels.moe import pack_reference, reference
from kernels.quant.scaled import Scaled
from kernels.testing.compare import assert_same_bits, difference
from kernels.testing.shapes import generator
from tests.unit.kernels.moe.test_rank import CHOSEN, EXPERTS, HIDDEN, TOKENS, problem, share

RANKS = 4


def rows_of(num_tokens, hidden, slots, device, *, float8, num_experts=16):
    g = generator()
    ids = torch.randint(0, num_experts, (num_tokens, slots), generator=g).to(device)
    weights = torch.rand(num_tokens, slots, generator=g).to(device)
    x = torch.randn(num_tokens, hidden, generator=g)
    if not float8:
        return Scaled(x.bfloat16().to(device)), ids, weights
    scales = torch.rand(num_tokens, hidden // 128, generator=g).to(device)
    return Scaled(x.to(torch.float8_e4m3fn).to(device), scales), ids, weights


@pytest.mark.parametrize("float8", [True, False])
@pytest.mark.parametrize(("num_tokens", "hidden", "slots"), [(0, 256, 8), (1, 7168, 8), (5, 1280, 3)])
def test_bytes_are_the_references(device, num_tokens, hidden, slots, float8):
    from kernels.moe.pack import pack_for_ranks, unpack_rows
    from kernels.moe.record import RecordLayout

    given = rows_of(num_tokens, hidden, slots, device, float8=float8)
    given[1][:1], given[1][:1, 1:3] = 6, -1  # the first token has experts on one rank only
    sizes = {"num_experts": 16, "num_ranks": RANKS}
    records = pack_for_ranks(*given, **sizes)
    layout = RecordLayout(hidden, slots, float8=float8)
    rows, ids, weights = unpack_rows(records.flatten(0, 1), layout)
    on_cpu = Scaled(given[0].values.cpu(), None if given[0].scales is None else given[0].scales.cpu())
    wanted = pack_reference.pack_for_ranks(on_cpu, given[1].cpu(), given[2].cpu(), **sizes)
    assert records.shape == wanted.shape and layout.num_bytes % 16 == 0
    expected, expected_ids, expected_weights = pack_reference.unpack_rows(
        wanted.flatten(0, 1), hidden, slots, float8=float8
    )
    assert_same_bits(ids, expected_ids, what="ids")
    assert_same_bits(weights, expected_weights, what="weights")
    sent = (expected_ids >= 0).any(1)
    assert num_tokens == 0 or 0 < int(sent.sum()) < sent.numel()
    for got, truth in ((rows.values, expected.values), (rows.scales, expected.scales)):
        if truth is not None:
            assert_same_bits(got.cpu()[sent].view(torch.uint8), truth[sent].view(torch.uint8))
    # and a record that goes nowhere is not written
    assert (records.flatten(0, 1)[~sent.to(device), : layout.ids_at] == 0xFF).all()


def test_the_reference_writes_what_the_module_says():
    x = Scaled(torch.full((1, 128), 1.0).to(torch.float8_e4m3fn), torch.tensor([[2.0]]))
    records = pack_reference.pack_for_ranks(
        x, torch.tensor([[5, 1]]), torch.tensor([[0.5, 0.25]]), num_experts=8, num_ranks=2
    )
    assert records.shape == (2, 1, 160)
    words = records.view(torch.int32)[:, 0, 33:37]
    assert words[:, :2].tolist() == [[-1, 1], [5, -1]]
    assert words[:, 2:].view(torch.float32).tolist() == [[0.0, 0.25], [0.5, 0.0]]
    assert (records[:, 0, :128] == x.values.view(torch.uint8)).all()


@pytest.mark.slow
@pytest.mark.parametrize("float8", [True, False])
def test_a_layer_over_ranks_is_the_layer(device, float8):
    """Every rank packs its own tokens; what arrives is what all_to_all_single of equal parts would bring."""
    from kernels.moe.combine import sum_parts
    from kernels.moe.pack import pack_for_ranks, unpack_rows
    from kernels.moe.rank import rank_answers
    from kernels.moe.record import RecordLayout

    x, ids, weights, matrices = problem(device, float8=float8)
    ids, weights = ids.to(device), weights.to(device)
    half = TOKENS // 2
    halves = [slice(0, half), slice(half, TOKENS)]
    sent = [
        pack_for_ranks(
            Scaled(x.values[own].clone(), None if x.scales is None else x.scales[own].clone()),
            ids[own].clone(), weights[own].clone(), num_experts=EXPERTS, num_ranks=2,
        )
        for own in halves
    ]  # fmt: skip
    layout, answers = RecordLayout(HIDDEN, CHOSEN, float8=float8), []
    for rank in range(2):
        experts = range(rank * EXPERTS // 2, (rank + 1) * EXPERTS // 2)
        rows, row_ids, row_weights = unpack_rows(torch.cat([one[rank] for one in sent]), layout)
        own = [share(matrix, experts) for matrix in matrices]
        answers.append(rank_answers(rows, row_ids, row_weights, experts, *own, expected_pairs=TOKENS * CHOSEN // 2))
    totals = [sum_parts(torch.stack([answer[own] for answer in answers])).cpu() for own in halves]
    cpu = [Scaled(m.values.cpu(), None if m.scales is None else m.scales.cpu()) for m in (x, *matrices)]
    whole = reference.expert_mlps(cpu[0], ids.cpu(), *cpu[1:], copies=CHOSEN)
    assert difference(torch.cat(totals), reference.combine_pairs(whole, weights.cpu())) < 3e-5


def test_what_is_refused(device):
    from kernels.moe.pack import pack_for_ranks, unpack_rows
    from kernels.moe.record import RecordLayout

    x, ids, weights = rows_of(2, 256, 4, device, float8=True)
    sizes = {"num_experts": 16, "num_ranks": RANKS}
    for wrong in (
        (Scaled(x.values), ids, weights),
        (Scaled(x.values, x.scales[:, :1]), ids, weights),
        (x, ids.int(), weights),
        (x, ids[:1], weights),
        (x, ids, weights.double()),
    ):
        with pytest.raises(AssertionError, match="must"):
            pack_for_ranks(*wrong, **sizes)
    with pytest.raises(AssertionError, match="16 experts on 3 ranks"):
        pack_for_ranks(x, ids, weights, num_experts=16, num_ranks=3)
    records = pack_for_ranks(x, ids, weights, **sizes).flatten(0, 1)
    with pytest.raises(AssertionError, match="records of 304 bytes, must be 320"):
        unpack_rows(records, RecordLayout(256, 6, float8=True))
