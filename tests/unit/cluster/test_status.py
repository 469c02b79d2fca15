"""The status table: every rank under its group, its load, and what is wrong with it."""

import json

from baleen.ids import Epoch, Incarnation
from baleen.reports import Load, RankInfo
from cluster.status import ClusterStatus, RankStatus, RouterFigures, RouterStatus
from cluster.status_table import status_text


def info(rank: int) -> RankInfo:
    return RankInfo(
        incarnation=Incarnation(f"i{rank}"),
        epoch=Epoch("0123456789abcdef"),
        rank=rank,
        world_size=2,
        role="decode",
        pool="decode",
        group="decode/0",
        address=f"10.0.0.1:{rank}",
        model_fingerprint="m",
        vocab_size=10,
        max_context=100,
        eos_token_ids=(1,),
        num_blocks=256,
        max_running=64,
        pid=1,
        transport="tcp",
        metrics_address=f"10.0.0.1:{900 + rank}",
    )


LOAD = Load(
    free_blocks=200,
    num_waiting=3,
    num_running=5,
    queued_tokens=700,
    running_tokens=900,
    prefill_tokens_per_s=1000.4,
    decode_tokens_per_s=50.0,
    cached_blocks=150,
    held_blocks=40,
    arriving_blocks=10,
    lent_blocks=6,
    step_s=0.0123,
    prompt_tokens=1000,
    cached_prompt_tokens=250,
)


FIGURES = RouterFigures(
    policy="cost",
    metrics_address="h:9464",
    leaving=False,
    num_ranks=4,
    num_queued=3,
    queued_tokens=900,
    num_active=5,
    num_admitted=20,
    num_shed=2,
    num_expired=1,
    prompt_tokens=1000,
    cached_prompt_tokens=400,
    retry_budget=63.0,
)


def status(*ranks: RankStatus, **fields) -> ClusterStatus:
    values = {
        "name": "default",
        "routers": {"h:9000": RouterStatus(health="serving")},
        "groups": {},
        "redis_error": None,
        **fields,
    }
    return ClusterStatus(**values, ranks=ranks)


def test_a_line_for_each_rank_and_one_for_its_pool():
    busy = RankStatus(info=info(0), load=LOAD, step=42, phase="compute", seconds_in_phase=0.2)
    idle = RankStatus(info=info(1), step=-1, phase="idle", seconds_in_phase=8.0)
    lines = status_text(status(busy, idle)).splitlines()
    assert lines[0] == "cluster default: router h:9000 serving"
    assert lines[3].split() == [
        *("decode", "decode/0", "decode", "01234567", "0", "10.0.0.1:0"),
        *("50", "40", "150", "10", "6", "3", "5", "700", "25%", "12.3", "ms", "50", "tcp", "10.0.0.1:900", "42"),
        *("compute", "0.2", "s"),
    ]
    assert lines[4].split()[6:12] == ["256", "0", "0", "0", "0", "0"] and lines[4].endswith("idle 8.0 s")
    assert lines[5].split()[:7] == ["decode", "all", "306", "40", "150", "10", "6"]
    assert lines[5].endswith("1 of 1 group, 2 of 2 ranks well")


def test_every_router_is_named_and_how_many_groups_a_pool_is_to_have():
    routers = {
        "h:9000": RouterStatus(health="serving", figures=FIGURES),
        "h:9001": RouterStatus(health="gives no answer (UNAVAILABLE)"),
    }
    text = status_text(status(RankStatus(info=info(0), step=1), routers=routers, groups={"decode": (1, 3)}))
    assert text.startswith("cluster default: router h:9000 serving, h:9001 gives no answer (UNAVAILABLE)\n")
    assert "1 of 3 groups, 1 of 1 ranks well" in text
    header, row = text.splitlines()[2:4]
    assert dict(
        zip(header.replace("queued tok", "tok").replace("retries left", "left").split(), row.split(), strict=True)
    ) == {
        "router": "h:9000",
        "policy": "cost",
        "metrics": "h:9464",
        "ranks": "4",
        "queue": "3",
        "tok": "900",
        "active": "5",
        "admitted": "20",
        "shed": "2",
        "expired": "1",
        "hit": "40%",
        "left": "63",
    }


def test_what_is_wrong_is_said():
    text = status_text(
        status(RankStatus(info=info(0), error="no answer within 2 s"), redis_error="Redis gives no answer")
    )
    assert "error: no answer within 2 s" in text and "redis: Redis gives no answer" in text
    assert "no rank has a lease" in status_text(status())


def test_it_is_plain_json_too():
    there = json.loads(json.dumps(status(RankStatus(info=info(0), load=LOAD, step=1)).as_dict()))
    assert there["ranks"][0]["info"]["group"] == "decode/0" and there["ranks"][0]["load"]["free_blocks"] == 200
