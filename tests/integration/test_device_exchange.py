"""Experts of several ranks on a device: records of a fixed size give what counted rows give, and one rank alone.

Ranks are processes over gloo. A layer runs with the kernels, interpreted; whole steps with references in their place.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from baleen.ids import Epoch, Incarnation
from kernels.quant.reference import quantise_activations
from kernels.quant.scaled import Scaled
from kernels.quant.weights import quantise_weight
from kernels.testing.compare import assert_same_bits, difference
from tests.support.clock import ManualClock
from tests.support.golden import golden
from tests.support.group_programs import Puppets, group_config
from tests.support.models import make_golden_checkpoint
from tests.support.processes import nursery
from workers.model.device_weights import DeviceMoe
from workers.parallel.local_group import LocalGroup

pytest.importorskip("triton", reason="triton is not installed on this platform")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled")

EXPERTS, HIDDEN, INNER, CHOSEN, FILLED = 8, 128, 128, 2, 3
NAME = "dev_bf16.golden"


def experts_of(ranks: range, *, float8: bool) -> DeviceMoe:
    """The weights of the experts of these; gate and shared experts are not looked at."""
    g = torch.Generator().manual_seed(1)
    shapes = ((EXPERTS, 2 * INNER, HIDDEN), (EXPERTS, HIDDEN, INNER))
    stored = [(torch.randn(shape, generator=g) / shape[2] ** 0.5)[ranks.start : ranks.stop] for shape in shapes]
    if float8:
        pairs = [zip(*(quantise_weight(one) for one in w), strict=True) for w in stored]
        matrices = [Scaled(*(torch.stack(parts) for parts in pair)) for pair in pairs]
    else:
        matrices = [Scaled(w.bfloat16()) for w in stored]
    return DeviceMoe(torch.empty(0), torch.empty(0), *matrices, shared=None)


def rows_of(rank: int, count: int, *, float8: bool, filled: bool = False):
    """(rows, ids, weights, beside) of a rank, perhaps filled up with rows of NaN that have experts nevertheless."""
    g = torch.Generator().manual_seed(10 + rank)
    x = torch.randn(FILLED, HIDDEN, generator=g).bfloat16()
    ids = torch.stack([torch.randperm(EXPERTS, generator=g)[:CHOSEN] for _ in range(FILLED)])
    weights, beside = torch.rand(FILLED, CHOSEN, generator=g), torch.randn(FILLED, HIDDEN, generator=g).bfloat16()
    if rank == 0:
        # one that has no expert at all, and one that has one
        ids[0], ids[1, 0] = -1, -1
        weights[0], weights[1, 0] = 0, 0
    end = FILLED if filled else count
    x, ids, weights, beside = x[:end], ids[:end], weights[:end], beside[:end]
    rows = Scaled(*quantise_activations(x, ue8m0=True)) if float8 else Scaled(x.clone())
    if filled:
        (rows.values[count:] if rows.scales is None else rows.scales[count:]).fill_(float("nan"))
    return rows, ids, weights, beside


def operations():
    from kernels.dispatch import triton_operations

    return triton_operations()


def one_layer(strings, counts, float8):
    """On one rank: its answers in both forms, which rows have all their experts, and how many pairs records brought."""
    from workers.model.device_experts import ExchangedExperts

    exchange, pairs = strings.group.expert_exchange(EXPERTS), []

    def counting(rows, ids, *rest, **named):
        pairs.append(int((ids >= 0).sum()))
        return plain.rank_answers(rows, ids, *rest, **named)

    plain = operations()
    experts = ExchangedExperts(replace(plain, rank_answers=counting), exchange)
    mlp = experts_of(exchange.local_experts, float8=float8)
    count = counts[strings.config.rank]
    rows, ids, weights, beside = rows_of(strings.config.rank, count, float8=float8)
    present = (ids >= 0).all(1)  # counted rows have all their experts
    counted = torch.zeros(count, HIDDEN, dtype=torch.bfloat16)
    some = Scaled(rows.values[present], None if rows.scales is None else rows.scales[present])
    counted[present] = experts(some, ids[present], weights[present], mlp, beside[present], None)
    filled = rows_of(strings.config.rank, count, float8=float8, filled=True)
    padding = torch.arange(FILLED)[:, None] >= count
    records = experts(*filled[:3], mlp, filled[3], padding)[:count]
    return counted, records, present, sum(pairs)


def sum_of_parts(rank, count, num_ranks, *, float8):
    """What the ranks' own sums add up to, without any rank but this process."""
    ops, share = operations(), EXPERTS // num_ranks
    rows, ids, weights, beside = rows_of(rank, count, float8=float8)
    parts = []
    for other in range(num_ranks):
        local = range(other * share, (other + 1) * share)
        here = (ids >= local.start) & (ids < local.stop)
        asked = torch.where(here, ids, -1), torch.where(here, weights, 0.0)
        mlp = experts_of(local, float8=float8)
        parts.append(ops.rank_answers(rows, *asked, local, mlp.gate_up, mlp.down, expected_pairs=FILLED * CHOSEN))
    return ops.sum_parts(torch.stack(parts), beside_TD=beside, dtype=torch.bfloat16)


