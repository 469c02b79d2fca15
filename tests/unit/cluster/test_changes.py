"""What of a cluster can change while it runs: every other key is refused by its name."""

from dataclasses import replace

import pytest

from baleen.cluster_config import ClusterConfig, GroupConfig, PoolConfig, RouterConfig, TelemetryConfig
from baleen.config import ModelConfig, TraceConfig
from baleen.errors import ConfigError
from baleen.gateway_config import GatewayConfig
from baleen.redis_config import RedisConfig
from cluster.changes import require_changeable, require_same_text

OLD = ClusterConfig(redis=RedisConfig(url="redis://:secret@host:1/0"))


@pytest.mark.parametrize(
    ("new", "named"),
    [
        (
            replace(OLD, router=RouterConfig(port=9001)),
            r"router\.port would change from 9000 to 9001 \(clients find the routers there\): this cannot",
        ),
        (replace(OLD, gateway=GatewayConfig(port=8001)), r"gateway\.port would change from 8000 to 8001"),
        (replace(OLD, router=RouterConfig(metrics_port=0)), r"router\.metrics_port would change from 9464 to 0"),
        (replace(OLD, name="fresh"), r"^name would change from 'default' to 'fresh' \(its services"),
        (replace(OLD, redis=RedisConfig(url="redis://:other@host:1/0")), r"^redis\.url would change \(all its parts"),
    ],
)
def test_where_clients_and_parts_find_each_other_stays(new, named):
    with pytest.raises(ConfigError, match=named) as caught:
        require_changeable(OLD, new)
    assert "secret" not in str(caught.value) and ":other@" not in str(caught.value)


def test_all_that_cannot_change_is_named_at_once():
    with pytest.raises(ConfigError, match=r"router\.port .*; gateway\.port "):
        require_changeable(OLD, replace(OLD, router=RouterConfig(port=9001), gateway=GatewayConfig(port=8001)))


def test_pools_model_times_and_settings_of_routers_and_gateways_can_change():
    require_changeable(
        OLD,
        replace(
            OLD,
            pools=(PoolConfig(name="other", role="mixed"),),
            model=ModelConfig(path="/new"),
            group=GroupConfig(start_timeout_s=5, drain_timeout_s=5),
            telemetry=TelemetryConfig(rank_metrics=False, traces=TraceConfig(endpoint="http://h:1")),
            router=RouterConfig(replicas=2, policy="round_robin", slo_first_token_s=3.0),
            gateway=GatewayConfig(replicas=0, max_active=7),
        ),
    )


def checkpoint(directory, text):
    directory.mkdir()
    (directory / "tokenizer.json").write_text(text)
    return ModelConfig(path=str(directory))


def test_new_weights_keep_their_name_and_their_tokenizer(tmp_path):
    old = replace(OLD, model=checkpoint(tmp_path / "one", "a"), model_name="whale")
    same, other = checkpoint(tmp_path / "two", "a"), checkpoint(tmp_path / "three", "b")
    require_same_text(old, replace(old, model=same), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.path is .*three, whose tokenizer\.json differs from that of .*one"):
        require_same_text(old, replace(old, model=other), tmp_path)
    with pytest.raises(ConfigError, match="model_name is 'whale' to clients and would be 'two'"):
        require_same_text(old, replace(old, model=same, model_name=""), tmp_path)
