"""Configuration of one router process, and how it is read from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from baleen.cluster_config import PolicyName
from baleen.config import Level, TraceConfig
from baleen.config_file import from_dict
from baleen.errors import ConfigError
from baleen.redis_config import RedisConfig
from baleen.tls_config import TlsConfig
from router.policy.snapshot import Parameters
from router.proxy import ProxyLimits
from router.session import SessionTimes


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterProcessConfig:
    """Everything that one router process needs to know.

    listen: `host:port`, port 0 takes a free one. listen_metrics: of GET /metrics, empty serves none. cluster and
    redis: where ranks announce themselves; or ranks: their addresses, `host:port` with commas between, without
    Redis and so without prefix index. model: checkpoint directory, for its tokenizer; empty serves token ids only.
    model_name: as clients know it. slo_first_token_s: a request that cannot have its first token in this time is
    refused at once; 0 never. max_deadline_s: of requests that have none, and the most. retry_share: tries after a
    failure per request in the long run; retry_reserve: in store. quarantine_s: how long a request that killed ranks is
    kept out. drain_timeout_s: time for running requests once the router is told to leave. tls: of connections to ranks;
    clients are answered in the clear. takes_over: another router listens at both addresses until it leaves.
    """

    listen: str = "127.0.0.1:9000"
    listen_metrics: str = ""
    cluster: str = "default"
    redis: RedisConfig = field(default_factory=RedisConfig)
    ranks: str = ""
    model: str = ""
    model_name: str = "baleen"
    policy: PolicyName = "cost"
    parameters: Parameters = field(default_factory=Parameters)
    slo_first_token_s: float = 0.0
    max_queued: int = 1024
    max_deadline_s: float = 3600.0
    retry_share: float = 0.1
    retry_reserve: int = 64
    quarantine_s: float = 600.0
    drain_timeout_s: float = 30.0
    limits: ProxyLimits = field(default_factory=ProxyLimits)
    session: SessionTimes = field(default_factory=SessionTimes)
    traces: TraceConfig = field(default_factory=TraceConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    takes_over: bool = False
    log_level: Level = "info"

    def __post_init__(self) -> None:
        """Raise ConfigError on an address that is none, or a number out of range."""
        for name in ("listen", "listen_metrics"):
            host, colon, port = getattr(self, name).rpartition(":")
            _require(
                (name == "listen_metrics" and not self.listen_metrics)
                or (bool(host and colon) and port.isdecimal() and int(port) < 65536),
                f"{name} is {getattr(self, name)!r}, must be host:port with a port from 0 to 65535",
            )
        _require(
            bool(self.redis.url) != bool(self.ranks),
            f"redis.url is {self.redis.shown!r} and ranks is {self.ranks!r}, exactly one must be given",
        )
        _require(bool(self.model_name), "model_name is empty, must be a name")
        policies = get_args(PolicyName)
        _require(self.policy in policies, f"policy is {self.policy!r}, must be one of {', '.join(policies)}")
        for name in ("slo_first_token_s", "retry_share", "retry_reserve", "quarantine_s"):
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name):g}, must be at least 0")
        for name in ("max_queued", "max_deadline_s", "drain_timeout_s"):
            _require(getattr(self, name) > 0, f"{name} is {getattr(self, name):g}, must be above 0")
        levels = get_args(Level)
        _require(self.log_level in levels, f"log_level is {self.log_level!r}, must be one of {', '.join(levels)}")


def load_router_config(path: Path) -> RouterProcessConfig:
    """Read a router's configuration from a JSON file. Raises ConfigError that names the file, the key and the value."""
    try:
        return from_dict(RouterProcessConfig, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
