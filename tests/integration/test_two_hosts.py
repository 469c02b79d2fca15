"""Ranks on hosts with addresses of their own, in two network namespaces, and a cable between them that is cut."""

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from tests.support.models import golden_recipe
from tests.support.namespace import can_have_namespaces, namespace_command
from tests.support.two_hosts import HERE, THERE
from workers.model.make_checkpoint import make_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None or not can_have_namespaces(),
        reason="needs root, ip and network namespaces",
    ),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hosts")
    recipe = replace(golden_recipe("dev_bf16.golden"), tokenizer="bytes")
    make_checkpoint(directory / "model", recipe, progress=False)
    command = namespace_command("tests.support.hosts_scenario", str(directory))
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def hosts(ranks, pool):
    """Where the pool's ranks serve, move blocks, and answer GET /metrics."""
    infos = [rank["info"] for rank in ranks if rank["info"]["pool"] == pool]
    names = ("address", "transfer_address", "metrics_address")
    return {info[name].rpartition(":")[0] for info in infos for name in names}


def test_a_group_of_both_hosts_prefills_and_one_of_them_decodes_the_golden_tokens(seen):
    for when in ("ranks", "ranks_after"):
        assert (hosts(seen[when], "prefill"), hosts(seen[when], "decode")) == ({HERE, THERE}, {THERE})
    # the tokens were compared where they came; the longest prompt went from one group to the other
    assert seen["golden"][-1]["chosen"] == 2


def test_a_request_whose_cable_is_cut_goes_on_or_fails_in_time(seen):
    cut = seen["cut"]
    assert cut["seconds"] < 60
    assert cut.get("alike") or cut["error"] == "UNAVAILABLE", cut


def test_when_the_cable_is_back_so_is_the_cluster_and_nothing_is_held(seen):
    assert seen["alike_after"]
    assert all(rank["load"]["num_running"] == rank["load"]["num_waiting"] == 0 for rank in seen["at_rest"])


def test_down_ends_what_up_started_on_both_hosts(seen):
    assert (seen["down"][0], seen["up_code"]) == (0, 0)
    assert not any("workers.main" in words or "router_process" in words for words in seen["processes"])
