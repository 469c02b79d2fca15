"""Pools change while the cluster runs: in which order groups come and go, and back again if a new one does not come."""

from dataclasses import replace

import pytest

from baleen.cluster_config import ClusterConfig, PoolConfig
from baleen.config import CacheConfig, ModelConfig
from baleen.errors import BaleenError, ConfigError
from baleen.redis_config import RedisConfig
from cluster.app import Site, pool_services
from cluster.changes import plan_of
from cluster.rollout import Rollout

SITE = Site(redis=RedisConfig(url="redis://127.0.0.1:1/0"), version="v1")
MODEL = ModelConfig(path="/model")


def config(*pools, **changes):
    return ClusterConfig(pools=pools, **changes)


def pool(name, groups=1, num_blocks=64, **changes):
    return PoolConfig(name=name, role="mixed", groups=groups, cache=CacheConfig(num_blocks=num_blocks), **changes)


def goal(*pools, model=MODEL, site=SITE):
    return pool_services(config(*pools), model, site)


class FakeStage:
    """A Ray with room for so many groups, on which all comes up at once unless the test says otherwise."""

    def __init__(self, services, room=100):
        self.groups = {service.name: service.replicas for service in services.values()}
        self.room = room
        self.events = []
        self.broken = set()
        self.least = sum(self.groups.values())

    def deploy(self, services):
        for service in services:
            before = self.groups.get(service.name, 0)
            if service.target is not None:
                count = min(max(before, service.target.min_groups), service.target.max_groups)
                self.events.append(f"{service.name} follows its load")
            else:
                count = service.replicas
                if count != before:
                    self.events.append(f"{service.name} {before}->{count}")
            if count > before and plan_of(service).pool.cache.num_blocks in self.broken:
                self.groups.setdefault(service.name, before)
                continue
            self.groups[service.name] = count
            self.least = min(self.least, sum(self.groups.values()))
            assert sum(self.groups.values()) <= self.room, "more than there is room for"

    def remove(self, services):
        for service in services:
            self.events.append(f"{service.name} gone")
            del self.groups[service.name]
        self.least = min(self.least, sum(self.groups.values()))

    def until_up(self, services):
        for service in services:
            if self.groups[service.name] != service.replicas:
                raise BaleenError(f"{service.name} does not start")

    def until_left(self, services):
        pass

    def until_gone(self, services):
        pass

    def running(self, service):
        return self.groups[service.name]

    def lacking(self, pools):
        free = self.room - sum(self.groups.values())
        return ["no room"] if len(pools) > free else []


def rollout(*pools, room=100):
    services = goal(*pools)
    stage = FakeStage(services, room)
    said = []
    return Rollout(services, stage, said.append), stage, said


def test_groups_are_replaced_one_after_the_other_and_never_fewer_than_before():
    made, stage, _ = rollout(pool("a", 3), pool("b"))
    made.update(goal(pool("a", 3, num_blocks=96), pool("b")))
    assert stage.groups == {"default.a@2": 3, "default.b": 1}
    assert stage.events == [
        *("default.a@2 0->1", "default.a 3->2", "default.a@2 1->2", "default.a 2->1"),
        *("default.a@2 2->3", "default.a gone"),
    ]
    assert stage.least == 4


def test_a_pool_that_only_changes_in_number_keeps_its_groups():
    made, stage, _ = rollout(pool("a", 2), pool("b", 3))
    made.update(goal(pool("a", 4), pool("b")))
    assert stage.groups == {"default.a": 4, "default.b": 1}
    assert stage.events == ["default.a 2->4", "default.b 3->1"]
    made.update(goal(pool("a", 4), pool("b")))
    assert len(stage.events) == 2, "nothing has changed, so nothing is done"


def test_pools_come_before_others_go():
    made, stage, _ = rollout(pool("a"))
    made.update(goal(pool("b", 2)))
    assert stage.events == ["default.b 0->2", "default.a gone"]
    made.update(goal(pool("a"), pool("b", 2)))
    assert stage.groups == {"default.b": 2, "default.a@2": 1}, "no name is used twice, since its groups may still leave"


