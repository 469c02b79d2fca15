"""The rank process: reads its configuration, joins its group, loads, serves commands from stdin, drains and leaves.

usage: python -m workers.main --config FILE      FILE: a baleen.config.RankConfig as JSON

Commands come as JSON lines on stdin, events leave as JSON lines on stdout, the log goes to stderr. With `serve.listen`
requests come over gRPC instead, and stdin is for health and drain. Exit codes: 0 drained, 2 configuration, 3
checkpoint, 70 a fault of this rank, 75 the epoch ended (another rank was lost).
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from baleen.clock import Clock, SystemClock
from baleen.config import RankConfig
from baleen.config_file import load_rank_config
from baleen.errors import BaleenError, ConfigError, EpochEnded
from baleen.ids import Epoch, new_incarnation
from baleen.reports import RankInfo
from baleen.telemetry import Log, write_stderr
from workers.anteroom import Anteroom
from workers.engine.inbox import Inbox
from workers.engine.loop import IDLE_WAIT_S, StepLoop
from workers.engine.messages import HealthReport, Ready
from workers.journal import Journal
from workers.lifecycle import Lifecycle
from workers.outlets import Outlets
from workers.stdio import CommandReader, EventWriter, claim_stdout

if TYPE_CHECKING:
    from baleen.tracing import Tracing
    from workers.cache.announce import Announcer, EventFeed
    from workers.metrics import RankParts
    from workers.parallel.group import Group
    from workers.server_thread import RankServer
    from workers.startup import Engine, Timeline


class RankProcess:
    """One rank from its configuration to the end of the process; the only place that puts its parts together."""

    def __init__(self, config: RankConfig, events: int, *, clock: Clock, log: Log) -> None:
        """`events`: file descriptor that events are written to."""
        self._config = config
        self._clock = clock
        self._log = log
        self._incarnation = new_incarnation()
        self._started_at = clock.now()
        self._group: Group | None = None
        self._inbox = Inbox()
        self._lifecycle = Lifecycle(config.parallel.rank, self._inbox, log)
        # before the first thread, which would otherwise take the signals
        self._lifecycle.watch_signals()
        writer = EventWriter(events, on_broken=self._lifecycle.supervisor_gone)
        self._outlets = Outlets(writer)
        self._lifecycle.writes_to(self._outlets)
        self._anteroom = Anteroom(self._inbox, emit=self._outlets.emit, log=log)
        self._reader = CommandReader(
            0,
            self._anteroom,
            emit=writer.emit,
            health=self.health,
            on_end=self._lifecycle.supervisor_gone,
            clock=clock,
            takes_requests=not config.serve.listen,
        )
        self._server: RankServer | None = None
        self._parts: RankParts | None = None
        self._metrics_address = ""
        self._address = ""

    def run(self) -> None:
        """Everything; ends the process."""
        self._reader.start()
        try:
            if self._config.serve.listen:
                self._listen()
            if self._config.serve.metrics_listen:
                self._serve_metrics()
            self._lifecycle.end(self._serve(), 0)
        except EpochEnded as error:
            self._lifecycle.leave_epoch(error.cause)
        except Exception as error:
            if not isinstance(error, BaleenError) or error.exit_code == BaleenError.exit_code:
                write_stderr(traceback.format_exc())
            self._lifecycle.fail(error, self.health().phase)

    def health(self) -> HealthReport:
        """Progress of the main thread; for any thread."""
        if self._group is None:
            seconds = self._clock.now() - self._started_at
            return HealthReport(self._config.parallel.rank, -1, "joining", seconds, None)
        health = self._group.health()
        return HealthReport(health.rank, health.step, health.phase, health.seconds_in_phase, health.ended)

    def _listen(self) -> None:
        """Answer calls from now on, with "not ready" at first; so a bad address is known before the weights load."""
        from workers.server_thread import RankServer

        self._server = RankServer(
            self._config.serve.listen,
            self._anteroom,
            health=self.health,
            drain=self._lifecycle.stop,
            clock=self._clock,
            log=self._log,
            tls=self._config.tls,
            stall_s=max(self._config.parallel.collective_timeout_s, 3 * IDLE_WAIT_S),
        )
        listens = self._server.start()
        self._address = self._config.serve.advertise or listens
        self._outlets.listens(self._server)
        self._log.info("listening", address=listens, advertised=self._address)

    def _serve_metrics(self) -> None:
        """Answer scrapes from now on, so that a rank that does not come up can be told from one that is not there."""
        from baleen.exposition import MetricsServer, Samples
        from workers.metrics import RankParts

        self._parts = RankParts(self._config, lag=self._server.lag if self._server is not None else None)
        server = MetricsServer(
            self._config.serve.metrics_listen, Samples("rank", self._parts.samples), key="serve.metrics_listen"
        )
        self._metrics_address = server.address
        self._log.info("metrics", address=server.address)

    def _serve(self) -> str:
        """Start, run the step loop until the group has drained, and leave; returns why it did."""
        begin = self._clock.now()
        # torch and all that needs it, which takes seconds: after the configuration is known to be good
        from workers import startup

        timeline = startup.Timeline(self._clock)
        timeline.add("import", self._clock.now() - begin)
        place = startup.choose_place(self._config, self._log)
        group = self._group = startup.join(
            self._config,
            timeline,
            on_end=self._lifecycle.epoch_ended,
            clock=self._clock,
            incarnation=self._incarnation,
            device=place.device,
        )
        self._lifecycle.joined(group)
        engine = startup.load(self._config, group, timeline, clock=self._clock, log=self._log, place=place)
        info = self._info(engine)
        announcer, feed = self._open_announcer(engine, info)
        tracing = self._open_tracing()
        spans = None
        if tracing is not None:
            from workers.spans import RankSpans

            spans = RankSpans(tracing, self._config)
        journal = Journal(self._outlets.emit, clock=self._clock, log=self._log, spans=spans)
        engine.scheduler.on_started, engine.scheduler.on_preempted = journal.started, journal.preempted
        loop = StepLoop(
            self._config,
            engine.spec,
            scheduler=engine.scheduler,
            runner=engine.runner,
            group=group,
            inbox=self._inbox,
            emit=journal.emit,
            clock=self._clock,
            moves=engine.moves,
            publish=feed.publish if feed is not None else None,
            on_begun=journal.begun,
        )
        if self._parts is not None:
            self._parts.engine, self._parts.loop, self._parts.announcer = engine, loop, announcer
        self._inbox.connect(group.notify)
        self._anteroom.open(engine.grammars)
        self._lifecycle.serving()
        self._tell_ready(engine, info, timeline)
        if announcer is not None:
            announcer.start()
        reason = loop.run()
        if announcer is not None:
            announcer.close()
        if tracing is not None:
            tracing.close()
        engine.close()
        group.close()
        self._log.info("drained", reason=reason)
        return reason

    def _open_tracing(self) -> Tracing | None:
        if self._config.traces.exporter == "off":
            return None
        from baleen.tracing import Tracing

        return Tracing(self._config.traces, "baleen-rank", clock=self._clock, log=self._log)

    def _open_announcer(self, engine: Engine, info: RankInfo) -> tuple[Announcer | None, EventFeed | None]:
        """What tells Redis about this rank and its blocks, if it is to be told."""
        serve = self._config.serve
        if not serve.redis.url:
            return None, None
        from workers.cache.announce import Announcer, EventFeed, open_client

        feed = EventFeed(engine.scheduler.blocks)
        client = open_client(serve.redis)
        return Announcer(client, serve.cluster, info, feed, clock=self._clock, log=self._log), feed

    def _info(self, engine: Engine) -> RankInfo:
        """What others may know of this life of the rank."""
        config = self._config
        return RankInfo(
            incarnation=self._incarnation,
            epoch=Epoch(config.parallel.epoch),
            rank=config.parallel.rank,
            world_size=config.parallel.world_size,
            role=config.serve.role,
            pool=config.serve.pool,
            group=config.serve.group,
            address=self._address,
            model_fingerprint=engine.block_fingerprint.hex(),
            vocab_size=engine.spec.vocab_size,
            max_context=engine.max_context,
            eos_token_ids=engine.spec.eos_token_ids,
            num_blocks=config.cache.num_blocks,
            max_running=config.engine.max_running,
            pid=os.getpid(),
            transfer_address=engine.moves.address,
            transport=engine.moves.transport,
            metrics_address=self._metrics_address,
        )

    def _tell_ready(self, engine: Engine, info: RankInfo, timeline: Timeline) -> None:
        self._log.info(
            "ready",
            blocks=self._config.cache.num_blocks,
            model=engine.fingerprint.hex(),
            transport=info.transport or "none",
            **{f"{name.replace(' ', '_')}_s": seconds for name, seconds in timeline.parts},
        )
        if self._server is not None:
            self._server.ready(info)
        self._outlets.emit(
            Ready(
                rank=info.rank,
                world_size=info.world_size,
                epoch=info.epoch,
                incarnation=info.incarnation,
                pid=info.pid,
                model_fingerprint=info.model_fingerprint,
                vocab_size=info.vocab_size,
                max_context=info.max_context,
                eos_token_ids=info.eos_token_ids,
                num_blocks=info.num_blocks,
                startup=timeline.parts,
                address=info.address,
                transfer_address=info.transfer_address,
            )
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one rank. Ends the process."""
    parser = argparse.ArgumentParser(prog="python -m workers.main", description="One rank of a baleen group.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the rank's configuration, JSON")
    events = claim_stdout()
    path = parser.parse_args(arguments).config
    try:
        config = load_rank_config(path)
    except ConfigError as error:
        Log().error("configuration refused", error=str(error))
        sys.exit(error.exit_code)
    # Before torch loads OpenMP, whose threads would spin while they wait: with more runnable threads than processors
    # (other ranks, the control threads) each barrier then costs a time slice instead of microseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    log = Log(config.log_level, rank=config.parallel.rank)
    RankProcess(config, events, clock=SystemClock(), log=log).run()


if __name__ == "__main__":
    main()
