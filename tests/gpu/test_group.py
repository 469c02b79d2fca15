"""Two ranks on two GPUs: decode steps with the exchange between them as graphs, bit for bit what they are without."""

from dataclasses import replace

import pytest
import torch

from baleen.ids import Epoch, Incarnation
from tests.support.clock import ManualClock
from tests.support.device_ranks import PATIENT_S, Planned, make_runner, planned_rank, run_plan
from tests.support.golden import golden
from tests.support.group_programs import group_config
from tests.support.processes import nursery
from workers.parallel.local_group import LocalGroup

pytestmark = pytest.mark.gpu

NAME = "dev_bf16.golden"


def test_graphs_of_two_ranks_give_the_bits_without_them_and_the_answers_of_one_rank(cuda, golden_directory, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} CUDA device, two ranks need two")
    directory = golden_directory(NAME)
    cases = golden(NAME)["cases"]
    plans = [
        [Planned(cases[0]["prompt"], 0, 6), Planned(cases[1]["prompt"][:60], 0, 6)],
        [Planned(cases[1]["prompt"][:40], 1, 4)],
    ]
    with nursery(tmp_path) as children:
        config = group_config(tmp_path, 2)
        ranks = [
            children.fork(f"rank {rank}", planned_rank, replace(config, rank=rank), directory, "float8", plan, 6, True)
            for rank, plan in enumerate(plans)
        ]
        found = [rank.event(PATIENT_S) for rank in ranks]
        assert [rank.wait() for rank in ranks] == [0, 0]
    for plan, ours in zip(plans, found, strict=True):
        assert ours["graphs"] > 0 and ours["same_bits"]
        group = LocalGroup(Epoch("e"), Incarnation("i"), lambda cause: None, ManualClock())
        runner = make_runner(directory, group, cuda, "float8")
        runner.warm_up()
        alone = run_plan(runner, group, plan, 6)
        for expected, answer in zip(alone["answers"], ours["answers"], strict=True):
            # the ranks' sums are rounded to bfloat16 once more, and float8 has few places
            assert max(abs(a - b) for a, b in zip(answer, expected, strict=True)) < 0.3
