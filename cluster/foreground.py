"""A cluster from start to end in the foreground of one process: what `baleen up` does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from baleen.cluster_config import ClusterConfig
from baleen.config import ModelConfig
from baleen.errors import BaleenError, CheckpointError, ConfigError
from baleen.redis_config import RedisConfig
from cluster.embedded import EmbeddedRedis
from cluster.headless import drain_all
from cluster.marked import end_marked, mark_children
from cluster.placement import ROUTER, plan, pools_and_router
from cluster.rank_child import import_path
from cluster.ray_environment import prepare_environment
from cluster.redis_check import check_redis
from cluster.run_state import RunState, StateFile, cache_directory
from cluster.service import Service, ServiceState, service_name
from cluster.watch import Watch

PREPARE_TIMEOUT_S = 600.0
"""Longest time for making or checking a checkpoint."""

HELPERS_PATIENCE_S = 3.0
"""How long Ray's helpers may outlive it."""

LONGEST_ROOT = 24

PLACE_TIMEOUT_S = 60.0
"""Longest time for placing actors, beyond what the ranks may take."""

FREED_S = 5.0
"""Longest time for Ray to tell that something is free again."""

_ERRORS: dict[int, type[BaleenError]] = {2: ConfigError, 3: CheckpointError}


class Stopped(Exception):
    """A signal asked this process to end."""


