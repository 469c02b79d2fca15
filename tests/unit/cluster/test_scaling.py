"""How many groups a pool has: in bounds, up at once, down after a quiet time, never below what requests hold."""

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.cluster_config import PoolConfig
from baleen.errors import ConfigError
from cluster.scaling import DEFAULT_FIRST_TOKEN_S, GroupLoad, Target, decide, group_load, load_of, occupancy, target_of
from cluster.scaling_policy import STALE_S, GroupScaling
from tests.unit.cluster.test_status import LOAD

TARGET = Target(min_groups=1, max_groups=8, load=0.7, quiet_s=60.0, first_token_s=2.0)
IDLE = GroupLoad(
    waiting=0, running=0, slots=8, held_blocks=0, num_blocks=100, queued_tokens=0, prefill_tokens_per_s=1000.0
)
FULL = replace(IDLE, running=8, held_blocks=90)

groups = st.builds(
    GroupLoad,
    waiting=st.integers(0, 20),
    running=st.integers(0, 8),
    slots=st.just(8),
    held_blocks=st.integers(0, 100),
    num_blocks=st.just(100),
    queued_tokens=st.integers(0, 10_000),
    prefill_tokens_per_s=st.sampled_from([0.0, 10.0, 1000.0]),
)
reports = st.lists(st.none() | groups, max_size=8)
looks = st.lists(st.tuples(st.floats(0.1, 30.0), reports), min_size=1, max_size=30)


def run(looks, target=TARGET, wanted=1):
    """The decision after each look: (time, reports, wanted before, wanted)."""
    now, wishes, found = 0.0, (), []
    for seconds, reported in looks:
        now += seconds
        before = wanted
        wanted, wishes = decide(target, reported, before, wishes, now)
        found.append((now, reported, before, wanted))
    return found


def needed(target, reported, before):
    load = sum(load_of(group, target.first_token_s) for group in reported if group)
    asked = math.ceil(load / target.load - 1e-9)
    if not reported or None in reported:
        asked = max(asked, before)
    return min(max(asked, target.min_groups), target.max_groups)


@given(looks)
def test_it_is_the_most_that_was_needed_within_the_quiet_time(looks):
    seen = run(looks)
    asked = [
        (0.0 if not index else now, needed(TARGET, reported, before))
        for index, (now, reported, before, _) in enumerate(seen)
    ]
    first = seen[0][0]
    for index, (now, _, _, wanted) in enumerate(seen):
        recent = [asked[i][1] for i in range(index + 1) if seen[i][0] >= now - TARGET.quiet_s]
        # the one group of the beginning counts from the first look on
        recent += [1] if first >= now - TARGET.quiet_s else []
        assert wanted == max(recent)


@given(looks)
def test_it_stays_in_bounds_and_leaves_room_for_what_requests_hold(looks):
    for _, reported, _, wanted in run(looks):
        assert TARGET.min_groups <= wanted <= TARGET.max_groups
        held = sum(occupancy(group) for group in reported if group)
        assert wanted == TARGET.max_groups or wanted * TARGET.load >= held - 1e-6


@given(looks)
def test_whoever_cannot_be_asked_is_not_taken_away(looks):
    for _, reported, before, wanted in run(looks):
        if not reported or None in reported:
            assert wanted >= min(before, TARGET.max_groups)


def test_up_at_once_and_down_after_the_quiet_time():
    looks = [(1.0, [FULL]), (1.0, [FULL, IDLE]), *[(1.0, [IDLE, IDLE])] * 70]
    wanted = [entry[3] for entry in run(looks)]
    assert wanted[:2] == [2, 2]
    # the last look with load was at 2 s
    assert wanted[2:62] == [2] * 60 and wanted[62:] == [1] * 10


def test_a_load_that_comes_and_goes_does_not_start_and_end_groups():
    looks = [(1.0, [FULL, FULL] if second % 20 == 0 else [IDLE, IDLE]) for second in range(200)]
    assert {entry[3] for entry in run(looks)} == {3}


def test_queued_prompts_count_by_the_time_they_take():
    slow = replace(IDLE, queued_tokens=4000)
    assert load_of(slow, 2.0) == 2.0 and load_of(slow, 8.0) == 0.5
    # before a speed is measured nothing is guessed
    assert load_of(replace(slow, prefill_tokens_per_s=0.0), 2.0) == 0.0
    assert run([(1.0, [slow])])[0][3] == 3


def test_the_load_of_a_group_is_that_of_its_ranks_together():
    ranks = [replace(LOAD, num_waiting=1, num_running=3, free_blocks=200, queued_tokens=10), None]
    load = group_load(ranks, slots=4, num_blocks=256)
    assert asdict(load) == {
        "waiting": 1,
        "running": 3,
        "slots": 8,
        "held_blocks": 56,
        "num_blocks": 512,
        "queued_tokens": 10,
        "prefill_tokens_per_s": 1000.4,
    }
    assert occupancy(load) == 0.5


def test_the_limit_is_the_routers_or_two_seconds():
    pool = PoolConfig(name="p", role="mixed", min_groups=2, max_groups=5, target_load=0.5, quiet_s=3.0)
    assert target_of(pool, 0.5) == Target(min_groups=2, max_groups=5, load=0.5, quiet_s=3.0, first_token_s=0.5)
    assert target_of(pool, 0.0).first_token_s == DEFAULT_FIRST_TOKEN_S


def test_the_policy_takes_each_groups_last_fresh_report():
    policy = GroupScaling(**asdict(TARGET))
    now = 100.0

    def context(reports, state, wanted):
        series = {
            name: {
                replica: [SimpleNamespace(timestamp=0.0, value=0.0), SimpleNamespace(timestamp=at, value=values[name])]
                for replica, (at, values) in reports.items()
            }
            for name in asdict(IDLE)
        }
        return SimpleNamespace(
            raw_metrics=series,
            running_replicas=list(reports),
            target_num_replicas=wanted,
            policy_state=state,
            current_time=now,
        )

    wanted, state = policy(context({"a": (now - 1, asdict(FULL))}, {}, 1))
    assert wanted == 2
    now += 2 * TARGET.quiet_s
    stale = {"a": (now - 1, asdict(IDLE)), "b": (now - 2 * STALE_S, asdict(IDLE))}
    assert policy(context(stale, state, 2))[0] == 2
    fresh = {"a": (now - 1, asdict(IDLE)), "b": (now, asdict(IDLE))}
    assert policy(context(fresh, state, 2))[0] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_groups": 1, "min_groups": 2}, "max_groups is 1, must be at least min_groups"),
        ({"min_groups": 2}, "must be given together"),
        ({"min_groups": 0, "max_groups": 2}, "min_groups is 0, must be at least 1"),
        ({"groups": 3, "max_groups": 4}, "groups is 3, must be left out with max_groups"),
        ({"max_groups": 2, "target_load": 1.5}, "target_load is 1.5"),
        ({"max_groups": 2, "quiet_s": 0.0}, "quiet_s is 0"),
    ],
)
def test_bounds_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        PoolConfig(name="p", role="mixed", **fields)
