"""A group of ranks as its replica sees it: forms whole or not at all, notices an end, names the cause."""

from dataclasses import dataclass, field

import pytest

from baleen.cluster_config import GroupConfig, PoolConfig, TelemetryConfig
from baleen.config import ModelConfig, RankConfig, TransferConfig
from baleen.errors import BaleenError, CheckpointError, EpochEnded
from baleen.ids import Epoch, Incarnation
from baleen.redis_config import RedisConfig
from cluster.group import GroupPlan, RankGroup
from cluster.rank_launcher import RankEnd
from workers.engine.messages import Ready


@dataclass(eq=False)
class FakeAnswer:
    rank: int
    value: Ready | RankEnd | BaleenError | None = None

    def result(self, timeout_s: float) -> Ready | RankEnd:
        if isinstance(self.value, BaleenError):
            raise self.value
        assert self.value is not None
        return self.value


@dataclass(eq=False)
class FakeRank:
    """A launcher whose answers the test decides."""

    rank: int
    node: str = "10.0.0.1"
    config: RankConfig | None = None
    label: str = ""
    stopped: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ready = FakeAnswer(self.rank)
        self.end = FakeAnswer(self.rank)

    def host(self) -> str:
        return self.node

    def free_ports(self, count: int) -> list[int]:
        return [4000 + self.rank] * count

    def start(self, label: str, config: RankConfig) -> int:
        self.label, self.config = label, config
        return 1

    def ask_ready(self, timeout_s: float) -> FakeAnswer:
        return self.ready

    def ask_end(self) -> FakeAnswer:
        return self.end

    def ask_stop(self, reason: str, timeout_s: float) -> FakeAnswer:
        self.stopped.append((reason, timeout_s))
        return FakeAnswer(self.rank, BaleenError("its actor is gone"))

    def becomes_ready(self) -> None:
        self.ready.value = Ready(
            rank=self.rank,
            world_size=2,
            epoch=Epoch("e"),
            incarnation=Incarnation(f"i{self.rank}"),
            pid=1,
            model_fingerprint="m",
            vocab_size=10,
            max_context=10,
            eos_token_ids=(1,),
            num_blocks=8,
            startup=(),
        )

    def ends(self, code: int, cause: str | None = None, last_line: str = "") -> None:
        self.end.value = RankEnd(self.rank, code, cause, last_line)
        if self.ready.value is None:
            self.ready.value = self.end.value


def there(answers, timeout_s):
    """All answers that the test has given; none will come later."""
    return [answer for answer in answers if answer.value is not None]


def group(*ranks: FakeRank, **fields) -> RankGroup:
    pool = PoolConfig(name="decode", role="decode", ep=len(ranks), cpus_per_rank=3.5)
    plan = GroupPlan(
        cluster="west",
        pool=pool,
        model=ModelConfig(path="m"),
        timeouts=GroupConfig(start_timeout_s=60.0),
        telemetry=TelemetryConfig(),
        redis=RedisConfig(url="redis://r"),
        **fields,
    )
    return RankGroup(plan, 2, ranks, first_of=there)


def test_every_rank_is_told_its_place_and_where_to_meet():
    ranks = [FakeRank(0, "10.0.0.1"), FakeRank(1, "10.0.0.2")]
    for rank in ranks:
        rank.becomes_ready()
    formed = group(*ranks, transfer=TransferConfig(transport="nixl"))
    formed.form()
    configs = [rank.config for rank in ranks]
    assert [config.parallel.rank for config in configs] == [0, 1]
    assert {config.parallel.world_size for config in configs} == {2}
    assert {config.transfer.transport for config in configs} == {"nixl"}
    assert {config.parallel.rendezvous for config in configs} == {"tcp://10.0.0.1:4000"}
    assert {config.parallel.epoch for config in configs} == {formed.epoch}
    assert [config.parallel.host for config in configs] == ["10.0.0.1", "10.0.0.2"]
    assert [config.serve.listen for config in configs] == ["10.0.0.1:0", "10.0.0.2:0"]
    assert {(config.serve.role, config.serve.pool, config.serve.group) for config in configs} == {
        ("decode", "decode", "decode/2")
    }
    assert {(config.serve.redis.url, config.serve.cluster) for config in configs} == {("redis://r", "west")}
    # a share of 3.5 processors is three threads
    assert {config.model.num_threads for config in configs} == {3}
    assert [rank.label for rank in ranks] == ["decode-2-0", "decode-2-1"]
    assert [ready.rank for ready in formed.ready] == [0, 1]


def test_each_life_of_a_group_has_an_epoch_of_its_own():
    assert group(FakeRank(0)).epoch != group(FakeRank(0)).epoch


def test_a_rank_that_cannot_start_is_the_reason_why_the_group_does_not():
    ranks = [FakeRank(0), FakeRank(1)]
    ranks[0].ends(75, "rank 1 closed its connection")
    ranks[1].ends(3, "shard 2 is missing")
    with pytest.raises(CheckpointError, match="rank 1: shard 2 is missing"):
        group(*ranks).form()


def test_ranks_that_are_late_are_named():
    ranks = [FakeRank(0), FakeRank(1), FakeRank(2)]
    ranks[1].becomes_ready()
    with pytest.raises(BaleenError, match=r"group decode/2: rank 0, 2 not ready after 60 s"):
        group(*ranks).form()


def test_a_healthy_group_stays_healthy_until_a_rank_ends():
    ranks = [FakeRank(0), FakeRank(1)]
    for rank in ranks:
        rank.becomes_ready()
    formed = group(*ranks)
    formed.form()
    formed.check()
    ranks[1].ends(-9)
    ranks[0].ends(75, "rank 1 closed its connection")
    with pytest.raises(EpochEnded, match="rank 1 was killed by SIGKILL"):
        formed.check()


def test_an_actor_that_is_gone_with_its_node_ends_the_group():
    rank = FakeRank(0)
    rank.becomes_ready()
    formed = group(rank)
    formed.form()
    rank.end.value = BaleenError("rank 0: its actor is gone: the node died")
    with pytest.raises(EpochEnded, match="the node died"):
        formed.check()


def test_all_ranks_are_told_to_leave_also_if_one_gives_no_answer(tmp_path):
    ranks = [FakeRank(0), FakeRank(1)]
    group(*ranks, log_directory=str(tmp_path)).leave("enough", 5.0)
    assert [rank.stopped for rank in ranks] == [[("enough", 5.0)]] * 2
    # the group's own log lies beside those of its ranks
    assert (tmp_path / "decode-2.log").read_text().count("its actor is gone") == 2


def test_what_is_left_of_a_group_that_ended_is_given_no_time():
    ranks = [FakeRank(0), FakeRank(1)]
    for rank in ranks:
        rank.becomes_ready()
    formed = group(*ranks)
    formed.form()
    ranks[1].ends(-9)
    with pytest.raises(EpochEnded):
        formed.check()
    formed.leave("told to", 30.0)
    assert [rank.stopped for rank in ranks] == [[("told to", 0.0)]] * 2


def test_without_a_directory_its_log_is_sent():
    rank, lines = FakeRank(0), []
    rank.becomes_ready()
    plan = GroupPlan(
        cluster="west",
        pool=PoolConfig(name="decode", role="decode"),
        model=ModelConfig(path="m"),
        timeouts=GroupConfig(),
        telemetry=TelemetryConfig(),
        redis=RedisConfig(url="redis://r"),
    )
    RankGroup(plan, 3, [rank], first_of=there, send_log=lambda name, text: lines.append((name, text))).form()
    [(name, text)] = lines
    assert name == "decode-3" and b"group ready" in text and text.endswith(b"\n")
