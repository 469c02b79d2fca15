"""Configuration of the HTTP gateway, as it stands in the cluster file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from baleen.accounts_config import KeysConfig, PriceConfig, require_one_currency
from baleen.errors import ConfigError

MissingReasoning = Literal["reject", "fill_empty"]
ChatFormatName = Literal["auto", "deepseek-v3.2", "deepseek-v3.2-exp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Processes that answer HTTP and speak gRPC to the routers. host and port: replica i listens on port + i.

    replicas: 0 serves gRPC only. chat_format: how conversations become prompts; `auto` asks the checkpoint's tokenizer.
    max_output_tokens: most that a request may ask for. missing_reasoning: what to do in thinking mode with an answer
    that called tools and comes back without its reasoning. max_body_mib, max_active: largest body, and requests at the
    same time in one replica. max_request_s: longest life of a request. keep_alive_s: silence after which a client is
    told that its request lives. resume_s: how long a stream whose request said `resumable` waits for a client whose
    connection ended. resume_mib: memory of one replica for all such streams.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    chat_format: ChatFormatName = "auto"
    max_output_tokens: int = 65536
    missing_reasoning: MissingReasoning = "fill_empty"
    max_body_mib: int = 32
    max_active: int = 4096
    max_request_s: float = 3600.0
    keep_alive_s: float = 10.0
    resume_s: float = 30.0
    resume_mib: int = 256
    keys: KeysConfig = field(default_factory=KeysConfig)
    prices: tuple[PriceConfig, ...] = ()

    def __post_init__(self) -> None:
        """Raise ConfigError on a value out of range."""
        _require(bool(self.host), "gateway.host is empty, must be an address or a name")
        _require(self.replicas >= 0, f"gateway.replicas is {self.replicas}, must be at least 0")
        _require(
            1 <= self.port <= 65536 - max(1, self.replicas),
            f"gateway.port is {self.port}, must be from 1 to {65536 - max(1, self.replicas)}",
        )
        for name, most in (
            ("max_output_tokens", 1 << 20),
            ("max_body_mib", 256),
            ("max_active", 1 << 20),
            ("resume_mib", 1 << 16),
        ):
            value = getattr(self, name)
            _require(1 <= value <= most, f"gateway.{name} is {value}, must be from 1 to {most}")
        for name in ("max_request_s", "keep_alive_s", "resume_s"):
            value = getattr(self, name)
            _require(value > 0, f"gateway.{name} is {value:g}, must be above 0")
        require_one_currency(self.prices)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where each replica listens."""
        return tuple(f"{self.host}:{self.port + number}" for number in range(self.replicas))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
