"""What an account store keeps and gives: keys, refusals, open requests, entries of the ledger. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from baleen.errors import BaleenError, ConfigError
from router.gateway.accounts.money import Usage

Outcome = Literal["finished", "cancelled", "failed", "lost"]
Reason = Literal["key", "expired", "origin", "operator", "model", "balance", "requests", "tokens", "concurrency"]

STATUS: dict[Reason, int] = {
    "key": 401,
    "expired": 401,
    "origin": 403,
    "operator": 403,
    "model": 403,
    "balance": 402,
    "requests": 429,
    "tokens": 429,
    "concurrency": 429,
}
"""HTTP status of each reason to refuse."""

MOST_PER_MINUTE = 10**9
MOST_CONCURRENT = 10**6
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


class Refused(BaleenError):
    """A call that its key does not allow, or not now. retry_after_s: when it may be."""

    exit_code = 2

    def __init__(self, reason: Reason, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.reason]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. Times are seconds of the wall clock since 1970; None: without a limit.

    tenant: prompts of one tenant share cached prefixes. models: lower-case names that it may ask for; empty: all.
    has_balance: costs are taken from a balance, and none is left below 0. is_operator: may see the cluster behind the
    gateway.
    """

    key_id: str
    digest: bytes
    tenant: str
    name: str = ""
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    has_balance: bool = False
    is_operator: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError on a value out of range."""
        _require(
            _TENANT.fullmatch(self.tenant) is not None,
            f"tenant is {self.tenant!r}, must be letters, digits and ._-, at most 64, a letter or digit first",
        )
        _require(
            len(self.name) <= 100 and self.name.isprintable(),
            f"name is {self.name[:100]!r}, must be at most 100 printable characters",
        )
        for model in self.models:
            _require(_MODEL.fullmatch(model) is not None, f"a model is {model!r}, must be the name of one")
            _require(model == model.lower(), f"a model is {model!r}, must be in lower case")
        _require(len(self.models) <= 64, f"models are {len(self.models)}, must be at most 64")
        for name, most in (
            ("requests_per_minute", MOST_PER_MINUTE),
            ("tokens_per_minute", MOST_PER_MINUTE),
            ("concurrency", MOST_CONCURRENT),
        ):
            value = getattr(self, name)
            _require(value is None or 1 <= value <= most, f"{name} is {value}, must be from 1 to {most}")
        _require(
            self.expires_at is None or self.expires_at > self.created_at,
            f"expires_at is {self.expires_at}, must be after the key is made",
        )

    def check(self, wall_s: float) -> None:
        """Raise Refused if it is revoked or expired."""
        if self.revoked_at is not None:
            raise Refused("key", "The API key is not valid.")
        if self.expires_at is not None and wall_s >= self.expires_at:
            raise Refused("expired", "The API key has expired.")

    def check_model(self, *names: str) -> None:
        """Raise Refused if it may ask for none of these, which are names of one model."""
        if self.models and not {name.lower() for name in names} & set(self.models):
            raise Refused("model", f"The API key may not use the model {names[0]}.")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a limit per minute. reset_s: until all of it is there again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A request that wants to start. most_tokens: of prompt and answer. most_cost: picos.

    key_id empty: of nobody, where no keys are asked for.
    """

    request_id: str
    key_id: str
    tenant: str
    model: str
    most_tokens: int
    most_cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How a request ended: one line of the ledger. cost: picos."""

    request_id: str
    outcome: Outcome
    usage: Usage
    cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DayUsage:
    """Sums of the ledger for one key and day (UTC, YYYY-MM-DD) and model. cost: picos."""

    day: str
    key_id: str
    model: str
    num_requests: int
    usage: Usage
    cost: int


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
