"""Configuration of a rank: frozen, composed, validated; nothing changes it after it is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from baleen.errors import ConfigError
from baleen.redis_config import RedisConfig
from baleen.tls_config import TlsConfig

ComputeDtype = Literal["float32", "bfloat16"]
CacheDtype = Literal["float32", "bfloat16", "float8"]
AttentionForm = Literal["auto", "mha", "absorbed"]
KernelsName = Literal["auto", "torch", "triton"]
Level = Literal["info", "warning", "error", "off"]
Role = Literal["prefill", "decode", "mixed"]
TransportName = Literal["tcp", "nixl"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which checkpoint, and how it is computed.

    attention_form: `mha` expands keys and values per head, `absorbed` attends in latent space; `auto` takes the one
    that needs fewer operations for each piece of work. hadamard rotates index queries and keys (always on with a
    float8 cache, where the official demo needs it). num_threads 0 leaves torch's own choice.

    kernels: `torch` computes on the CPU, `triton` on a CUDA device, in bfloat16, with float8 weights kept as stored;
    `auto` takes triton where there is a CUDA device. Decided once, when a rank starts, for all operations.
    """

    path: str
    compute_dtype: ComputeDtype = "float32"
    attention_form: AttentionForm = "auto"
    hadamard: bool = False
    num_threads: int = 0
    kernels: KernelsName = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError on an unknown choice."""
        _require(
            self.compute_dtype in ("float32", "bfloat16"),
            f"model.compute_dtype is {self.compute_dtype!r}, must be float32 or bfloat16",
        )
        _require(
            self.attention_form in ("auto", "mha", "absorbed"),
            f"model.attention_form is {self.attention_form!r}, must be auto, mha or absorbed",
        )
        kernels = get_args(KernelsName)
        _require(self.kernels in kernels, f"model.kernels is {self.kernels!r}, must be one of {', '.join(kernels)}")
        _require(self.num_threads >= 0, f"model.num_threads is {self.num_threads}, must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The KV cache of one rank: its record format and its size in blocks of 64 tokens."""

    dtype: CacheDtype = "float32"
    num_blocks: int = 1024
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError on an unknown format or an empty pool."""
        _require(
            self.dtype in ("float32", "bfloat16", "float8"),
            f"cache.dtype is {self.dtype!r}, must be float32, bfloat16 or float8",
        )
        _require(self.num_blocks >= 1, f"cache.num_blocks is {self.num_blocks}, must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Scheduling limits of one rank.

    max_batch_tokens: tokens of one step, decode and prefill together. max_chunk_tokens: most prompt tokens that one
    request computes in one step. aging_s: waiting this long lifts a request by one priority level, so that none
    starves. audit: `step` checks every block after every step, `idle` checks the counts each step and every block
    when the rank has nothing to do.
    """

    max_batch_tokens: int = 2048
    max_chunk_tokens: int = 2048
    max_running: int = 64
    max_waiting: int = 4096
    max_context: int = 0
    aging_s: float = 10.0
    audit: Literal["step", "idle"] = "idle"

    def __post_init__(self) -> None:
        """Raise ConfigError on limits that cannot make progress."""
        for name in ("max_batch_tokens", "max_chunk_tokens", "max_running", "max_waiting"):
            value = getattr(self, name)
            _require(value >= 1, f"engine.{name} is {value}, must be at least 1")
        _require(self.max_context >= 0, f"engine.max_context is {self.max_context}, must be 0 (the model's) or more")
        _require(
            self.max_batch_tokens >= self.max_running,
            f"engine.max_batch_tokens is {self.max_batch_tokens}, must be at least engine.max_running "
            f"({self.max_running}), or running requests could not all decode in one step",
        )
        _require(self.aging_s > 0, f"engine.aging_s is {self.aging_s}, must be above 0")
        _require(self.audit in ("step", "idle"), f"engine.audit is {self.audit!r}, must be step or idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """Place of this rank in its group, how the group meets, and how long anything may wait.

    rendezvous: `file:///path` (one machine) or `tcp://host:port` (rank 0 listens). host: the address that peers reach
    this rank at. heartbeat_timeout_s: silence after which a peer is lost. collective_timeout_s: longest wait inside
    one collective. join_timeout_s: longest wait for all ranks to meet. drain_timeout_s: time that running requests
    are given once the rank is told to leave.
    """

    rank: int = 0
    world_size: int = 1
    epoch: str = "local"
    rendezvous: str = ""
    host: str = "127.0.0.1"
    heartbeat_interval_s: float = 0.25
    heartbeat_timeout_s: float = 3.0
    collective_timeout_s: float = 30.0
    join_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Raise ConfigError on a place outside the group or a time that is not positive."""
        _require(self.world_size >= 1, f"parallel.world_size is {self.world_size}, must be at least 1")
        _require(
            0 <= self.rank < self.world_size, f"parallel.rank is {self.rank}, must be from 0 to {self.world_size - 1}"
        )
        _require(
            self.world_size == 1 or self.rendezvous.startswith(("file://", "tcp://")),
            f"parallel.rendezvous is {self.rendezvous!r}, must start with file:// or tcp://",
        )
        for name in (
            "heartbeat_interval_s",
            "heartbeat_timeout_s",
            "collective_timeout_s",
            "join_timeout_s",
            "drain_timeout_s",
        ):
            value = getattr(self, name)
            _require(value > 0, f"parallel.{name} is {value}, must be above 0")
        _require(
            self.heartbeat_timeout_s >= 3 * self.heartbeat_interval_s,
            f"parallel.heartbeat_timeout_s is {self.heartbeat_timeout_s}, must be at least three intervals "
            f"({3 * self.heartbeat_interval_s})",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """How a rank is reached by routers, and its place in the cluster.

    listen: `host:port` of its gRPC server; port 0 takes a free one, empty serves no gRPC. A rank that listens takes
    requests there only, not from its stdin. role: what routers use it for. pool, group: names that decisions, logs
    and metrics show. redis: where its blocks and its lease are announced, without a URL nowhere. cluster: name
    under which; clusters that share a server do not see each other.

    advertise: the `host:port` that routers are told, where that is another than the rank's own, as behind NAT or a
    proxy. transfer_listen: where it takes blocks from other ranks; empty: a free port of `parallel.host`.
    transfer_advertise: what those are told. metrics_listen: of GET /metrics; port 0 takes a free one, empty serves
    none.
    """

    listen: str = ""
    advertise: str = ""
    transfer_listen: str = ""
    transfer_advertise: str = ""
    role: Role = "mixed"
    pool: str = ""
    group: str = ""
    redis: RedisConfig = field(default_factory=RedisConfig)
    cluster: str = "default"
    metrics_listen: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError on an address that cannot be listened on, or an unknown role."""
        host, colon, port = self.metrics_listen.rpartition(":")
        _require(
            not self.metrics_listen or (bool(host and colon) and port.isdecimal() and int(port) < 65536),
            f"serve.metrics_listen is {self.metrics_listen!r}, must be host:port with a port from 0 to 65535",
        )
        for name, least in (("listen", 0), ("transfer_listen", 0), ("advertise", 1), ("transfer_advertise", 1)):
            address = getattr(self, name)
            host, colon, port = address.rpartition(":")
            _require(
                not address or (bool(host and colon) and port.isdecimal() and least <= int(port) < 65536),
                f"serve.{name} is {address!r}, must be host:port with a port from {least} to 65535",
            )
            _require(
                bool(self.listen) or not address,
                f"serve.{name} is {address!r} and serve.listen is empty: such a rank serves nobody",
            )
        roles = get_args(Role)
        _require(self.role in roles, f"serve.role is {self.role!r}, must be one of {', '.join(roles)}")
        _require(
            bool(self.listen) or not self.redis.url,
            "serve.redis.url is set and serve.listen is empty: nobody could reach a rank that is announced so",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """How blocks move between ranks, the same for all of a cluster.

    transport: `tcp` sends them over the connection, `nixl` lets the receiver read them by NIXL, which needs its package
    on every machine and does not go with `tls`. What is asked for is what runs: there is no falling back.
    """

    transport: TransportName = "tcp"

    def __post_init__(self) -> None:
        """Raise ConfigError on an unknown transport."""
        names = get_args(TransportName)
        _require(
            self.transport in names, f"transfer.transport is {self.transport!r}, must be one of {', '.join(names)}"
        )

    def require_clear(self, tls: TlsConfig) -> None:
        """Raise ConfigError if blocks were to move in the clear beside connections under TLS."""
        _require(
            self.transport != "nixl" or not tls.enabled,
            "transfer.transport is 'nixl' and tls is set: NIXL moves blocks in the clear, so only one can be had",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceConfig:
    """Where spans of requests go, and of which requests.

    exporter: `otlp` sends them to `endpoint` over gRPC (http://host:port, or https://), `file` appends them to `file`
    as JSON lines. ratio: share of the requests that are traced, of those whose client has not decided it.
    """

    exporter: Literal["off", "otlp", "file"] = "off"
    endpoint: str = ""
    file: str = ""
    ratio: float = 0.1

    def __post_init__(self) -> None:
        """Raise ConfigError on an exporter without a place to send to, or a share that is none."""
        _require(
            self.exporter != "otlp" or self.endpoint.startswith(("http://", "https://")),
            f"traces.endpoint is {self.endpoint!r}, must start with http:// or https:// for the exporter otlp",
        )
        _require(
            self.exporter != "file" or self.file.startswith("/"),
            f"traces.file is {self.file!r}, must be a path from the root, since several processes write it",
        )
        _require(0 <= self.ratio <= 1, f"traces.ratio is {self.ratio:g}, must be from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankConfig:
    """Everything that one rank process needs to know.

    tls: of its gRPC server and of transfers. log_level: the least that goes to its log.
    """

    model: ModelConfig
    cache: CacheConfig = field(default_factory=CacheConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    traces: TraceConfig = field(default_factory=TraceConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    log_level: Level = "info"

    def __post_init__(self) -> None:
        """Raise ConfigError on an unknown choice."""
        self.transfer.require_clear(self.tls)
        levels = get_args(Level)
        _require(self.log_level in levels, f"log_level is {self.log_level!r}, must be one of {', '.join(levels)}")
