"""A cluster on a Ray of several nodes that runs already, by its address and token."""

import json
import shutil
import subprocess

import pytest

from tests.support.namespace import can_have_namespaces, namespace_command
from workers.model.make_checkpoint import PRESETS, CheckpointRecipe, make_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_have_namespaces(), reason="network namespaces are not allowed here"),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    directory = tmp_path_factory.mktemp("nodes")
    recipe = CheckpointRecipe(config=PRESETS["tiny"], dtype="float32", tokenizer="text")
    make_checkpoint(directory / "model", recipe, progress=False)
    command = namespace_command("tests.support.nodes_scenario", str(directory))
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def placed(ranks, pool):
    """The nodes of a pool's ranks in rank order, and their epochs."""
    mine = sorted((rank for rank in ranks if rank["pool"] == pool), key=lambda rank: rank["rank"])
    assert [rank["rank"] for rank in mine] == [0, 1]
    return [rank["node"] for rank in mine], {rank["epoch"] for rank in mine}


def test_groups_are_spread_and_packed_as_asked_and_ranks_are_in_order_of_nodes(seen):
    assert len(seen["answer"]["tokens"]) == 12
    for when in ("before", "after"):
        wide, _ = placed(seen[when], "wide")
        packed, _ = placed(seen[when], "packed")
        assert wide == sorted(set(wide)) and len(wide) == 2, when
        assert len(set(packed)) == 1 and packed[0] not in wide, when


def test_a_lost_node_costs_its_own_group_only_which_comes_back_on_those_that_are_left(seen):
    before, old = placed(seen["before"], "wide")
    after, new = placed(seen["after"], "wide")
    assert seen["killed"] in before and seen["killed"] not in after
    assert len(new) == 1 and not old & new
    assert placed(seen["before"], "packed") == placed(seen["after"], "packed")
    assert seen["answer_after"] == seen["answer"]


@pytest.mark.parametrize("lost", ["after_router", "after_replica", "without_node"])
def test_a_router_that_was_lost_is_back_where_it_was(seen, lost):
    assert seen[f"answer_{lost}"] == seen["answer"]


def test_a_second_cluster_of_that_name_on_this_ray_is_refused(seen):
    code, _, errors = seen["same_name"]
    assert code == 2 and "name is 'default': a cluster of that name runs on this Ray already" in errors


def test_what_no_node_has_is_named(seen):
    code, _, errors = seen["too_many"]
    assert code == 2
    assert (
        "pool all, group 0: no node has room for all 2 ranks" in errors and "lacks CPU: needs 0.9, free 0.6" in errors
    )
    assert "(default.wide has 0.4)" in errors, "who has it"


def test_two_clusters_of_different_names_live_side_by_side(seen):
    assert seen["answer_beside"] == seen["answer_with_both"] == seen["answer"]
    assert seen["status_beside"] == ["all/0"]
    assert seen["down_beside"][:2] == [0, "cluster beside has ended\n"]
    assert seen["undisturbed"]


def test_what_a_killed_cluster_has_left_on_this_ray_is_ended_by_the_next_of_its_name(seen):
    [line] = [line for line in seen["said_beside"].splitlines() if "a former cluster of this name has left" in line]
    assert "beside.all" in line and "beside.router" in line
    assert seen["answer_beside_again"] == seen["answer"]


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on the PATH; README.md, Tests")
def test_all_of_it_ran_on_a_redis_with_tls_a_client_certificate_and_an_acl_user(seen):
    assert seen["redis"]["url"].startswith("rediss://") and seen["redis"]["username"] == "baleen"
    assert json.loads(seen["redis"]["refused"]) == []


def test_logs_of_all_nodes_are_read_where_the_cluster_was_started(seen):
    code, text, _ = seen["logs"]
    assert code == 0
    for name in ("wide-0", "wide-0-0", "wide-0-1", "packed-0", "packed-0-0", "packed-0-1", "router-0"):
        assert any(line.startswith(f"{name}: ") for line in text.splitlines()), name
    # of the group that is gone as well
    assert all(rank["epoch"] in text for rank in seen["before"] + seen["after"])


def test_down_ends_what_up_started_and_leaves_ray_alone(seen):
    assert seen["down"][0] == 0 and seen["up_code"] == 0
    assert any("raylet" in words for words in seen["processes"])
    assert not any("workers.main" in words or "router_process" in words for words in seen["processes"])
