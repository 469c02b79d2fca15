"""One suite for every ExpertExchange: what is asked of `local` is asked of `all_to_all` over 1, 2 and 4 ranks.

The truth is `expected_*` below: plain loops over tokens and slots that share no code with either implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.clock import SystemClock
from baleen.errors import ConfigError, EpochEnded
from tests.support.group_programs import Puppets, Strings, group_config
from tests.support.processes import nursery
from workers.parallel.all_to_all import AllToAllExchange
from workers.parallel.collectives import Collectives
from workers.parallel.dispatch import ExpertExchange
from workers.parallel.local import LocalExchange
from workers.parallel.progress import Progress

WORLD_SIZE = 4


@dataclass(frozen=True, slots=True)
class RankInput:
    """What one rank dispatches."""

    x_TD: torch.Tensor
    ids_TK: torch.Tensor
    weights_TK: torch.Tensor


@dataclass(frozen=True, slots=True)
class RankAnswer:
    """What one rank received and what it got back."""

    x_RD: torch.Tensor
    counts: tuple[int, ...]
    out_TD: torch.Tensor


def round_trip(exchange: ExpertExchange, given_: RankInput, scale: float) -> RankAnswer:
    """Dispatch, apply expert e's function x * (1 + scale * e) row by row, combine."""
    received, handle = exchange.dispatch(given_.x_TD, given_.ids_TK, given_.weights_TK)
    factors_L = torch.tensor([1.0 + scale * expert for expert in exchange.local_experts])
    factors_R = factors_L.repeat_interleave(torch.tensor(received.counts)).to(received.x_RD.dtype)
    y_RD = received.x_RD * factors_R[:, None]
    return RankAnswer(received.x_RD, received.counts, exchange.combine(y_RD, handle))


def expected_rows(inputs: list[RankInput], expert: int) -> list[torch.Tensor]:
    """Rows that `expert` gets: by source rank, then token, then slot."""
    return [
        source.x_TD[t]
        for source in inputs
        for t in range(source.ids_TK.shape[0])
        for k in range(source.ids_TK.shape[1])
        if int(source.ids_TK[t, k]) == expert
    ]


def expected_output(own: RankInput, scale: float) -> torch.Tensor:
    """[T, D] float32, slot by slot in float32."""
    out_TD = torch.zeros(own.x_TD.shape, dtype=torch.float32)
    for t in range(own.ids_TK.shape[0]):
        for k in range(own.ids_TK.shape[1]):
            factor = torch.tensor(1.0 + scale * int(own.ids_TK[t, k])).to(own.x_TD.dtype)
            term_D = (own.x_TD[t] * factor).float() * own.weights_TK[t, k]
            out_TD[t] = term_D if k == 0 else out_TD[t] + term_D
    return out_TD


def check_answers(num_experts: int, inputs: list[RankInput], answers: list[RankAnswer], scale: float) -> None:
    share = num_experts // len(inputs)
    for rank, (own, answer) in enumerate(zip(inputs, answers, strict=True)):
        rows_by_expert = [expected_rows(inputs, expert) for expert in range(rank * share, (rank + 1) * share)]
        assert answer.counts == tuple(len(rows) for rows in rows_by_expert)
        rows = [row for rows in rows_by_expert for row in rows]
        assert answer.x_RD.dtype == own.x_TD.dtype
        assert answer.x_RD.shape == (len(rows), own.x_TD.shape[1])
        assert all(torch.equal(got, wanted) for got, wanted in zip(answer.x_RD, rows, strict=True))
        assert answer.out_TD.dtype == torch.float32
        assert torch.equal(answer.out_TD, expected_output(own, scale))


