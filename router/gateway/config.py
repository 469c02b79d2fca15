"""Configuration of one gateway process, and how it is read from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from baleen.config import Level
from baleen.config_file import from_dict
from baleen.errors import ConfigError
from baleen.gateway_config import GatewayConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayProcessConfig:
    """Everything that one gateway process needs to know.

    listen: `host:port`, port 0 takes a free one. routers: their addresses; those that answer are asked in turn. model:
    checkpoint directory, for its tokenizer. model_name: as the routers know it. accounts: file of the accounts.
    settings: as in the cluster file; its host and port are not used. drain_timeout_s: time for running requests once
    the gateway is told to leave. takes_over: another gateway listens at that address until it leaves.
    """

    listen: str = "127.0.0.1:8000"
    routers: tuple[str, ...] = ("127.0.0.1:9000",)
    model: str
    model_name: str
    accounts: str
    settings: GatewayConfig = field(default_factory=GatewayConfig)
    drain_timeout_s: float = 30.0
    takes_over: bool = False
    log_level: Level = "info"

    def __post_init__(self) -> None:
        """Raise ConfigError on an address that is none, or a value out of range."""
        for name, address in (("listen", self.listen), *(("routers", one) for one in self.routers)):
            host, colon, port = address.rpartition(":")
            if not (host and colon and port.isdecimal() and int(port) < 65536):
                raise ConfigError(f"{name} is {address!r}, must be host:port with a port from 0 to 65535")
        for name in ("routers", "model", "model_name", "accounts"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty")
        if self.drain_timeout_s <= 0:
            raise ConfigError(f"drain_timeout_s is {self.drain_timeout_s:g}, must be above 0")
        if self.log_level not in get_args(Level):
            raise ConfigError(f"log_level is {self.log_level!r}, must be one of {', '.join(get_args(Level))}")

    @property
    def host(self) -> str:
        """Where it listens, without the port or brackets."""
        return self.listen.rpartition(":")[0].strip("[]")


def load_gateway_config(path: Path) -> GatewayProcessConfig:
    """Read a gateway's configuration from a JSON file. Raises ConfigError that names the file, key and value."""
    try:
        return from_dict(GatewayProcessConfig, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