def test_all_changed_pools_go_on_together():
    made, stage, _ = rollout(pool("a"), pool("b", 2))
    made.update(goal(pool("a"), pool("b", 2), model=ModelConfig(path="/new")))
    assert stage.events == [
        *("default.a@2 0->1", "default.b@2 0->1", "default.a gone", "default.b 2->1"),
        *("default.b@2 1->2", "default.b gone"),
    ]


def test_as_many_at_once_as_there_is_room_for():
    made, stage, _ = rollout(pool("a"), pool("b", 2), room=4)
    made.update(goal(pool("a", num_blocks=96), pool("b", 2, num_blocks=96)))
    assert stage.groups == {"default.a@2": 1, "default.b@2": 2} and stage.least == 3


def test_without_room_nothing_is_touched_unless_an_old_group_may_leave_first():
    made, stage, said = rollout(pool("a", 2), room=2)
    with pytest.raises(ConfigError, match=r"no room for a new group beside .*: no room; with --in-place"):
        made.update(goal(pool("a", 2, num_blocks=96)))
    assert stage.groups == {"default.a": 2} and stage.events == []
    made.update(goal(pool("a", 2, num_blocks=96)), in_place=True)
    assert stage.groups == {"default.a@2": 2} and stage.least == 1
    assert "pool a: no room; an old group leaves before the new one comes" in said


def test_a_pool_that_goes_makes_room_for_one_that_comes():
    made, stage, _ = rollout(pool("a", 2), pool("b"), room=3)
    made.update(goal(pool("a", 2), pool("c")))
    assert stage.groups == {"default.a": 2, "default.c": 1}
    assert stage.events == ["default.b gone", "default.c 0->1"]


@pytest.mark.parametrize("breaks", ["first", "second"])
def test_if_a_new_group_does_not_come_up_all_is_as_before(breaks):
    made, stage, _ = rollout(pool("a", 2), pool("b"))
    if breaks == "first":
        stage.broken = {13}
    else:
        deploy = stage.deploy

        def second_breaks(services):
            if stage.groups.get("default.a@2") == 1:
                stage.broken = {13}
            deploy(services)

        stage.deploy = second_breaks
    with pytest.raises(BaleenError, match=r"default\.a@2 does not start; all pools are as they were before"):
        made.update(goal(pool("a", 2, num_blocks=13), pool("b"), pool("c")))
    assert stage.groups == {"default.a": 2, "default.b": 1}
    assert stage.least == 3
    made.update(goal(pool("a", 2, num_blocks=96), pool("b")))
    assert stage.groups == {"default.a@3": 2, "default.b": 1}


def test_a_pool_that_scales_keeps_as_many_groups_as_its_load_has_made():
    scaling = PoolConfig(name="a", role="mixed", min_groups=1, max_groups=5)
    made, stage, _ = rollout(scaling)
    stage.groups["default.a"] = 3
    made.update(goal(replace(scaling, cache=CacheConfig(num_blocks=96))))
    assert stage.groups == {"default.a@2": 3}
    assert stage.events[-1] == "default.a@2 follows its load"
    made.update(goal(replace(scaling, max_groups=8, cache=CacheConfig(num_blocks=96))))
    assert stage.groups == {"default.a@2": 3}, "its bounds alone restart nothing"


def test_a_pool_that_never_came_up_is_replaced_at_once():
    made, stage, _ = rollout(pool("a"), pool("b"))
    stage.groups["default.a"] = 0
    made.update(goal(pool("a", num_blocks=96), pool("b")))
    assert stage.events == ["default.a gone", "default.a@2 0->1"]


def test_every_group_is_replaced_when_that_is_asked_for():
    made, stage, _ = rollout(pool("a"))
    made.update(goal(pool("a"), site=replace(SITE, version="v2")))
    assert stage.events == ["default.a@2 0->1", "default.a gone"]


def test_a_group_beside_others_may_have_a_number_beyond_the_pools():
    made, stage, _ = rollout(pool("a"))
    plans = []
    deploy = stage.deploy
    stage.deploy = lambda services: (plans.extend(map(plan_of, services)), deploy(services))
    made.update(goal(pool("a", num_blocks=96)))
    assert [plan.most_groups for plan in plans] == [2, 1]