@st.composite
def routings(draw: st.DrawFn, world_size: int) -> tuple[int, list[RankInput], float]:
    """Experts, one input for each rank, and the experts' function: all shapes of luck, the one-sided ones too."""
    num_experts = world_size * draw(st.integers(1, 4))
    slots = draw(st.integers(1, 4))
    width = draw(st.sampled_from([1, 3, 8]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    favourites = draw(st.lists(st.integers(0, num_experts - 1), min_size=1, max_size=num_experts, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    inputs = []
    for _ in range(world_size):
        tokens = draw(st.sampled_from([0, 0, 1, 2, 5, 17]))
        choices = torch.randint(0, len(favourites), (tokens, slots), generator=generator)
        inputs.append(
            RankInput(
                torch.randn(tokens, width, generator=generator).to(dtype),
                torch.tensor(favourites)[choices],
                torch.rand(tokens, slots, generator=generator),
            )
        )
    return num_experts, inputs, draw(st.sampled_from([0.0, 1.0, 0.37]))


bounded = settings(max_examples=60, deadline=None)


@settings(max_examples=200, deadline=None)
@given(routings(1))
def test_local_matches_plain_loops(case: tuple[int, list[RankInput], float]) -> None:
    num_experts, inputs, scale = case
    check_answers(num_experts, inputs, [round_trip(LocalExchange(num_experts), inputs[0], scale)], scale)


def make_subgroups(strings: Strings) -> None:
    """On each rank: a process group of the first 1, 2 and 4 ranks, with errors that keep their text."""
    for size in (1, 2, 4):
        group = dist.new_group(list(range(size)))
        if strings.config.rank < size:
            assert isinstance(group, dist.ProcessGroup)
            strings.kept[f"ep{size}"] = Collectives(group, Progress(SystemClock()), lambda e: EpochEnded(str(e)))


def exchange_round(strings: Strings, size: int, num_experts: int, given_: RankInput, scale: float) -> RankAnswer:
    """On one rank: one round over the first `size` ranks."""
    exchange = AllToAllExchange(num_experts, rank=strings.config.rank, collectives=strings.kept[f"ep{size}"])
    assert exchange.world_size == size
    return round_trip(exchange, given_, scale)


def group_exchange_is_refused(strings: Strings, num_experts: int) -> str:
    """On one rank: the message of the ConfigError."""
    with pytest.raises(ConfigError) as caught:
        strings.group.expert_exchange(num_experts)
    return str(caught.value)


@pytest.fixture(scope="module")
def puppets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Puppets]:
    directory: Path = tmp_path_factory.mktemp("exchange")
    with nursery(directory) as children:
        ranks = Puppets(children, group_config(directory, WORLD_SIZE))
        ranks.all(make_subgroups)
        yield ranks
        ranks.close()
        assert [child.wait() for child in ranks.children] == [0] * WORLD_SIZE


def run_round(puppets: Puppets, num_experts: int, inputs: list[RankInput], scale: float) -> list[RankAnswer]:
    size = len(inputs)
    args: dict[int, Any] = {rank: (size, num_experts, own, scale) for rank, own in enumerate(inputs)}
    answers = puppets.each(exchange_round, args)
    return [answers[rank] for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 4])
@bounded
@given(data=st.data())
def test_all_to_all_matches_plain_loops_and_local(puppets: Puppets, size: int, data: st.DataObject) -> None:
    num_experts, inputs, scale = data.draw(routings(size))
    answers = run_round(puppets, num_experts, inputs, scale)
    check_answers(num_experts, inputs, answers, scale)
    for own, answer in zip(inputs, answers, strict=True):
        assert torch.equal(answer.out_TD, round_trip(LocalExchange(num_experts), own, scale).out_TD)


def test_wide_rows_and_inputs_that_are_not_contiguous(puppets: Puppets) -> None:
    """A hidden size of the real model, strided inputs, and more rows than a socket buffer holds."""
    generator = torch.Generator().manual_seed(7)
    inputs = [
        RankInput(
            torch.randn(7168, 40, generator=generator).t(),
            torch.randint(0, 8, (8, 40), generator=generator).t(),
            torch.rand(8, 40, generator=generator).t(),
        )
        for _ in range(4)
    ]
    for own, answer in zip(inputs, run_round(puppets, 8, inputs, 1.0), strict=True):
        assert torch.equal(answer.out_TD, round_trip(LocalExchange(8), own, 1.0).out_TD)
        assert answer.out_TD.is_contiguous()


def swap_round(strings: Strings, size: int, parts_W: torch.Tensor) -> tuple[torch.Tensor, int]:
    """On one rank: what the first `size` ranks had for it, and how many collectives it is known to have entered."""
    collectives = strings.kept[f"ep{size}"]
    exchange = AllToAllExchange(size, rank=strings.config.rank, collectives=collectives)
    arrived_W = exchange.swap(parts_W)
    before = collectives._progress.collectives
    with exchange.waiting(3):
        assert collectives._progress.waiting_since is not None
    assert collectives._progress.waiting_since is None
    return arrived_W, collectives._progress.collectives - before


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16])
def test_equal_parts_arrive_in_the_order_of_ranks(puppets: Puppets, size: int, dtype: torch.dtype) -> None:
    sent = [torch.randint(0, 200, (size, 3, 5)).to(dtype) for _ in range(size)]
    answers = puppets.each(swap_round, {rank: (size, parts) for rank, parts in enumerate(sent)})
    for rank in range(size):
        arrived, replayed = answers[rank]
        assert torch.equal(arrived, torch.stack([parts[rank] for parts in sent])) and replayed == 3
    assert LocalExchange(1).swap(sent[0]) is sent[0]


def test_experts_that_the_ranks_do_not_divide_are_refused(puppets: Puppets) -> None:
    assert puppets.all(group_exchange_is_refused, 6) == ["parallel.world_size is 4, must divide the 6 experts"] * 4
