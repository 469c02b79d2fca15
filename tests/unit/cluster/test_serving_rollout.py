"""Routers and gateways change while the cluster runs: new ones come first, take over, and then the old ones leave."""

from dataclasses import replace

import pytest

from baleen.cluster_config import ClusterConfig, GroupConfig, RouterConfig
from baleen.config import ModelConfig
from baleen.errors import BaleenError
from baleen.gateway_config import GatewayConfig
from baleen.redis_config import RedisConfig
from cluster.app import Site, serving_services
from cluster.serving_rollout import ServingRollout

SITE = Site(redis=RedisConfig(url="redis://127.0.0.1:1/0"))
FIRST = ClusterConfig()
OTHER_ROUTER = replace(FIRST, router=RouterConfig(policy="round_robin"))
OTHER_GATEWAY = replace(FIRST, gateway=GatewayConfig(max_active=7))


def services(config, model=None):
    return serving_services(config, model or ModelConfig(path="/model"), SITE)


class FakeStage:
    """A Ray on which all comes up, but for what the test says."""

    def __init__(self):
        self.events = []
        self.running = {"default.router", "default.gateway"}
        self.broken = ()

    def deploy(self, services):
        self.events += [f"+{service.name}" for service in services]
        self.running |= {service.name for service in services}

    def remove(self, services):
        self.events += [f"-{service.name}" for service in services]
        self.running -= {service.name for service in services}

    def until_up(self, services):
        for service in services:
            if service.name in self.broken:
                raise BaleenError(f"{service.name} does not start")

    def until_gone(self, services):
        assert not self.running & {service.name for service in services}


@pytest.fixture
def stage():
    return FakeStage()


@pytest.fixture
def rollout(stage):
    return ServingRollout(services(FIRST), stage, lambda text: None)


def names(rollout):
    return [service.name for service in rollout.live]


def test_what_is_as_before_stays(rollout, stage):
    rollout.update(services(replace(FIRST, group=GroupConfig(start_timeout_s=5))))
    assert stage.events == [] and names(rollout) == ["default.router", "default.gateway"]


@pytest.mark.parametrize(
    ("config", "part", "stays"),
    [(OTHER_ROUTER, "router", "gateway"), (OTHER_GATEWAY, "gateway", "router")],
    ids=["router", "gateway"],
)
def test_what_changes_takes_over_from_what_is_there(rollout, stage, config, part, stays):
    rollout.update(services(config))
    assert stage.events == [f"+default.{part}@2", f"-default.{part}"]
    assert sorted(names(rollout)) == sorted([f"default.{part}@2", f"default.{stays}"])
    [new] = [service for service in rollout.live if "@" in service.name]
    settings, replicas, cluster, logs, generation = new.arguments
    assert settings.takes_over and (replicas, cluster, logs, generation) == (1, "default", "", 2)
    rollout.update(services(config))
    assert len(stage.events) == 2, "nothing has changed, so nothing is done"
    rollout.update(services(FIRST))
    assert stage.events[2:] == [f"+default.{part}@3", f"-default.{part}@2"]


def test_all_that_changes_changes_together_also_for_another_checkpoint(rollout, stage, tmp_path):
    other = tmp_path / "model"
    other.mkdir()
    (other / "tokenizer.json").touch()
    rollout.update(services(FIRST, ModelConfig(path=str(other))))
    assert stage.events == ["+default.router@2", "+default.gateway@2", "-default.router", "-default.gateway"]


def test_gateways_go_and_come_back_under_a_new_name(rollout, stage):
    without = replace(FIRST, gateway=GatewayConfig(replicas=0))
    rollout.update(services(without))
    assert stage.events == ["-default.gateway"] and names(rollout) == ["default.router"]
    rollout.update(services(FIRST))
    assert stage.events[1:] == ["+default.gateway@2"]
    assert not rollout.live[-1].arguments[0].takes_over, "there is nobody to take over from"


def test_if_a_new_one_does_not_come_up_all_is_as_before(rollout, stage):
    stage.broken = ("default.gateway@2",)
    changed = services(replace(OTHER_ROUTER, gateway=OTHER_GATEWAY.gateway))
    with pytest.raises(BaleenError, match=r"default\.gateway@2 does not start"):
        rollout.update(changed)
    assert stage.running == {"default.router", "default.gateway"} == set(names(rollout))
    rollout.update(changed)
    assert stage.running == {"default.router@3", "default.gateway@3"} == set(names(rollout))
