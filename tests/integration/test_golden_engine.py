"""The engine gives the golden tokens at any expert parallelism, chunking, batch, cache state and pool size."""

from dataclasses import replace

import pytest

from baleen.config import ParallelConfig
from tests.support.golden_engine import FORM_SCENARIOS, SCENARIOS, golden_rank, group_scenarios, run_golden_scenarios
from tests.support.group_programs import group_config, start_group
from tests.support.models import golden_cases, load_whole, make_golden_checkpoint
from tests.support.processes import nursery, wait_all
from workers.parallel.join import open_group

GOLDENS = ["tiny_v32_golden", "dev_bf16.golden", "dev_fp8.golden"]


def check(event: dict, name: str) -> None:
    """One scenario's answers against the golden tokens and log-probabilities."""
    cases = golden_cases(name)
    cold, warm = event["rounds"]
    for answers in (cold, warm):
        for case, answer in zip(cases, answers, strict=True):
            assert answer["token_ids"] == case["greedy"], (event["scenario"], len(case["prompt"]))
            assert answer["finish"] == "length"
            if "greedy_logprobs" in case:
                assert answer["logprobs"] == pytest.approx(case["greedy_logprobs"], abs=1e-3)
    if "small pool" in event["scenario"]:
        return
    for case, answer in zip(cases, warm, strict=True):
        # every full block but the one of the last prompt token comes from the cache
        assert answer["cached"] == (len(case["prompt"]) - 1) // 64 * 64


@pytest.mark.parametrize("name", GOLDENS)
def test_one_rank(name, tmp_path):
    weights = load_whole(make_golden_checkpoint(name, tmp_path / "model"))
    group = open_group(ParallelConfig(), lambda cause: None)
    scenarios = SCENARIOS + FORM_SCENARIOS
    events = list(run_golden_scenarios(weights, group, name, scenarios))
    assert [event["scenario"] for event in events] == [scenario.name for scenario in scenarios]
    for event in events:
        check(event, name)
    if name != "tiny_v32_golden":
        assert all(event["preemptions"] > 0 for event in events if "small pool" in event["scenario"])


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", GOLDENS)
def test_groups_of_ranks(name, world_size, tmp_path):
    directory = make_golden_checkpoint(name, tmp_path / "model")
    with nursery(tmp_path) as children:
        config = replace(group_config(tmp_path, world_size), collective_timeout_s=60.0)
        ranks = start_group(children, config, golden_rank, str(directory), name)
        for scenario in group_scenarios(name, world_size):
            for rank in ranks:
                event = rank.event(timeout_s=120.0)
                assert event["scenario"] == scenario.name
                check(event, name)
        wait_all(ranks, 60.0)
        assert [rank.code for rank in ranks] == [0] * world_size
