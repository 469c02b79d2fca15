"""One group of ranks: it forms as a whole, is watched, and leaves as a whole. A replica of its pool's deployment.

Ranks are processes of their own under actors, one in each bundle of the replica's placement group. Serve replaces a
group that is not healthy; it never repairs one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from baleen.cluster_config import GroupConfig, PoolConfig, TelemetryConfig
from baleen.config import ModelConfig, ParallelConfig, RankConfig, ServeConfig, TransferConfig
from baleen.errors import BaleenError, EpochEnded
from baleen.ids import Epoch, new_epoch
from baleen.redis_config import RedisConfig
from baleen.telemetry import Log, write_stderr
from baleen.tls_config import TlsConfig
from cluster.journal import Send
from cluster.local_group import end_of_group
from cluster.rank_launcher import KILL_AFTER_S, RankEnd
from cluster.rank_query import ask_rank
from cluster.scaling import group_load
from workers.engine.messages import Ready

SETTLE_S = 3.0
"""After the first rank has ended: longest wait for the others, to learn which one was the cause."""


class Answer(Protocol):
    """What an actor will say."""

    @property
    def rank(self) -> int:
        """Whose answer it is."""

    def result(self, timeout_s: float) -> Ready | RankEnd:
        """Wait for it; raises BaleenError if it cannot come."""


class RankHandle(Protocol):
    """A rank's launcher, wherever it is."""

    @property
    def rank(self) -> int:
        """Its place in the group."""

    def host(self) -> str:
        """The address of its node."""

    def free_ports(self, count: int) -> list[int]:
        """Ports of its node."""

    def start(self, label: str, config: RankConfig) -> int:
        """Start the process; returns its id."""

    def ask_ready(self, timeout_s: float) -> Answer:
        """Readiness, or the end."""

    def ask_end(self) -> Answer:
        """The end."""

    def ask_stop(self, reason: str, timeout_s: float) -> Answer:
        """Leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """What every group of a pool is built from.

    cluster: name under which ranks announce themselves. local_host: address of every rank; empty: that of its node.
    spare: groups that there may be beside those of the pool, while these take the place of others.
    """

    cluster: str
    pool: PoolConfig
    model: ModelConfig
    timeouts: GroupConfig
    telemetry: TelemetryConfig
    redis: RedisConfig
    tls: TlsConfig = field(default_factory=TlsConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    local_host: str = ""
    log_directory: str = ""
    spare: int = 0

    @property
    def most_groups(self) -> int:
        """How many groups of the pool there may be at once."""
        return self.pool.most_groups + self.spare


class RankGroup:
    """The ranks of one group from start to end; one thread uses it."""

    def __init__(
        self,
        plan: GroupPlan,
        number: int,
        ranks: Sequence[RankHandle],
        *,
        first_of: Callable[[Sequence[Answer], float], list[Answer]],
        send_log: Send | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """number: place of the group in its pool. first_of: those of some answers that are there, or the first one.

        send_log: takes the group's own log where the plan has no directory for it.
        """
        self._plan = plan
        self._ranks = ranks
        self._first_of = first_of
        self._now = now
        self.name = f"{plan.pool.name}/{number}"
        self.epoch: Epoch = new_epoch()
        self.ready: list[Ready] = []
        self._log = Log(write=_writer(plan, number, send_log), group=self.name, epoch=self.epoch)
        self._ends: list[Answer] = []
        self._ended = False

    def form(self) -> None:
        """Start all ranks and wait until all serve. Raises what explains best why they do not; then none is left."""
        timeout_s = self._plan.timeouts.start_timeout_s
        deadline = self._now() + timeout_s
        for rank, config in zip(self._ranks, self._configs(), strict=True):
            rank.start(f"{self._plan.pool.name}-{self.name.rpartition('/')[2]}-{rank.rank}", config)
        self._ends = [rank.ask_end() for rank in self._ranks]
        answers = [rank.ask_ready(timeout_s) for rank in self._ranks]
        found: dict[int, Ready] = {}
        waiting = list(answers)
        while waiting:
            # the launchers keep the time; a little more, so that their own words are heard
            there = self._first_of(waiting, max(0.0, deadline + SETTLE_S - self._now()))
            if not there:
                missing = ", ".join(str(answer.rank) for answer in waiting)
                raise BaleenError(f"group {self.name}: rank {missing} not ready after {timeout_s:g} s")
            for answer in there:
                waiting.remove(answer)
                news = answer.result(0.0)
                if isinstance(news, RankEnd):
                    raise self._explain()
                found[news.rank] = news
        self.ready = [found[rank] for rank in range(len(self._ranks))]
        self._log.info("group ready", ranks=len(self.ready), blocks=sum(ready.num_blocks for ready in self.ready))

    def check(self) -> None:
        """Raise EpochEnded, or what ended the first rank, as soon as any rank has ended."""
        if self._first_of(self._ends, 0.0):
            error = self._explain()
            self._ended = True
            self._log.error("group ended", cause=str(error))
            raise error

    def leave(self, reason: str, timeout_s: float) -> None:
        """Let all ranks finish their requests within `timeout_s` and go; those that do not are killed.

        After an end of one there is nothing to finish: the epoch of the others is over too.
        """
        timeout_s = 0.0 if self._ended else timeout_s
        answers = [rank.ask_stop(reason, timeout_s) for rank in self._ranks]
        for answer in answers:
            try:
                answer.result(timeout_s + 2 * KILL_AFTER_S)
            except BaleenError as error:
                # its actor has gone, and with that its process
                self._log.warning("rank left without an answer", rank=answer.rank, error=str(error))

    def _configs(self) -> list[RankConfig]:
        plan = self._plan
        hosts = [rank.host() for rank in self._ranks]
        rendezvous = f"tcp://{hosts[0]}:{self._ranks[0].free_ports(1)[0]}"
        times = plan.timeouts
        threads = plan.model.num_threads or max(1, int(plan.pool.cpus_per_rank))
        return [
            RankConfig(
                model=replace(plan.model, num_threads=threads),
                cache=plan.pool.cache,
                engine=plan.pool.engine,
                parallel=ParallelConfig(
                    rank=rank.rank,
                    world_size=len(self._ranks),
                    epoch=self.epoch,
                    rendezvous=rendezvous,
                    host=host,
                    heartbeat_timeout_s=times.heartbeat_timeout_s,
                    collective_timeout_s=times.collective_timeout_s,
                    join_timeout_s=times.start_timeout_s,
                    drain_timeout_s=times.drain_timeout_s,
                ),
                traces=plan.telemetry.traces,
                serve=ServeConfig(
                    listen=f"{host}:0",
                    role=plan.pool.role,
                    pool=plan.pool.name,
                    group=self.name,
                    redis=plan.redis,
                    cluster=plan.cluster,
                    metrics_listen=f"{host}:0" if plan.telemetry.rank_metrics else "",
                ),
                tls=plan.tls,
                transfer=plan.transfer,
            )
            for rank, host in zip(self._ranks, hosts, strict=True)
        ]

    def _explain(self) -> BaleenError:
        """The error behind the first end; waits a little for the others' accounts of it."""
        deadline = self._now() + SETTLE_S
        waiting = list(self._ends)
        exits: dict[int, int] = {}
        causes: dict[int, str] = {}
        last_lines = [""] * len(self._ranks)
        while waiting and (there := self._first_of(waiting, max(0.0, deadline - self._now()))):
            for answer in there:
                waiting.remove(answer)
                try:
                    end = answer.result(0.0)
                except BaleenError as error:
                    # the actor, or its whole node, is gone
                    return EpochEnded(f"group {self.name}: {error}")
                assert isinstance(end, RankEnd)
                exits[end.rank] = end.code
                last_lines[end.rank] = end.last_line
                if end.cause is not None:
                    causes[end.rank] = end.cause
        return end_of_group(exits, causes, last_lines)