class Foreground:
    """Starts everything, watches it, and takes everything down again, however it ends."""

    def __init__(self, config: ClusterConfig, *, check_arguments: Sequence[str], say: Callable[[str], None]) -> None:
        """check_arguments: of `baleen check` for the same cluster; empty: nothing there that could be wrong."""
        self._config = config
        self._check_arguments = list(check_arguments)
        self._say = say
        self._undo = contextlib.ExitStack()
        self._state = RunState(name=config.name, pid=os.getpid())
        self._journal: object = None
        self.abandoned_ray = False
        """Ray had lost its head at the end: this process can then end with os._exit only."""

    def run(self, on_ready: Callable[[], None]) -> None:
        """Everything; returns once a signal has asked for the end. Raises BaleenError if the cluster cannot start."""
        _take_signals()
        with self._undo, StateFile(self._config.name) as state_file:
            try:
                watch = self._start(state_file)
                self._note(state_file, phase="ready")
                on_ready()
                watch.forever()
            except Stopped:
                self._say("leaving: running requests may finish; once more to end at once")
            finally:
                self._undo.close()

    def _start(self, state_file: StateFile) -> Watch:
        begin = time.monotonic()
        config = self._config
        directory = Path(tempfile.mkdtemp(prefix="baleen-", dir=temporary_root()))
        self._undo.callback(shutil.rmtree, directory, ignore_errors=True)
        mark_children(directory)
        self._undo.callback(end_marked, directory, HELPERS_PATIENCE_S)
        logs = directory / "logs"
        logs.mkdir()
        self._note(
            state_file,
            routers=config.router.addresses,
            redis=config.redis,
            tls=config.tls,
            directory=str(directory),
        )
        model = config.model or ModelConfig(path=str(default_checkpoint()))
        if config.redis.url:
            check_redis(config.redis, config.name)
        preparation = self._prepare(model)
        server = None
        if not config.redis.url:
            server = self._undo.enter_context(EmbeddedRedis(directory=directory))
            self._note(state_file, redis=RedisConfig(url=server.url))
        # Ray prints from threads of its own, and would mix with what is said here
        output = self._undo.enter_context((logs / "ray.log").open("a", buffering=1))
        self._undo.enter_context(contextlib.redirect_stdout(output))
        self._start_ray(directory)
        if preparation is not None:
            _wait_for(preparation)
        services = self._deploy(model, self._state.redis, logs)
        watch = self._watch(services, server, state_file)
        watch.until_up(config.group.start_timeout_s + PLACE_TIMEOUT_S)
        self._say(f"up after {time.monotonic() - begin:.1f} s")
        return watch

    def _watch(self, services: Sequence[Service], redis: EmbeddedRedis | None, state_file: StateFile) -> Watch:
        from cluster import ray_adapter

        def tell(states: Sequence[ServiceState]) -> None:
            groups = {state.name: (state.running, state.wanted) for state in states}
            self._note(
                state_file,
                groups={pool.name: groups[service_name(self._config.name, pool.name)] for pool in self._config.pools},
            )

        return Watch(
            lambda: ray_adapter.states(services),
            say=self._say,
            tell=tell,
            redis=redis,
            head_answers=ray_adapter.head_answers,
            notice=lambda text: self._note(state_file, notice=text),
        )

    def _note(self, state_file: StateFile, **changes: Any) -> None:
        """Let other commands see a change."""
        state = replace(self._state, **changes)
        if state != self._state:
            self._state = state
            state_file.write(state)

    def _prepare(self, model: ModelConfig) -> subprocess.Popen[bytes] | None:
        """Make the small checkpoint or check what was given, in a process of its own: both need torch."""
        arguments = ["check", *self._check_arguments] if self._check_arguments else None
        if self._config.model is None and not (Path(model.path) / "config.json").exists():
            self._say(f"making a small checkpoint in {model.path}")
            arguments = ["checkpoint", "make", model.path, "--preset", "small", "--tokenizer", "text", "--force"]
        if arguments is None:
            return None
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": import_path()},
            process_group=0,
        )
        self._undo.callback(process.communicate)
        self._undo.callback(process.kill)
        return process

    def _start_ray(self, directory: Path) -> None:
        ray_config = self._config.ray
        prepare_environment(ray_config)
        os.environ["PYTHONPATH"] = import_path()
        # takes a second
        from cluster import ray_adapter

        self._undo.callback(self._leave_ray)
        if ray_config.address:
            ray_adapter.join(ray_config.address)
        else:
            ray_adapter.start_here(num_cpus=len(os.sched_getaffinity(0)), directory=str(directory))
        # Ray has put a handler of its own in their place
        _take_signals()

    def _deploy(self, model: ModelConfig, redis: RedisConfig, logs: Path) -> list[Service]:
        from cluster import app, ray_adapter

        config = self._config
        # only a Ray of our own shares this machine's files
        log_directory, router_node = str(logs), ""
        if config.ray.address:
            log_directory, router_node = "", config.router.node or ray_adapter.node_address()
            self._journal = ray_adapter.start_journal(config.name, str(logs))
        self._require_room(router_node)
        services = app.services(config, model, redis=redis, log_directory=log_directory, router_node=router_node)
        if not config.ray.address:
            self._undo.callback(self._stop_serve)
        self._undo.callback(self._undeploy, services)
        ray_adapter.deploy(services)
        return services

    def _require_room(self, router_node: str) -> None:
        """Raise ConfigError that names what is missing where; what another cluster had may soon be free."""
        from cluster import ray_adapter

        known = {node.address for node in ray_adapter.nodes()}
        if router_node and router_node not in known:
            raise ConfigError(f"router.node is {router_node!r}, must be one of Ray's: {', '.join(sorted(known))}")
        pools, addresses = pools_and_router(self._config), {ROUTER: router_node} if router_node else {}
        deadline = time.monotonic() + FREED_S
        while unplaced := plan(pools, ray_adapter.nodes(), addresses=addresses).unplaced:
            if time.monotonic() > deadline:
                raise ConfigError(
                    "; ".join(f"pool {group.pool}, group {group.group}: {group.reason}" for group in unplaced)
                )
            time.sleep(FREED_S / 10)

    def _end_headless(self) -> None:
        """What can be ended in order without Ray's head: the ranks of a Ray that was started here."""
        if self._config.ray.address:
            self._say("Ray's head gives no answer, so that nothing on that Ray can be ended; it goes on")
            return
        try:
            asyncio.run(drain_all(self._state, self._config.group.drain_timeout_s))
        except BaleenError as error:
            self._say(f"Ray's head gives no answer, and ranks are ended without order: {error}")

    def _stop_serve(self) -> None:
        from cluster import ray_adapter

        if ray_adapter.head_answers():
            ray_adapter.stop_serve()

    def _leave_ray(self) -> None:
        from cluster import ray_adapter

        if not ray_adapter.connected() or ray_adapter.head_answers():
            ray_adapter.leave()
        else:
            ray_adapter.abandon()
            self.abandoned_ray = True

    def _undeploy(self, services: Sequence[Service]) -> None:
        from cluster import ray_adapter

        if not ray_adapter.head_answers():
            self._end_headless()
            return
        left = ray_adapter.undeploy(services)
        if left:
            self._say(f"not gone in time, and ended by force: {', '.join(left)}")


def temporary_root() -> Path:
    """Where a cluster's folder is made: short, since the paths of sockets in it have at most 107 bytes."""
    root = Path(tempfile.gettempdir())
    return root if len(str(root)) <= LONGEST_ROOT else Path("/tmp")


def default_checkpoint() -> Path:
    """Where the small checkpoint lies that is made on first use."""
    return cache_directory() / "small"


def _wait_for(process: subprocess.Popen[bytes]) -> None:
    try:
        output, _ = process.communicate(timeout=PREPARE_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BaleenError(f"{process.args!r} takes longer than {PREPARE_TIMEOUT_S:g} s") from error
    if process.returncode:
        text = output.decode(errors="replace").strip().removeprefix("baleen: error: ")
        raise _ERRORS.get(process.returncode, BaleenError)(text)


def _take_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    # a second signal ends the patience with what runs: the next steps of the way out are taken at once
    raise Stopped