@pytest.mark.parametrize(("counts", "float8"), [((3, 1), False), ((2, 0, 3, 1), True)])
def test_records_give_the_sum_of_the_ranks_parts_and_what_counted_rows_give(tmp_path, counts, float8):
    from workers.model.device_experts import LocalExperts

    with nursery(tmp_path) as children:
        ranks = Puppets(children, group_config(tmp_path, len(counts)))
        answers = ranks.all(one_layer, counts, float8)
        ranks.close()
        assert [child.wait() for child in ranks.children] == [0] * len(counts)
    asked = [rows_of(rank, count, float8=float8)[1] for rank, count in enumerate(counts)]
    assert sum(answer[3] for answer in answers) == sum(int((ids >= 0).sum()) for ids in asked), "padding goes nowhere"
    alone = LocalExperts(operations(), EXPERTS)
    for rank, (count, (counted, records, present, _)) in enumerate(zip(counts, answers, strict=True)):
        if not count:
            assert counted.shape == records.shape == (0, HIDDEN)
            continue
        assert_same_bits(records, sum_of_parts(rank, count, len(counts), float8=float8))
        # rounded to bfloat16 once more, for each rank
        assert difference(records[present], counted[present]) < 0.004
        whole = alone(*rows_of(rank, count, float8=float8)[:3], experts_of(range(EXPERTS), float8=float8), None)
        beside = rows_of(rank, count, float8=float8)[3]
        assert difference(records, (whole.float() + beside.float()).bfloat16()) < 0.004


def test_decode_steps_of_two_ranks_are_of_one_size_and_give_what_one_rank_gives(tmp_path):
    """Prompts on one rank while the other decodes, both decode with other numbers of rows, one idles at last."""
    from tests.support.device_ranks import Planned, make_runner, planned_rank, run_plan

    directory = make_golden_checkpoint(NAME, tmp_path / "model")
    cases = golden(NAME)["cases"]
    plans = [
        [Planned(cases[0]["prompt"], 0, 5), Planned(cases[1]["prompt"], 0, 5)],
        [Planned(cases[1]["prompt"][:40], 1, 3)],
    ]
    with nursery(tmp_path) as children:
        config = group_config(tmp_path, 2)
        ranks = [
            children.fork(f"rank {rank}", planned_rank, replace(config, rank=rank), directory, "bfloat16", plan, 5)
            for rank, plan in enumerate(plans)
        ]
        found = [rank.event(120.0) for rank in ranks]
        assert [rank.wait() for rank in ranks] == [0, 0]
    longest = len(plans[0][1].prompt)
    assert found[0]["sizes"] == found[1]["sizes"] == [None, None, *([2, longest + step] for step in (2, 3, 4))]
    for plan, ours in zip(plans, found, strict=True):
        group = LocalGroup(Epoch("e"), Incarnation("i"), lambda cause: None, ManualClock())
        alone = run_plan(make_runner(directory, group, torch.device("cpu"), "bfloat16"), group, plan, 5)
        for expected, answer in zip(alone["answers"], ours["answers"], strict=True):
            assert max(abs(a - b) for a, b in zip(answer, expected, strict=True)) < 0.05
