"""Starting a rank: everything between its configuration and its first request, in order, with the time of each part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from baleen.clock import Clock
from baleen.config import RankConfig
from baleen.errors import ConfigError
from baleen.ids import Incarnation
from baleen.model_spec import ModelSpec
from baleen.telemetry import Log
from baleen.text.grammars import Grammars
from baleen.text.tokenizer import load_tokenizer
from workers.cache.block_bytes import BlockBytes
from workers.cache.blocks import BlockCache
from workers.cache.device_bytes import DeviceBytes
from workers.cache.tensors import CacheBytes
from workers.engine.scheduler import Scheduler
from workers.model.checkpoint import Checkpoint
from workers.model.device_weights import DeviceWeights
from workers.model.limits import require_widths
from workers.model.loading import LoadTimes, load_device_weights, load_weights
from workers.model.runner import COMPUTE_DTYPES, Runner
from workers.model.weights import Weights
from workers.parallel.group import Group
from workers.parallel.join import open_group
from workers.place import Place, place_of, plan_memory
from workers.transfer.moves import Moves
from workers.transfer.nixl_payload import NixlPayload, import_nixl
from workers.transfer.tcp import TcpTransport
from workers.transfer.tls import Tls

if TYPE_CHECKING:
    from workers.model.device_runner import DeviceRunner

READY_TIMEOUT_S = 24 * 3600.0
"""Longest wait for the other ranks to load; a rank that dies or stops meanwhile is noticed by its heartbeat."""


class Timeline:
    """Seconds of each part of the start, in order."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._parts: list[tuple[str, float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block as the next part."""
        begin = self._clock.now()
        yield
        self.add(name, self._clock.now() - begin)

    def add(self, name: str, seconds: float) -> None:
        """Note a part that was timed elsewhere."""
        self._parts.append((name, seconds))

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """All parts so far."""
        return tuple(self._parts)


@dataclass(frozen=True, slots=True)
class Engine:
    """What a step loop runs, ready for requests. max_context: most tokens of prompt and output.

    block_fingerprint: weights and record format, as in the names of blocks. moves: what the rank exchanges with others;
    of a rank that no router reaches, nothing. grammars: None where the checkpoint has no tokenizer.
    """

    spec: ModelSpec
    fingerprint: bytes
    block_fingerprint: bytes
    max_context: int
    scheduler: Scheduler
    runner: Runner | DeviceRunner
    moves: Moves
    grammars: Grammars | None

    def close(self) -> None:
        """Let go of what must not outlive the group."""
        self.runner.close()


def choose_place(config: RankConfig, log: Log) -> Place:
    """Decide what this rank computes with, and where, and say so in the log. Raises ConfigError."""
    place = place_of(config)
    log.info("kernels", implementation=place.implementation, device=str(place.device))
    return place


def join(
    config: RankConfig,
    timeline: Timeline,
    *,
    on_end: Callable[[str], None],
    clock: Clock,
    incarnation: Incarnation,
    device: torch.device | None = None,
) -> Group:
    """Meet the other ranks; from here on each learns of the others' failures. Raises EpochEnded, ConfigError.

    device: where this rank computes; a group of several on CUDA devices speaks NCCL.
    """
    if config.model.num_threads:
        torch.set_num_threads(config.model.num_threads)
    with timeline.part("join"):
        return open_group(config.parallel, on_end, device=device, clock=clock, incarnation=incarnation)


def load(
    config: RankConfig, group: Group, timeline: Timeline, *, clock: Clock, log: Log, place: Place | None = None
) -> Engine:
    """Load the weights, allocate the cache and warm up, together with the group's other ranks.

    place: what `choose_place` gave; without it, what the configuration asks for. Raises CheckpointError, ConfigError,
    EpochEnded.
    """
    place = place or place_of(config)
    if config.transfer.transport == "nixl":
        # missing, it should not be noticed only after the weights are there
        import_nixl()
    group.report("load")
    weights, times = _load_weights(config, group, place, log)
    timeline.add("open", times.open_s)
    timeline.add("read", times.read_s)
    timeline.add("convert", times.convert_s)
    max_context = _max_context(config, weights.spec)
    record_format = _record_format(config, place)
    fingerprint = weights.fingerprint + f"|{record_format}".encode()
    blocks = BlockCache(config.cache.num_blocks, fingerprint)
    scheduler = Scheduler(config.engine, blocks, clock, max_context=max_context)
    with timeline.part("allocate"):
        runner = _make_runner(weights, config, group)
    with timeline.part("tokenizer"):
        grammars = _load_grammars(config, weights.spec)
    with timeline.part("await others"):
        group.await_all("loaded", READY_TIMEOUT_S)
    group.report("warm up")
    with timeline.part("warm up"):
        runner.warm_up()
    if not isinstance(runner, Runner):
        _log_steps(runner, group, log)
    group.await_all("warm", READY_TIMEOUT_S)
    moves = Moves(
        blocks,
        open_transport(config, runner, weights.fingerprint, record_format, log),
        clock,
        fingerprint=fingerprint,
        prefix_cache=config.cache.prefix_cache,
    )
    return Engine(weights.spec, weights.fingerprint, fingerprint, max_context, scheduler, runner, moves, grammars)