def _writer(plan: GroupPlan, number: int, send: Send | None) -> Callable[[str], object]:
    """Where the group's own log goes: beside those of its ranks, or to stderr, which Ray keeps."""
    name = f"{plan.pool.name}-{number}"
    if not plan.log_directory:
        return write_stderr if send is None else lambda line: send(name, line.encode())
    path = Path(plan.log_directory) / f"{name}.log"

    def write(line: str) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)

    return write


class GroupReplica:
    """What Serve runs: one group, formed when the replica is built and ended with it."""

    def __init__(self, plan: GroupPlan) -> None:
        """Form the group; raises if it does not come up, and Serve tries again, a few times."""
        # ray is there only in the processes that Ray has started
        from cluster import ray_adapter

        self._plan = plan
        self._group: RankGroup | None = None
        number, ranks = ray_adapter.rank_actors(
            plan.cluster,
            plan.pool,
            most_groups=plan.most_groups,
            host=plan.local_host,
            log_directory=plan.log_directory or None,
        )
        send_log = None if plan.log_directory else ray_adapter.journal(plan.cluster)
        self._group = RankGroup(plan, number, ranks, first_of=ray_adapter.first_of, send_log=send_log)
        try:
            self._group.form()
        except BaleenError:
            self._group.leave("the group did not form", 0.0)
            raise

    def check_health(self) -> None:
        """For Serve: raises once a rank has ended."""
        if self._group is not None:
            self._group.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve, of a pool that scales: the fields of a GroupLoad, or nothing while a rank cannot be asked."""
        if self._group is None:
            return {}
        answers = await asyncio.gather(*(ask_rank(ready.address, tls=self._plan.tls) for ready in self._group.ready))
        if any(answer.error is not None for answer in answers):
            return {}
        pool = self._plan.pool
        loads = [answer.load for answer in answers]
        return asdict(group_load(loads, slots=pool.engine.max_running, num_blocks=pool.cache.num_blocks))

    def __del__(self) -> None:
        """For Serve, which calls it when the replica is told to go."""
        group, self._group = self._group, None
        if group is not None:
            group.leave("the group was told to leave", self._plan.timeouts.drain_timeout_s)
