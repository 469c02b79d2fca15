"""Which rows belong to which expert. All of it stays on the device, so that no host waits for counts.

Legend: P pairs of token and expert, E experts of this rank.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.builds import Build


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Places by expert: expert e has places starts[e] to starts[e] + counts[e] - 1, apart from all others'.

    starts_E, counts_E: int32. order_P: int32; the row at place r belongs to pair order[r]. Places that no expert has
    are never looked at. most_of_one: the most that one expert may have. usual: how many most experts have at most; it
    decides the size of tiles and nothing else.
    """

    starts_E: torch.Tensor
    counts_E: torch.Tensor
    order_P: torch.Tensor
    most_of_one: int
    usual: int

    @property
    def num_experts(self) -> int:
        """Experts, with rows or without."""
        return self.counts_E.shape[0]

    @property
    def num_places(self) -> int:
        """Places, with rows or without."""
        return self.order_P.shape[0]

    def most_tiles(self, rows: int) -> int:
        """How many tiles of `rows` rows the groups fill at most, whatever their counts."""
        by_expert = self.num_experts * -(-self.most_of_one // rows)
        return min(by_expert, self.num_places // rows + min(self.num_experts, self.num_places))


@triton.jit
def order_kernel(ids, order, starts, counts, num_pairs, first_expert, BLOCK: tl.constexpr):
    """One program an expert. It finds its start itself, by counting pairs of lower experts, and waits for no other."""
    expert = tl.program_id(0)
    b_lower = tl.zeros((BLOCK,), tl.int32)
    b_mine = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, num_pairs, BLOCK):
        o_p = first + tl.arange(0, BLOCK)
        b_e = tl.load(ids + o_p, mask=o_p < num_pairs, other=first_expert - 1) - first_expert
        b_lower += ((b_e >= 0) & (b_e < expert)).to(tl.int32)
        b_mine += (b_e == expert).to(tl.int32)
    start = tl.sum(b_lower, 0)
    count = tl.sum(b_mine, 0)
    tl.store(starts + expert, start)
    tl.store(counts + expert, count)
    if count > 0:
        for first in range(0, num_pairs, BLOCK):
            o_p = first + tl.arange(0, BLOCK)
            b_e = tl.load(ids + o_p, mask=o_p < num_pairs, other=first_expert - 1) - first_expert
            b_hit = (b_e == expert).to(tl.int32)
            tl.store(order + start + tl.cumsum(b_hit, 0) - 1, o_p, mask=b_hit != 0)
            start += tl.sum(b_hit, 0)


@functools.cache
def _build(number: str) -> Build:
    types = {"ids": f"*{number}", "order": "*i32", "starts": "*i32", "counts": "*i32"}
    return Build(kernel=order_kernel, types=types, constants={"BLOCK": 2048}, num_warps=8)


def configs() -> list[Build]:
    """Ids of both integer dtypes."""
    return [_build("i64"), _build("i32")]


def order_pairs(expert_ids_P: torch.Tensor, local_experts: range, *, expected_pairs: int | None = None) -> RowGroups:
    """Order pairs by expert and, inside an expert, as they come; see `reference.order_pairs`.

    expert_ids: int32 or int64, contiguous, of any shape, read flat: pair p has expert ids[p]. Pairs whose id is not one
    of `local_experts` (-1, say) get no place. expected_pairs: about how many get one; all of them if None. Bits repeat
    from run to run.
    """
    num_pairs, num_experts = expert_ids_P.numel(), len(local_experts)
    numbers = {torch.int64: "i64", torch.int32: "i32"}
    assert expert_ids_P.dtype in numbers, f"ids are {expert_ids_P.dtype}, must be int32 or int64"
    assert expert_ids_P.is_contiguous(), "ids must be contiguous"
    assert local_experts.step == 1 and num_experts > 0, f"experts are {local_experts}, must be one or more in a row"
    device = expert_ids_P.device
    order_P, starts_E, counts_E = (
        torch.empty(n, dtype=torch.int32, device=device) for n in (num_pairs, num_experts, num_experts)
    )
    _build(numbers[expert_ids_P.dtype]).launch(
        (num_experts,), ids=expert_ids_P, order=order_P, starts=starts_E, counts=counts_E,
        num_pairs=num_pairs, first_expert=local_experts.start,
    )  # fmt: skip
    expected = num_pairs if expected_pairs is None else expected_pairs
    return RowGroups(starts_E, counts_E, order_P, num_pairs, _usual(expected, num_experts))


def contiguous_groups(counts_E: torch.Tensor, num_rows: int) -> RowGroups:
    """`num_rows` rows that lie by expert without gaps. counts: int32 [E] on the device, `num_rows` in all at most."""
    starts_E = torch.cumsum(counts_E, 0, dtype=torch.int32) - counts_E
    order_P = _as_they_lie(num_rows, counts_E)
    return RowGroups(starts_E, counts_E, order_P, num_rows, _usual(num_rows, counts_E.shape[0]))


def masked_groups(counts_E: torch.Tensor, capacity: int, *, usual: int) -> RowGroups:
    """Room for `capacity` rows for each expert, filled from its beginning. counts: int32 [E] on the device."""
    assert capacity > 0, f"capacity is {capacity}, must be above 0"
    num_experts = counts_E.shape[0]
    order_P = _as_they_lie(num_experts * capacity, counts_E)
    return RowGroups(order_P[::capacity].contiguous(), counts_E, order_P, capacity, usual)


def single_group(num_rows: int, device: torch.device | str) -> RowGroups:
    """All rows for one expert, as a dense MLP is. To be made once a step, not once a layer."""
    counts_E = torch.full((1,), num_rows, dtype=torch.int32, device=device)
    return RowGroups(torch.zeros_like(counts_E), counts_E, _as_they_lie(num_rows, counts_E), num_rows, num_rows)


def _as_they_lie(num_rows: int, beside: torch.Tensor) -> torch.Tensor:
    return torch.arange(num_rows, dtype=torch.int32, device=beside.device)


def _usual(num_rows: int, num_experts: int) -> int:
    """Half as many again as the mean: few experts have more where a router spreads tokens evenly."""
    return -(-3 * num_rows // (2 * num_experts))
