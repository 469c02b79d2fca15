"""The check of a cluster file: every broken rule is said, with value and limit, and sizes are those of the ranks."""

from dataclasses import replace

import pytest

from baleen.cluster_config import ClusterConfig, GroupConfig, PoolConfig, RayConfig, RedisConfig, RouterConfig
from baleen.config import CacheConfig, EngineConfig, ModelConfig
from baleen.model_spec import model_spec_from_config
from cluster import cli
from cluster.check import PROCESS_BYTES, check
from cluster.placement import GIB, Node, Resources
from workers.model.make_checkpoint import PRESETS, CheckpointRecipe, make_checkpoint
from workers.model.sizes import cache_bytes_per_block, official_dtypes, rank_bytes

MODEL = ModelConfig(path="tiny")
SPEC = model_spec_from_config(CheckpointRecipe(config=PRESETS["tiny"]).full_config(), source="tiny")
NODES = [Node("n", "127.0.0.1", Resources(4, 0, 64 * GIB))]


def pool(**fields) -> PoolConfig:
    return PoolConfig(**{"name": "all", "role": "mixed", **fields})


def violations(*pools: PoolConfig, nodes=NODES, **fields) -> tuple[str, ...]:
    return check(ClusterConfig(pools=pools, **fields), MODEL, SPEC, nodes).violations


def test_the_cluster_for_one_machine_breaks_no_rule():
    report = check(ClusterConfig(), MODEL, SPEC, NODES)
    assert report.violations == ()
    assert report.plan is not None and len(report.plan.placed) == 3
    assert "no rule is violated" in report.text()


def test_the_memory_of_a_rank_is_the_sum_of_its_parts():
    report = check(ClusterConfig(pools=(pool(ep=2),)), MODEL, SPEC, NODES)
    memory = report.memory["all"]
    weights = rank_bytes(SPEC, official_dtypes(SPEC), world_size=2)
    assert memory is not None
    assert memory.weights == weights.float32 and memory.cache == 512 * cache_bytes_per_block(SPEC, "float32")
    assert memory.total == memory.weights + memory.cache + PROCESS_BYTES
    half = check(ClusterConfig(pools=(pool(ep=2),)), replace(MODEL, compute_dtype="bfloat16"), SPEC, NODES)
    assert half.memory["all"] is not None and half.memory["all"].weights == weights.bfloat16
    assert f"= {memory.total / GIB:.2f} GiB" in report.text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ep": 3}, "pool all: ep is 3, must divide the model's 8 experts"),
        (
            {"cache": CacheConfig(num_blocks=10), "engine": EngineConfig(max_context=1000)},
            "pool all: cache.num_blocks is 10, must be at least 16 for one request of engine.max_context (1000 tokens)",
        ),
        (
            {"cache": CacheConfig(num_blocks=9999), "engine": EngineConfig(max_context=200_000)},
            "pool all: engine.max_context is 200000, must be at most the model's 163840 positions",
        ),
        ({"memory_gib_per_rank": 0.1}, "pool all: memory_gib_per_rank is 0.1, must be at least "),
        ({"ep": 4, "cpus_per_rank": 2.0}, "the cluster has room for 2 of 4 ranks; CPU: needs 8, free 4"),
        ({"gpus_per_rank": 1}, "lacks GPU: needs 1, free 0"),
    ],
)
def test_each_rule_of_a_pool_names_value_and_limit(fields, message):
    assert any(message in violation for violation in violations(pool(**fields)))


def test_pools_must_be_able_to_exchange_blocks():
    other = pool(name="other", cache=CacheConfig(dtype="bfloat16"))
    assert violations(pool(), other) == (
        "pool other: cache.dtype is bfloat16, must be float32 as in pool all: blocks move between them",
    )


def test_a_ray_elsewhere_needs_a_redis_that_it_can_reach():
    there = RayConfig(address="head:6379")
    assert "redis.url is empty" in violations(pool(), nodes=None, ray=there)[0]
    assert violations(pool(), nodes=None, ray=there, redis=RedisConfig(url="redis://redis")) == ()


def test_routers_of_a_ray_elsewhere_must_be_reached():
    def report(**router):
        config = ClusterConfig(
            pools=(pool(),),
            ray=RayConfig(address="head:6379"),
            redis=RedisConfig(url="redis://redis"),
            router=RouterConfig(**router),
        )
        return check(config, MODEL, SPEC, None)

    here = report()
    assert here.violations == () and len(here.warnings) == 1 and "only clients on the machine" in here.warnings[0]
    [violation] = report(node="10.0.0.5").violations
    assert violation.startswith("router.host is 127.0.0.1, must be an address that others reach")
    for host in ("0.0.0.0", "10.0.0.5"):
        good = report(node="10.0.0.5", host=host)
        assert (good.violations, good.warnings) == ((), ())
        assert good.config.router.addresses == ("10.0.0.5:9000",)
    assert "must be empty without ray.address" in violations(pool(), router=RouterConfig(node="10.0.0.5"))[0]


def test_a_node_must_hold_the_memory_of_its_ranks_also_where_ray_counts_none():
    small = [Node("n", "10.0.0.1", Resources(4, 0, GIB))]
    found = violations(pool(ep=4), nodes=small)
    assert len(found) == 1 and "node 10.0.0.1: its ranks need" in found[0] and "1.00 GiB that are free" in found[0]
    assert violations(pool(ep=4)) == ()


def test_all_broken_rules_are_said_at_once():
    found = violations(pool(ep=3), pool(name="b", ep=5), group=GroupConfig(heartbeat_timeout_s=0.5))
    assert len(found) == 3


def test_a_password_is_not_shown():
    config = ClusterConfig(redis=RedisConfig(url="redis://user:secret@host:6379/0"))
    text = check(config, MODEL, SPEC, NODES).text()
    assert "secret" not in text and "redis: redis://host:6379/0" in text


def test_the_command_prints_the_report_and_fails_where_a_rule_is_broken(tmp_path, capsys):
    make_checkpoint(tmp_path / "model", CheckpointRecipe(config=PRESETS["tiny"]), progress=False)
    file = tmp_path / "cluster.yaml"
    file.write_text("model: {path: model}\npools: [{name: all, role: mixed, ep: 2}]\n")
    assert cli.main(["check", str(file)]) == 0
    assert "pool all: role mixed, 1 x EP 2" in capsys.readouterr().out
    file.write_text("model: {path: model}\npools: [{name: all, role: mixed, ep: 3}]\n")
    assert cli.main(["check", str(file)]) == 2
    assert "violated: 1\n  pool all: ep is 3, must divide the model's 8 experts" in capsys.readouterr().out
    file.write_text("model: {path: nowhere}\n")
    assert cli.main(["check", str(file)]) == 2
    assert f"model.path is {tmp_path}/nowhere, which is no directory" in capsys.readouterr().err


def test_the_least_groups_must_fit_and_the_most_should():
    report = check(ClusterConfig(pools=(pool(min_groups=2, max_groups=9, cpus_per_rank=1.0),)), MODEL, SPEC, NODES)
    assert report.violations == () and report.plan is not None and len(report.plan.placed) == 3
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("pool all: max_groups is out of reach from group 3 on: no node has room")
    assert "2 to 9 x EP 1" in report.text() and "warning: pool all: max_groups" in report.text()
    refused = violations(pool(min_groups=5, max_groups=9, cpus_per_rank=1.0))
    assert refused[0].startswith("pool all, group 4: no node has room")
