"""Cluster files: what they mean, and how each mistake in one is named."""

from pathlib import Path

import pytest

from baleen.accounts_config import KeysConfig
from baleen.cluster_config import ClusterConfig, PoolConfig
from baleen.cluster_file import load_cluster_config
from baleen.config_file import from_dict
from baleen.errors import ConfigError

FULL = """
name: west
model: {path: weights, compute_dtype: bfloat16}
pools:
  - {name: fast-prefill, role: prefill, ep: 4, groups: 2, gpus_per_rank: 1, strategy: strict_pack}
  - name: decode
    role: decode
    ep: 8
    cache: {dtype: bfloat16, num_blocks: 4096}
    engine: {max_running: 32}
router: {host: 0.0.0.0, port: 9100, replicas: 2, policy: least_loaded}
redis: {url: "rediss://user:secret@redis:6380/0"}
ray: {address: "head:6379", auth: token}
group: {heartbeat_timeout_s: 5}
gateway:
  keys: {mode: required, database: accounts/west.db}
  prices:
    - {model: deepseek-v3.2, input_hit: "0.028", input_miss: "0.28", output: "0.42"}
    - {model: west, output: "1"}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


def test_a_file_becomes_the_whole_configuration(tmp_path):
    config = load_cluster_config(written(tmp_path, FULL))
    assert (config.name, config.router.port, config.group.heartbeat_timeout_s) == ("west", 9100, 5.0)
    assert config.pools[0] == PoolConfig(
        name="fast-prefill", role="prefill", ep=4, groups=2, gpus_per_rank=1, strategy="strict_pack"
    )
    assert (config.pools[1].cache.num_blocks, config.pools[1].engine.max_running) == (4096, 32)
    assert [(price.model, price.output) for price in config.gateway.prices] == [
        ("deepseek-v3.2", "0.42"),
        ("west", "1"),
    ]
    assert config.gateway.keys == KeysConfig(mode="required", database=str(tmp_path / "accounts" / "west.db"))
    # a path is relative to the file that names it
    assert config.model is not None and config.model.path == str(tmp_path / "weights")


@pytest.mark.parametrize("text", ["", "{}", "# nothing\n"])
def test_an_empty_file_is_the_cluster_for_one_machine(tmp_path, text):
    config = load_cluster_config(written(tmp_path, text))
    assert config == ClusterConfig()
    assert [(pool.role, pool.groups, pool.ep) for pool in config.pools] == [("prefill", 1, 2), ("decode", 1, 2)]
    assert (config.router.host, config.router.port) == ("127.0.0.1", 9000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: {path: x}", "modle is not a known key; the nearest is model"),
        ("router: {prot: 1}", "router.prot is not a known key; the nearest is router.port"),
        ("pools: [{name: a, role: decode, blocks: 1}]", "pools[0].blocks is not a known key"),
        ("pools: [{name: a, role: decode, cache: {num_block: 1}}]", "the nearest is pools[0].cache.num_blocks"),
        ("gateway: {prices: [{model: m, output: 0.42}]}", "gateway.prices[0].output is 0.42, must be text"),
        ("gateway: {prices: [{model: m, output: x}]}", "output of the price of m is 'x', must be a decimal"),
        ("gateway: {prices: [{model: m}, {model: M}]}", "gateway.prices names the model 'm' twice"),
        ("gateway: {keys: {mode: maybe}}", 'gateway.keys.mode is "maybe", must be one of auto, required, open'),
        ("pools: [{role: decode}]", "pools[0].name is missing"),
        ("pools: []", "pools is [], must be a list of at least one pool"),
        ("pools: {name: a}", 'pools is {"name": "a"}, must be a list'),
        ("pools: [{name: a, role: both}]", 'pools[0].role is "both", must be one of prefill, decode, mixed'),
        ("pools: [{name: A, role: mixed}]", "the name of a pool is 'A', must be lower-case letters"),
        ("pools: [{name: router, role: mixed}]", "which is the name of the router's own service"),
        ("pools: [{name: a, role: mixed}, {name: a, role: decode}]", "the pool name 'a' stands twice"),
        ("pools: [{name: a, role: prefill}]", "the pools have the roles prefill; one must be decode or mixed"),
        ("pools: [{name: a, role: mixed, ep: 0}]", "pool a: ep is 0, must be at least 1"),
        ("pools: [{name: a, role: mixed, ep: 2.5}]", "pools[0].ep is 2.5, must be an integer"),
        ("pools: [{name: a, role: mixed, cpus_per_rank: 0}]", "pool a: cpus_per_rank is 0, must be above 0"),
        ("router: {port: 0}", "router.port is 0, must be from 1 to 65535"),
        ("router: {port: 65535, replicas: 2}", "router.port is 65535, must be from 1 to 65534"),
        ("redis: {url: 'http://x'}", "redis.url is 'http://x', must be redis://"),
        ("tls: {ca_file: a, cert_file: b}", "tls.key_file is missing: tls needs ca_file, cert_file and key_file"),
        ("transfer: {transport: rdma}", 'transfer.transport is "rdma", must be one of tcp, nixl'),
        (
            "tls: {ca_file: a, cert_file: b, key_file: c}\ntransfer: {transport: nixl}",
            "transfer.transport is 'nixl' and tls is set",
        ),
        ("tls: {server_name: rank}", "tls.ca_file is missing"),
        ("group: {drain_timeout_s: 0}", "group.drain_timeout_s is 0, must be above 0"),
        ("name: west\nname: east", "line 1: key 'name' stands twice"),
        ("name: [", "not valid YAML"),
        ("- 1", "the configuration is [1], must be an object"),
        ("name: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_each_mistake_is_named_with_its_place(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_cluster_config(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_certificates_lie_beside_the_file_unless_it_says_otherwise(tmp_path):
    tls = load_cluster_config(written(tmp_path, "tls: {ca_file: ca.pem, cert_file: /etc/a.pem, key_file: a.key}")).tls
    assert (tls.ca_file, tls.cert_file, tls.key_file) == (
        str(tmp_path / "ca.pem"),
        "/etc/a.pem",
        str(tmp_path / "a.key"),
    )


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        load_cluster_config(tmp_path / "absent.yaml")


def test_plain_values_do_as_well_as_a_file():
    assert from_dict(ClusterConfig, {"pools": [{"name": "all", "role": "mixed"}]}).pools == (
        PoolConfig(name="all", role="mixed"),
    )