def _load_grammars(config: RankConfig, spec: ModelSpec) -> Grammars | None:
    tokenizer = load_tokenizer(Path(config.model.path))
    if tokenizer is None or not spec.eos_token_ids:
        return None
    return Grammars(tokenizer, vocab_size=spec.vocab_size, eos_token_ids=spec.eos_token_ids)


def _load_weights(
    config: RankConfig, group: Group, place: Place, log: Log
) -> tuple[Weights | DeviceWeights, LoadTimes]:
    """This rank's share, in the form that `place` computes with; refused before a byte is read if it cannot fit."""
    share = {"rank": group.rank, "world_size": group.world_size}
    with Checkpoint.open(config.model.path) as checkpoint:
        if place.implementation == "torch":
            dtype = COMPUTE_DTYPES[config.model.compute_dtype]
            return load_weights(checkpoint, **share, compute_dtype=dtype, progress=group.rank == 0)
        require_widths(checkpoint.spec)
        plan = plan_memory(config, checkpoint, group, place.device)
        if plan is not None:
            log.info("memory", plan=plan.text())
            plan.require_fit()
        return load_device_weights(checkpoint, **share, device=place.device, progress=group.rank == 0)


def _log_steps(runner: DeviceRunner, group: Group, log: Log) -> None:
    """Say once what the steps of a device are made of, since none of it changes later."""
    alone = group.world_size == 1
    log.info(
        "steps",
        decode_exchange="none" if alone else "records",
        prompt_exchange="none" if alone else "counted rows",
        graphs=runner.num_graphs,
    )


def _make_runner(weights: Weights | DeviceWeights, config: RankConfig, group: Group) -> Runner | DeviceRunner:
    exchange = group.expert_exchange(weights.spec.num_experts)
    if isinstance(weights, Weights):
        return Runner(weights, config, exchange)
    # imports triton, which a rank on a CPU needs not have
    from workers.model.device_runner import DeviceRunner

    return DeviceRunner(weights, config, exchange)


def open_transport(
    config: RankConfig, runner: Runner | DeviceRunner, fingerprint: bytes, record_format: str, log: Log
) -> TcpTransport | None:
    """Listen for transfers, if routers can reach this rank. Raises ConfigError where that is impossible."""
    serve = config.serve
    if not serve.listen:
        return None
    host, _, port = serve.transfer_listen.rpartition(":")
    host = host.strip("[]") or config.parallel.host
    cache = _cache_bytes(runner, record_format)
    payload = NixlPayload(cache) if config.transfer.transport == "nixl" else None
    try:
        return TcpTransport(
            host,
            cache,
            fingerprint.hex(),
            port=int(port or 0),
            advertise=serve.transfer_advertise,
            tls=Tls.open(config.tls),
            payload=payload,
            log=log,
        )
    except OSError as error:
        name = "serve.transfer_listen" if serve.transfer_listen else "parallel.host"
        raise ConfigError(f"{name} is {serve.transfer_listen or host!r}, cannot listen there: {error}") from error


def _cache_bytes(runner: Runner | DeviceRunner, record_format: str) -> BlockBytes:
    if isinstance(runner, Runner):
        return CacheBytes(runner.cache, record_format)
    return DeviceBytes(runner.cache, record_format)


def _max_context(config: RankConfig, spec: ModelSpec) -> int:
    asked = config.engine.max_context
    if asked > spec.max_positions:
        raise ConfigError(f"engine.max_context is {asked}, the model has {spec.max_positions} positions")
    return asked or spec.max_positions


def _record_format(config: RankConfig, place: Place) -> str:
    """Names all that decides what stands in a cached block beside the checkpoint."""
    model = config.model
    if place.implementation == "triton":
        return f"triton|{config.cache.dtype}"
    return f"{model.compute_dtype}|{config.cache.dtype}|hadamard={model.hadamard}"
