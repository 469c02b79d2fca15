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
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from baleen.cluster_config import ClusterConfig
from baleen.config_file import from_dict
from baleen.demo import demo_checkpoint
from baleen.errors import BaleenError, CheckpointError, ConfigError, HeadLost
from baleen.redis_config import RedisConfig
from cluster.control import Control
from cluster.embedded import EmbeddedRedis
from cluster.head_calls import HeadCalls, listens
from cluster.headless import drain_all
from cluster.marked import end_marked, mark_children
from cluster.rank_child import import_path
from cluster.ray_environment import prepare_environment
from cluster.redis_check import check_redis
from cluster.run_state import RunState, StateFile
from cluster.watch import PLACE_TIMEOUT_S, Watch

if TYPE_CHECKING:
    # imports Ray, which takes a second
    from cluster.fleet import Fleet

PREPARE_TIMEOUT_S = 600.0
"""Longest time for checking a checkpoint."""

HELPERS_PATIENCE_S = 3.0
"""How long Ray's helpers may outlive it."""

JOIN_TIMEOUT_S = 60.0
"""How long a Ray of others may take to let this process join, before its head counts as silent."""

LONGEST_ROOT = 24

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
        self._rest: Callable[[float], None] | None = None
        self._call: HeadCalls | None = None
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
                watch.forever(self._rest)
            except (Stopped, SystemError) as error:
                if not is_stop(error):
                    raise
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
        if config.redis.url:
            check_redis(config.redis, config.name)
        preparation = self._check()
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
        fleet = self._deploy(self._state.redis, logs)
        watch = self._watch(fleet, server, state_file)
        watch.until_up(config.group.start_timeout_s + PLACE_TIMEOUT_S)
        control = self._undo.enter_context(Control(directory))
        self._rest = lambda timeout_s: self._serve_request(control, fleet, watch, state_file, timeout_s)
        self._say(f"up after {time.monotonic() - begin:.1f} s")
        return watch

    def _watch(self, fleet: Fleet, redis: EmbeddedRedis | None, state_file: StateFile) -> Watch:
        from cluster import ray_adapter

        return Watch(
            fleet.states,
            say=self._say,
            tell=lambda states: self._note(state_file, groups=fleet.groups(states)),
            redis=redis,
            head_answers=ray_adapter.head_answers,
            head_address=fleet.call.address,
            notice=lambda text: self._note(state_file, notice=text),
        )

    def _serve_request(
        self, control: Control, fleet: Fleet, watch: Watch, state_file: StateFile, timeout_s: float
    ) -> None:
        """Do what another command asks for, if one does within this time."""
        request = control.wait(timeout_s)
        if request is None:
            return
        error: BaleenError | None = None
        self._note(state_file, notice="the cluster is being changed (baleen apply)")
        try:
            wanted = from_dict(ClusterConfig, request.content.get("config"), key="config")
            afresh, in_place = (request.content.get(name) is True for name in ("afresh", "in_place"))
            fleet.update(wanted, watch, request.say, afresh=afresh, in_place=in_place)
            self._note(state_file, routers=wanted.router.addresses)
        except BaleenError as failure:
            error = failure
            self._say(f"not applied: {failure}")
        self._note(state_file, notice="")
        request.end(error)

    def _note(self, state_file: StateFile, **changes: Any) -> None:
        """Let other commands see a change."""
        state = replace(self._state, **changes)
        if state != self._state:
            self._state = state
            state_file.write(state)

    def _check(self) -> subprocess.Popen[bytes] | None:
        """Check what was given, in a process of its own, since that needs torch."""
        if not self._check_arguments:
            return None
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.cli", "check", *self._check_arguments],
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
            self._call = HeadCalls(ray_config.address, partial(_answers, ray_config.address, time.monotonic()))
            self._call(ray_adapter.join, ray_config.address)
        else:
            ray_adapter.start_here(num_cpus=len(os.sched_getaffinity(0)), directory=str(directory))
            self._call = HeadCalls(ray_adapter.address(), ray_adapter.head_answers)
        # Ray has put a handler of its own in their place
        _take_signals()

    def _deploy(self, redis: RedisConfig, logs: Path) -> Fleet:
        from cluster import ray_adapter
        from cluster.app import Site
        from cluster.fleet import Fleet

        config = self._config
        assert self._call is not None, "Ray is there"
        # only a Ray of our own shares this machine's files
        site = Site(redis=redis, log_directory=str(logs))
        if config.ray.address:
            site = Site(redis=redis, router_node=config.router.node or ray_adapter.node_address())
            self._journal = self._call(ray_adapter.start_journal, config.name, str(logs))
        fleet = Fleet(config, site, demo_checkpoint(), self._say, self._call)
        if config.ray.address:
            fleet.end_leftovers()
        fleet.require_room()
        if not config.ray.address:
            self._undo.callback(self._stop_serve)
        self._undo.callback(self._undeploy, fleet)
        fleet.deploy()
        return fleet

    def _end_headless(self) -> None:
        """What can be ended in order without Ray's head: the ranks of a Ray that was started here."""
        if self._config.ray.address:
            self._say(
                f"Ray's head at {self._config.ray.address} gives no answer, so that nothing on that Ray can be ended; "
                f"it goes on"
            )
            return
        try:
            asyncio.run(drain_all(self._state, self._config.group.drain_timeout_s))
        except BaleenError as error:
            self._say(f"Ray's head gives no answer, and ranks are ended without order: {error}")

    def _stop_serve(self) -> None:
        from cluster import ray_adapter, serve_adapter

        assert self._call is not None, "Serve has been started"
        if ray_adapter.head_answers():
            self._call(serve_adapter.stop_serve)

    def _leave_ray(self) -> None:
        from cluster import ray_adapter

        stuck = self._call is not None and self._call.stuck
        if not stuck and (not ray_adapter.connected() or ray_adapter.head_answers()):
            try:
                if self._call is not None and self._config.ray.address:
                    self._call(ray_adapter.leave)
                else:
                    ray_adapter.leave()
                return
            except HeadLost as error:
                self._say(str(error))
        ray_adapter.abandon()
        self.abandoned_ray = True

    def _undeploy(self, fleet: Fleet) -> None:
        from cluster import ray_adapter

        if ray_adapter.head_answers():
            fleet.undeploy()
        else:
            self._end_headless()


def _answers(address: str, since: float) -> bool:
    """Whether the head of a Ray of others is there, and has let this process join soon enough."""
    from cluster import ray_adapter

    if not listens(address):
        return False
    return ray_adapter.head_answers() if ray_adapter.connected() else time.monotonic() < since + JOIN_TIMEOUT_S


def is_stop(error: BaseException | None) -> bool:
    """Whether a signal is behind an error: within a call of Ray's that is written in C it comes out as SystemError."""
    return error is not None and (isinstance(error, Stopped) or is_stop(error.__cause__))


def temporary_root() -> Path:
    """Where a cluster's folder is made: short, since the paths of sockets in it have at most 107 bytes."""
    root = Path(tempfile.gettempdir())
    return root if len(str(root)) <= LONGEST_ROOT else Path("/tmp")


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
