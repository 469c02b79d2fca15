"""A whole cluster on Ray, with real ranks, in a network namespace of its own."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import golden_recipe
from tests.support.namespace import can_have_namespaces, namespace_command
from workers.model.make_checkpoint import make_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_have_namespaces(), reason="network namespaces are not allowed here"),
]

CONFIG = """
model: {path: model}
pools:
  - {name: prefill, role: prefill, ep: 2, cache: {num_blocks: 64}}
  - {name: decode, role: decode, ep: 2, cache: {num_blocks: 64}}
group: {start_timeout_s: 240, drain_timeout_s: 10, heartbeat_timeout_s: 30}
"""


UPDATES = {
    "moved": CONFIG + "router: {port: 9001}\n",
    "larger": CONFIG.replace(
        "ep: 2, cache: {num_blocks: 64}}\ngroup", "ep: 2, cache: {num_blocks: 96}}\ngroup"
    ).replace("group:", "  - {name: extra, role: mixed, cache: {num_blocks: 64}}\ngroup:"),
}
UPDATES["damaged"] = CONFIG.replace("path: model", "path: damaged") + "model_name: model\n"
UPDATES["smaller"] = "".join(line for line in UPDATES["larger"].splitlines(keepends=True) if "extra" not in line)


SCALES = """
model: {path: model}
pools:
  - {name: all, role: mixed, max_groups: 2, quiet_s: 3, cache: {num_blocks: 64}, engine: {max_running: 4}}
group: {start_timeout_s: 240, drain_timeout_s: 30, heartbeat_timeout_s: 30}
"""


HEADLESS = """
model: {path: model}
pools: [{name: all, role: mixed, cache: {num_blocks: 64}}]
group: {start_timeout_s: 240, drain_timeout_s: 5, heartbeat_timeout_s: 30}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("cluster")
    recipe = replace(golden_recipe("dev_bf16.golden"), tokenizer="bytes")
    make_checkpoint(directory / "model", recipe, progress=False)
    shutil.copytree(directory / "model", directory / "damaged")
    weights = next((directory / "damaged").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    (directory / "cluster.yaml").write_text(CONFIG)
    for name, text in UPDATES.items():
        (directory / f"{name}.yaml").write_text(text)
    return directory


@pytest.fixture(scope="module")
def seen(directory) -> dict[str, Any]:
    return scenario(directory)


def scenario(directory: Path, *words: str, config: Path | None = None) -> dict[str, Any]:
    arguments = [str(directory), str(config or directory / "cluster.yaml"), *words]
    command = namespace_command("tests.support.cluster_scenario", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def epochs(ranks: list[dict[str, Any]], group: str) -> set[str]:
    return {rank["info"]["epoch"] for rank in ranks if rank["info"]["group"] == group}


def test_it_says_that_it_is_ready_and_answers_a_prompt(seen):
    assert seen["ready"].startswith("ready: gRPC on 127.0.0.1:9000")
    assert len(seen["answer"]["tokens"]) == 12
    assert "HTTP on http://127.0.0.1:8000/v1" in seen["ready"]
    assert seen["chat"]["usage"]["completion_tokens"] == 5 and seen["chat"]["choices"][0]["finish_reason"] == "length"


def test_the_golden_tokens_come_through_both_pools_cold_and_cached(seen):
    # the tokens were compared where they came; the longest prompt is prefilled elsewhere by the default policy
    by_length = {case["prompt"]: case for case in seen["golden"]["cold"]}
    assert sorted(by_length) == [5, 64, 130, 300]
    assert (by_length[300]["chosen"], by_length[300]["cached"]) == (2, 0)
    assert seen["golden"]["warm"][-1]["cached"] == 256


def test_the_first_answer_comes_within_a_minute_and_memory_is_bounded(seen):
    # both hold for the cluster without a configuration too, whose checkpoint is larger: see benchmarks
    assert seen["first_answer_s"] < 60
    assert 0 < seen["pss_mb"] < 6 * 1024


def test_every_rank_is_shown_under_its_group(seen):
    places = [(rank["info"]["group"], rank["info"]["role"], rank["info"]["rank"]) for rank in seen["ranks"]]
    assert places == [(group, group[:-2], rank) for group in ("decode/0", "prefill/0") for rank in (0, 1)]
    assert all(len(epochs(seen["ranks"], group)) == 1 for group in ("decode/0", "prefill/0"))
    code, text, _ = seen["status"]
    assert code == 0 and "router 127.0.0.1:9000 serving" in text and text.count("decode/0") == 2


def test_a_killed_rank_costs_its_own_group_only(seen):
    assert epochs(seen["ranks"], "prefill/0") == epochs(seen["after_kill"], "prefill/0")
    assert not epochs(seen["ranks"], "decode/0") & epochs(seen["after_kill"], "decode/0")
    assert seen["answer_after_kill"] == seen["answer"]
    assert "rank 1 was killed by SIGKILL" in seen["logs"][1]


def test_a_drained_group_leaves_and_a_fresh_one_takes_its_place(seen):
    assert seen["drain"][0] == 0 and "prefill/0: 2 ranks" in seen["drain"][1]
    assert epochs(seen["after_kill"], "decode/0") == epochs(seen["after_drain"], "decode/0")
    assert seen["answer_after_drain"] == seen["answer"]
    code, _, errors = seen["drain_unknown"]
    assert code == 70 and "no rank of group 'prefill/7' has a lease; groups: decode/0, prefill/0" in errors


def test_a_killed_redis_comes_back_and_all_ranks_are_found_again(seen):
    assert epochs(seen["after_redis"], "decode/0") == epochs(seen["after_drain"], "decode/0")
    assert epochs(seen["after_redis"], "prefill/0") == epochs(seen["after_drain"], "prefill/0")
    assert seen["answer_after_redis"] == seen["answer"]
    assert "redis had ended; started again" in seen["errors"]


def test_one_name_runs_once(seen):
    code, _, errors = seen["second_up"]
    assert code == 2 and "a cluster named 'default' runs already" in errors


def test_pools_change_group_by_group_while_requests_go_on(seen):
    code, text, errors = seen["apply_larger"]
    assert (code, text) == (0, "cluster default is as wanted\n"), errors
    before, after = seen["ranks_before_apply"], seen["ranks_larger"]
    assert epochs(before, "prefill/0") == epochs(after, "prefill/0")
    pools = {rank["info"]["pool"]: rank["info"] for rank in after}
    assert (pools["decode"]["num_blocks"], pools["prefill"]["num_blocks"]) == (96, 64)
    assert len({rank["info"]["epoch"] for rank in after}) == 3 and "extra" in pools
    # both were there before the old one left
    assert errors.index("starting default.decode@2") < errors.index("leaving: default.decode")
    assert seen["apply_smaller"][0] == 0
    assert {rank["info"]["epoch"] for rank in seen["ranks_smaller"]} == {
        rank["info"]["epoch"] for rank in after if rank["info"]["pool"] != "extra"
    }
    assert len(seen["applied_alike"]) >= 3 and all(seen["applied_alike"])


def test_weights_that_are_damaged_change_nothing_and_are_named(seen):
    code, _, errors = seen["apply_damaged"]
    assert code == 3 and ".safetensors" in errors and "all pools are as they were before" in errors, errors
    assert placed(seen["ranks_damaged"]) == placed(seen["ranks_before_apply"])


def placed(ranks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(rank["info"]["group"], rank["info"]["epoch"]) for rank in ranks]


def test_what_cannot_change_is_refused_by_name(seen):
    code, _, errors = seen["apply_moved"]
    assert code == 2 and "router.port would change from 9000 to 9001" in errors
    assert seen["ranks_moved"] and "starting" not in errors


def test_down_leaves_nothing_behind(seen):
    assert seen["down"][:2] == [0, "cluster default has ended\n"]
    assert seen["up_code"] == 0
    assert seen["processes"] == []
    assert files(seen) == []
    code, _, errors = seen["status_after"]
    assert code == 2 and "no cluster named 'default' runs here" in errors


def files(seen: dict[str, Any]) -> list[str]:
    """What is left, but for the folder of state files itself."""
    return [path for path in seen["files"] if not path.endswith("run/baleen")]


@pytest.fixture(scope="module")
def scaled(directory) -> dict[str, Any]:
    config = directory / "scales.yaml"
    config.write_text(SCALES)
    recipe = replace(golden_recipe("dev_bf16.golden"), tokenizer="bytes", seed=77)
    make_checkpoint(directory / "other", recipe, progress=False)
    other = SCALES.replace("num_blocks: 64", "num_blocks: 96").replace("path: model", "path: other")
    more = "model_name: model\nrouter: {max_queued: 512}\ngateway: {max_active: 64}\n"
    config.with_name("scales_other.yaml").write_text(other + more)
    return scenario(directory, "scales", config=config)


def test_a_pool_grows_under_load_and_shrinks_after_it_and_no_request_is_lost(scaled):
    assert scaled["groups"][:2] == [["all/0"], ["all/0", "all/1"]]
    assert scaled["groups"][2] in (["all/0"], ["all/1"])
    assert "2 of 2 groups" in scaled["status"][1]
    assert scaled["answers"] >= 5 and scaled["all_alike"]


def test_a_pool_that_scales_is_changed_and_scales_on(scaled):
    code, _, errors = scaled["apply"]
    assert code == 0 and "starting default.all@2 (to 1)" in errors, errors
    assert [rank["info"]["num_blocks"] for rank in scaled["ranks_applied"]] == [96]
    assert len(scaled["groups"][3]) == 1


def test_routers_and_gateways_change_while_requests_go_on(scaled):
    _, _, errors = scaled["apply"]
    steps = ("starting default.all@2", "starting default.router@2, default.gateway@2", "leaving: default.router, ")
    assert sorted(map(errors.index, steps)) == [errors.index(step) for step in steps]
    # every request of the client had a connection of its own, and one that failed would have ended the scenario
    assert scaled["answers_of"]["all"] >= 3
    assert scaled["chat_applied"]["usage"]["completion_tokens"] == 5


def test_weights_change_and_no_answer_mixes_them_nor_uses_blocks_of_the_others(scaled):
    code, _, errors = scaled["apply_afresh"]
    assert code == 0 and "starting default.all@3 (to 1)" in errors and "default.router" not in errors, errors
    [before], [after] = scaled["ranks_applied"], scaled["ranks_afresh"]
    assert before["info"]["epoch"] != after["info"]["epoch"]
    answers = scaled["answers_of"]
    assert scaled["other_differs"] and answers["first"] and answers["other"]
    assert answers["first"] + answers["other"] == answers["all"]
    assert scaled["answer_afresh"], "under the same prompt, whose blocks of the other weights may still stand in Redis"


def test_a_cluster_that_was_killed_is_known_as_such_and_cleared_by_down(scaled):
    code, _, errors = scaled["status_killed"]
    assert code == 2 and "has ended without order" in errors
    assert scaled["down"][0] == 0 and "what it left is gone now" in scaled["down"][1]
    assert (scaled["processes"], files(scaled)) == ([], [])


def test_requests_go_on_without_rays_head_and_the_cluster_still_ends_in_order(directory):
    config = directory / "headless.yaml"
    config.write_text(HEADLESS)
    seen = scenario(directory, "headless", config=config)
    assert seen["running_alike"] and seen["new_alike"]
    code, text, _ = seen["status_headless"]
    assert code == 0 and "Ray's head gives no answer: what runs goes on" in text and "1 of 1 group," in text
    assert "Ray's head gives no answer" in seen["errors"]
    assert (seen["down"][0], seen["up_code"]) == (0, 0)
    assert (seen["processes"], files(seen)) == ([], [])
